"""Demands of form in Korean, and answers that meet them or do not."""

import re
from functools import cache

from hcxjax.world import korean
from hcxjax.world.dice import Dice
from hcxjax.world.facts import SHARED, Fact, Scene
from hcxjax.world.hangul import attach
from hcxjax.world.names import Noun

OPENINGS = ("답은", "바로", "그건", "아마")
LIMITS = (11, 12)
"""Characters, spaces and marks too: the longest polite answer that is no sentence just fits."""
LEAST_WORDS = 3
"""Of a sentence."""

DEMANDS = {
    "word": ("한 단어로 답해 주세요.", "한 단어로만 말해 주세요."),
    "sentence": ("온전한 문장으로 답해 주세요.", "온전한 문장으로 말해 주세요."),
    "opening": ("'{opening}'{particle} 시작해 주세요.",),
    "short": ("{most}자 안으로 답해 주세요.", "{most}자 안으로 말해 주세요."),
    "quoted": ("답을 따옴표 안에 써 주세요.", "따옴표 안에 답해 주세요."),
    "exclaimed": ("느낌표로 끝내 주세요.", "끝에 느낌표를 써 주세요."),
}
"""Wordings by form."""


_SOMEBODY = Noun("그 사람", "that person")


def demand(dice: Dice, form: str, opening: str, most: int) -> str:
    """What is asked of the answer's form."""
    particle = attach(opening, "으로")[len(opening) :] if opening else ""
    return dice.pick(DEMANDS[form]).format(opening=opening, particle=particle, most=most)


def tell(dice: Dice, scene: Scene, facts: list[Fact]) -> str:
    """Facts as sentences, written or polite."""
    return korean.state(dice, scene, facts, dice.pick((korean.PLAIN, korean.POLITE)))


def spellings(noun: Noun) -> tuple[str, ...]:
    """How a text may name it."""
    return (noun.korean,)


def answer(dice: Dice, form: str, relation: str, subject: Noun, value: Noun, opening: str, polite: bool) -> str:
    """An answer of a form that says `value`: polite with 네 and 해요체, or rude with 응 and without.

    The value stands behind a space, as where it is told, so that to copy it means to copy its tokens.
    """
    if form == "sentence":
        pattern = dice.pick(korean.RELATIONS[relation].tell)
        return korean.say(pattern, {"x": _SOMEBODY, "v": value}, korean.POLITE if polite else korean.PLAIN)
    said = attach(value.korean, "이에요" if polite else dice.pick(("이다", "이야")))
    opener = opening if form == "opening" else "네," if polite else "응,"
    said = f"{opener} {said}" + ("!" if form == "exclaimed" else ".")
    return f'"{said}"' if form == "quoted" else said


_OPENER = re.compile(r"^\W*(?:네|예|응|어),\s*")
_SENTENCE = re.compile(r"[^.!?\n]+")
_POLITE = re.compile(r"(?:요|니다|니까)$")


def is_polite(text: str) -> bool:
    """Does every sentence end politely, in 해요체 or 합니다체?"""
    ends = [part.strip(" \"'”’)~") for part in _SENTENCE.findall(text)]
    return any(ends) and all(_POLITE.search(end) for end in ends if end)


def without_courtesy(text: str) -> str:
    """The text less the 네 or 응 that it begins with."""
    return _OPENER.sub("", text)


@cache
def _mention(word: str) -> re.Pattern[str]:
    """The word at the beginning of another that particles may end, unless it is a longer value: 요리사 is no 요리."""
    values = (noun.korean for pool in SHARED.values() for noun in pool)
    longer = [value[len(word) :] for value in values if value.startswith(word) and value != word]
    return re.compile(rf"(?<![가-힣]){re.escape(word)}(?!{'|'.join(longer) or '(?!)'})")


def names(text: str, noun: Noun) -> bool:
    """Does a word of `text` begin with it? Particles and endings may follow."""
    return _mention(noun.korean).search(text) is not None
