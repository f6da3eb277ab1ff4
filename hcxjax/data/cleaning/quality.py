"""Rules on the whole of a document: length, words, symbols, lines. Each threshold is a field, each rule a reason."""

import dataclasses
import re
from collections.abc import Iterator

import numpy as np

from hcxjax.checks import number, whole
from hcxjax.data.cleaning.characters import LETTER, SPACE, WORD, code_points, edges, kinds
from hcxjax.data.cleaning.steps import Outcome, share

_HASHTAG = re.compile(r"(?<=[ \t])#(?=[^\W\d_])")
_ELLIPSIS = re.compile(r"\.\.\.|…")
_BULLET = tuple("•‣▪▶◦●○■□◆◇·ㆍ*-")


@dataclasses.dataclass(frozen=True)
class Length:
    """Drops documents of too few or too many words.

    A Korean word is an eojeol (어절), what stands between spaces: a stem with its particles and endings. The same
    content takes about 0.7 times as many of them as English words, hence a smaller `least` for Korean; and some write
    Korean without spaces, hence `enough`.

    Attributes:
      least: words. Source: Rae et al. 2021, arXiv:2112.11446, table A1: 50.
      most: words. The same table: 100,000.
      enough: characters, at which a document is long enough whatever its words; None for any number of words.
    """

    least: int = 50
    most: int = 100_000
    enough: int | None = None

    def __post_init__(self):
        whole(self, 0, "least")
        whole(self, self.least, "most")
        if self.enough is not None:
            whole(self, 1, "enough")

    def __call__(self, text: str) -> Outcome:
        words = len(text.split(None, self.most + 1))
        if words < self.least and (self.enough is None or len(text) < self.enough):
            return Outcome(text, "length: too few words")
        return Outcome(text, "length: too many words" if words > self.most else None)


@dataclasses.dataclass(frozen=True)
class Words:
    """Drops documents whose words are none: rows of numbers, tables of symbols, strings without spaces.

    Attributes:
      shortest_mean: mean characters of a word. Source: Rae et al. 2021, arXiv:2112.11446, table A1: 3 to 10.
      longest_mean: the same. An eojeol has two to four syllables, so Korean needs a smaller `shortest_mean`; some
        write it without spaces, so it needs a larger `longest_mean`: 1.5 to 25.
      letters: least share of words with a letter in them (a Hangul syllable is one). The same table has 0.8; text
        with tables, sums and code lies between 0.6 and 0.8 and is no worse.
    """

    shortest_mean: float = 3.0
    longest_mean: float = 10.0
    letters: float = 0.6

    def __post_init__(self):
        number(self, "shortest_mean", "longest_mean")
        share(self, "letters")

    def __call__(self, text: str) -> Outcome:
        bits = kinds(code_points(text))
        starts, ends = edges((bits & SPACE) == 0)
        if not len(starts):
            return Outcome(text, "words: none")
        mean = (ends - starts).mean()
        if mean < self.shortest_mean:
            return Outcome(text, "words: too short")
        if mean > self.longest_mean:
            return Outcome(text, "words: too long")
        letters = np.cumsum(np.append(0, (bits & LETTER) != 0))
        lettered = np.count_nonzero(letters[ends] > letters[starts])
        return Outcome(text, "words: too few with letters" if lettered < self.letters * len(starts) else None)


@dataclasses.dataclass(frozen=True)
class Symbols:
    """Drops tag clouds, listings and teasers. Source: Rae et al. 2021, arXiv:2112.11446, table A1.

    Attributes:
      hashes: most hashtags for each word; 0.1 in the table, of hash signs. Those that head a line are Markdown or an
        #include, and # before a digit is a number: they do not count.
      ellipses: most ellipses for each word; 0.1 in the table.
      bullets: most of the lines that begin with a bullet; 0.9 in the table.
      ellipsis_lines: most of the lines that end with an ellipsis; 0.3 in the table.
      least_lines: the two rules on lines look at documents of at least so many; ours, since two lines prove nothing.
    """

    hashes: float = 0.1
    ellipses: float = 0.1
    bullets: float = 0.9
    ellipsis_lines: float = 0.3
    least_lines: int = 5

    def __post_init__(self):
        share(self, "bullets", "ellipsis_lines")
        number(self, "hashes", "ellipses")
        whole(self, 1, "least_lines")

    def __call__(self, text: str) -> Outcome:
        words = len(text.split())
        if len(_HASHTAG.findall(text)) > self.hashes * words:
            return Outcome(text, "symbols: hashtags")
        if len(_ELLIPSIS.findall(text)) > self.ellipses * words:
            return Outcome(text, "symbols: ellipses")
        lines = list(_lines(text))
        if len(lines) < self.least_lines:
            return Outcome(text)
        if sum(line.startswith(_BULLET) for line in lines) > self.bullets * len(lines):
            return Outcome(text, "symbols: bullet lines")
        ends = sum(line.endswith(("...", "…")) for line in lines)
        return Outcome(text, "symbols: ellipsis lines" if ends > self.ellipsis_lines * len(lines) else None)


@dataclasses.dataclass(frozen=True)
class StopWords:
    """Drops documents in which the commonest words of a language are missing.

    Source: Rae et al. 2021, arXiv:2112.11446, table A1: at least two of eight English words. The rule does not carry
    over to Korean, whose grammar is in particles and endings and not in words of their own; `LetterShare` stands in.

    Attributes:
      words: lower case.
      least: different ones of them.
    """

    words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")
    least: int = 2

    def __post_init__(self):
        whole(self, 1, "least")
        if len(set(self.words)) < self.least:
            raise ValueError(f"StopWords.words has {len(set(self.words))}; StopWords.least asks for {self.least}")

    def __call__(self, text: str) -> Outcome:
        found = set(text.lower().split()).intersection(self.words)
        return Outcome(text, "stop words: too few" if len(found) < self.least else None)


@dataclasses.dataclass(frozen=True)
class Lines:
    """Drops minified code, data in one line, and source files that are mostly no text.

    Source: Chen et al. 2021 (Codex), arXiv:2107.03374, section 3.1: mean line over 100, longest over 1,000, or a small
    share of alphanumeric characters, which Li et al. 2023 (StarCoder), arXiv:2305.06161, section 3.2, put at 0.25.
    Prose has no line breaks inside a paragraph: give it a larger `longest`, and no `longest_mean`.

    Attributes:
      longest: characters of a line.
      longest_mean: mean characters of the lines; None for any.
      alphanumeric: least share of letters and digits among all characters.
    """

    longest: int = 1000
    longest_mean: float | None = 100.0
    alphanumeric: float = 0.25

    def __post_init__(self):
        whole(self, 1, "longest")
        share(self, "alphanumeric")
        if self.longest_mean is not None:
            number(self, "longest_mean")

    def __call__(self, text: str) -> Outcome:
        lines = text.splitlines() or [""]
        if max(map(len, lines)) > self.longest:
            return Outcome(text, "lines: one too long")
        if self.longest_mean is not None and sum(map(len, lines)) > self.longest_mean * len(lines):
            return Outcome(text, "lines: too long on average")
        few = np.count_nonzero(kinds(code_points(text)) & WORD) < self.alphanumeric * len(text)
        return Outcome(text, "lines: too few letters and digits" if few else None)


def _lines(text: str) -> Iterator[str]:
    """Lines that are not blank, without the space around them."""
    return (line for raw in text.splitlines() if (line := raw.strip()))
