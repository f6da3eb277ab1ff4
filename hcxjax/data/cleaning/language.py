"""Whether the letters of a document are of the language that its source promises, and read in the right encoding."""

import dataclasses
import functools
import re

import numpy as np

from hcxjax.checks import whole
from hcxjax.data.cleaning.characters import HANGUL, LATIN, LETTER, code_points, kinds
from hcxjax.data.cleaning.steps import Outcome, share

_SCRIPTS = {"hangul": HANGUL, "latin": LATIN}

_REPLACEMENT = 0xFFFD
# How bytes 80 to BF, the second and later bytes of a UTF-8 character, look in Latin-1 and in Windows-1252.
_CONTINUATION = "\x80-\xbf" + "".join(
    character for byte in range(0x80, 0xA0) if (character := bytes([byte]).decode("cp1252", "ignore"))
)
_UTF8_AS_LATIN = re.compile(f"[Â-ß][{_CONTINUATION}]|[à-ï][{_CONTINUATION}]{{2}}|ð[{_CONTINUATION}]{{3}}")
# EUC-KR bytes are A1 to FE, so that a Korean word is a run of Latin-1 symbols and accented letters without a break. No
# language writes four of them in a row.
_EUC_KR_AS_LATIN = re.compile("[¡-þ]{4,}")
_FIRST_SYLLABLE, _LAST_SYLLABLE = 0xAC00, 0xD7A3


@dataclasses.dataclass(frozen=True)
class LetterShare:
    """Drops documents with too few letters of a script among their letters.

    A document in Korean about programming holds much Latin, so `least` is small for Korean; `Words` and `StopWords`
    look at what Latin text says. Source for measuring by script: Ko et al. 2023 (Polyglot-Ko), arXiv:2306.02254,
    section 3.1, which keeps documents by their share of Korean; the threshold is ours.

    Attributes:
      script: "hangul" or "latin".
      least: share of the letters; digits and symbols do not count.
    """

    script: str = "hangul"
    least: float = 0.3

    def __post_init__(self):
        share(self, "least")
        if self.script not in _SCRIPTS:
            raise ValueError(f"LetterShare.script is {self.script!r}; it must be one of {', '.join(_SCRIPTS)}")

    def __call__(self, text: str) -> Outcome:
        return Outcome(
            text, f"language: too little {self.script}" if letter_share(text, self.script) < self.least else None
        )


def letter_share(text: str, script: str) -> float:
    """Share of the letters of `text` that are of a script; 0 where there are none."""
    bits = kinds(code_points(text))
    letters = np.count_nonzero(bits & LETTER)
    return np.count_nonzero(bits & _SCRIPTS[script]) / letters if letters else 0.0


@dataclasses.dataclass(frozen=True)
class Mojibake:
    """Drops text that was read in a wrong encoding; it is not repaired, because what it was is a guess.

    Four kinds: characters lost to U+FFFD; UTF-8 read as Latin-1 or Windows-1252 (each character two to four, the first
    in À to ð); EUC-KR read as Latin-1 (runs of four and more in ¡ to þ); UTF-8 read as CP949, whose syllables lie
    mostly outside the 2,350 of KS X 1001, inside which nearly all written Korean lies. The library ftfy knows the
    second kind only.

    Attributes:
      most: share of the characters that may be broken. French or German has none: an accented letter stands between
        plain ones.
      least_places: so many breaks at least; one quoted character is no broken document.
      outside: share of the Hangul syllables that may lie outside KS X 1001.
    """

    most: float = 0.005
    least_places: int = 3
    outside: float = 0.2

    def __post_init__(self):
        share(self, "most", "outside")
        whole(self, 1, "least_places")

    def __call__(self, text: str) -> Outcome:
        if text.isascii():
            return Outcome(text)
        points = code_points(text)
        lost = int(np.count_nonzero(points == _REPLACEMENT))
        broken = self._many(lost, lost, text) or self._as_latin(text, points) or self._as_cp949(text, points)
        return Outcome(text, "mojibake" if broken else None)

    def _many(self, places: int, characters: int, text: str) -> bool:
        return places >= self.least_places and characters > self.most * len(text)

    def _as_latin(self, text: str, points: np.ndarray) -> bool:
        # Both patterns hold such characters, and most documents hold none.
        if np.count_nonzero((points >= 0xA1) & (points <= 0xFE)) < self.least_places:
            return False
        found = [pattern.findall(text) for pattern in (_UTF8_AS_LATIN, _EUC_KR_AS_LATIN)]
        return any(self._many(len(places), sum(map(len, places)), text) for places in found)

    def _as_cp949(self, text: str, points: np.ndarray) -> bool:
        syllables = points[(points >= _FIRST_SYLLABLE) & (points <= _LAST_SYLLABLE)] - _FIRST_SYLLABLE
        outside = len(syllables) - int(np.count_nonzero(_in_ks_x_1001()[syllables]))
        return self._many(outside, outside, text) and outside > self.outside * len(syllables)


@functools.cache
def _in_ks_x_1001() -> np.ndarray:
    """Which of the 11,172 syllables are among the 2,350 that EUC-KR can write."""
    syllables = map(chr, range(_FIRST_SYLLABLE, _LAST_SYLLABLE + 1))
    return np.array([len(syllable.encode("euc-kr", "ignore")) == 2 for syllable in syllables])
