"""Korean particles and copulas in the form that the last sound of the word before them asks for."""

from functools import lru_cache

RIEUL = 8
"""Index of the final consonant ㄹ, after which 으로 drops its 으."""

PARTICLES = {
    "은": ("은", "는"),
    "이": ("이", "가"),
    "을": ("을", "를"),
    "과": ("과", "와"),
    "이랑": ("이랑", "랑"),
    "아": ("아", "야"),
    "으로": ("으로", "로"),
    "이나": ("이나", "나"),
    "이라는": ("이라는", "라는"),
    "이라고": ("이라고", "라고"),
    "이고": ("이고", "고"),
    "이다": ("이다", "다"),
    "이에요": ("이에요", "예요"),
    "이야": ("이야", "야"),
    "이었": ("이었", "였"),
}
"""(after a final consonant, after a vowel), under the name of the first."""

_DIGIT_FINALS = (21, RIEUL, 0, 16, 0, 0, 1, RIEUL, RIEUL, 0)
"""Of 영 일 이 삼 사 오 육 칠 팔 구."""
_FIRST, _LAST, _FINALS = 0xAC00, 0xD7A3, 28


def final_consonant(word: str) -> int:
    """Index of the final consonant that `word` is heard to end in; 0 is a vowel, 8 is ㄹ.

    A gloss in parentheses at the end is not heard: 민준(Minjun) ends like 민준. Digits are heard in Sino-Korean.

    Raises:
      ValueError: the word ends in neither a Hangul syllable nor a digit.
    """
    heard = word[: word.rindex("(")] if word.endswith(")") and "(" in word else word
    last = heard[-1:]
    if last.isascii() and last.isdigit():
        return _DIGIT_FINALS[int(last)]
    if not last or not _FIRST <= ord(last) <= _LAST:
        raise ValueError(f"the last sound of {word!r} is unknown: end it in a Hangul syllable or a digit")
    return (ord(last) - _FIRST) % _FINALS


@lru_cache(maxsize=1 << 15)
def attach(word: str, particle: str) -> str:
    """`word` with `particle` (a key of PARTICLES) in the form that agrees with it."""
    closed, open_ = PARTICLES[particle]
    final = final_consonant(word)
    if particle == "으로" and final == RIEUL:
        return word + open_
    return word + (closed if final else open_)
