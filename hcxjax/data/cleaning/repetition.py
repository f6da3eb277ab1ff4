"""Gopher's measures of repetition inside a document, over integers so that long documents take linear time."""

import dataclasses
import re
from collections.abc import Iterator, Sequence

import numpy as np

from hcxjax.checks import whole
from hcxjax.data.cleaning.steps import Outcome, share

_FENCED = re.compile(r"^[ \t]*```.*?^[ \t]*```", re.MULTILINE | re.DOTALL)
_TOP = (2, 3, 4)
_REPEATED = (5, 6, 7, 8, 9, 10)


@dataclasses.dataclass(frozen=True)
class Repetition:
    """Drops documents that repeat themselves.

    Source: Rae et al. 2021, arXiv:2112.11446, section A1.1 and table A1, whose thresholds are the defaults. A Korean
    word is an eojeol (어절, what stands between spaces).
    Deviations, said because the paper leaves them open: a repeat is an occurrence after the first, as in FineWeb's
    pipeline, so that a measure is what would go if everything stood once; characters are those of words, spaces left
    out; a most frequent n-gram must occur `least_count` times; short lines, and code between ``` fences, do not count,
    because headings, braces and two versions of an example recur in good documentation.

    Attributes:
      lines: most of the lines that may be repeats.
      paragraphs: the same of paragraphs, which blank lines part.
      line_characters: most of the characters that may stand in repeated lines.
      paragraph_characters: the same of paragraphs.
      top: most of the characters that the most frequent 2-, 3- and 4-gram may cover.
      repeated: most of the characters that repeated 5- to 10-grams may cover, each character once.
      least_count: see above.
      shortest_line: characters of a line that counts.
    """

    lines: float = 0.30
    paragraphs: float = 0.30
    line_characters: float = 0.20
    paragraph_characters: float = 0.20
    top: tuple[float, ...] = (0.20, 0.18, 0.16)
    repeated: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
    least_count: int = 3
    shortest_line: int = 20

    def __post_init__(self):
        share(self, "lines", "paragraphs", "line_characters", "paragraph_characters")
        whole(self, 2, "least_count")
        whole(self, 1, "shortest_line")
        for name, sizes in (("top", _TOP), ("repeated", _REPEATED)):
            limits = getattr(self, name)
            if len(limits) != len(sizes) or not all(0 <= limit <= 1 for limit in limits):
                raise ValueError(f"Repetition.{name} is {limits!r}; it must be {len(sizes)} numbers from 0 to 1")

    def __call__(self, text: str) -> Outcome:
        return Outcome(text, next(self._excesses(text), None))

    def _excesses(self, text: str) -> Iterator[str]:
        """Reasons against `text`, the cheap measures first."""
        if "```" in text:
            text = _FENCED.sub("", text)
        pieces, characters = repeats(text.splitlines(), self.shortest_line)
        if pieces > self.lines or characters > self.line_characters:
            yield "repetition: duplicate lines"
        pieces, characters = repeats(re.split(r"\n\s*\n", text), self.shortest_line)
        if pieces > self.paragraphs or characters > self.paragraph_characters:
            yield "repetition: duplicate paragraphs"
        top, repeated = word_repetition(text.split(), self.least_count)
        if any(share > limit for share, limit in zip(top, self.top, strict=True)):
            yield "repetition: frequent n-gram"
        if any(share > limit for share, limit in zip(repeated, self.repeated, strict=True)):
            yield "repetition: duplicate n-grams"


def repeats(pieces: Sequence[str], shortest: int = 1) -> tuple[float, float]:
    """(share of the pieces, share of their characters) that repeat an earlier one; shorter ones do not count."""
    pieces = [stripped for piece in pieces if len(stripped := piece.strip()) >= shortest]
    if not pieces:
        return 0.0, 0.0
    once = set(pieces)
    characters = sum(map(len, pieces))
    return 1 - len(once) / len(pieces), 1 - sum(map(len, once)) / characters


def word_repetition(words: Sequence[str], least_count: int = 2) -> tuple[list[float], list[float]]:
    """(shares of characters under the most frequent 2- to 4-gram, shares under repeats of 5- to 10-grams).

    An (n + 1)-gram that occurs twice begins with an n-gram that does and ends in a word that does, so only such places
    are looked at again.

    Args:
      least_count: occurrences of a most frequent n-gram; below, its share is 0.
    """
    numbers: dict[str, int] = {}
    ids = np.fromiter((numbers.setdefault(word, len(numbers)) for word in words), np.int64, len(words))
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    ends = np.concatenate([[0], np.cumsum(lengths)])
    top, repeated = [0.0] * len(_TOP), [0.0] * len(_REPEATED)
    again = (np.bincount(ids) > 1)[ids] if len(ids) else ids.astype(bool)
    places = np.flatnonzero(again)
    ranks = ids[places]
    for size in range(2, _REPEATED[-1] + 1):
        fits = places + size <= len(ids)
        places, ranks = places[fits], ranks[fits]
        ends_again = again[places + size - 1]
        places, ranks = places[ends_again], ranks[ends_again]
        # (number of the (n - 1)-gram, its next word) as one integer: no hash, no collision.
        _, ranks, counts = np.unique(
            ranks * len(numbers) + ids[places + size - 1], return_inverse=True, return_counts=True
        )
        if not len(counts):
            break
        several = counts[ranks] > 1
        places, ranks = places[several], ranks[several]
        if not len(places):
            break
        if size in _TOP:
            top[size - _TOP[0]] = _top_share(places, ranks, size, ends) if counts.max() >= least_count else 0.0
        else:
            repeated[size - _REPEATED[0]] = _covered(places[_not_first(ranks)], size, ends)
    return top, repeated


def _top_share(places: np.ndarray, ranks: np.ndarray, size: int, ends: np.ndarray) -> float:
    """Share of the characters that the most frequent n-gram covers; of several as frequent, the longest."""
    counts = np.bincount(ranks)
    characters = np.zeros(len(counts), np.int64)
    characters[ranks] = ends[places + size] - ends[places]
    best = np.lexsort((characters, counts))[-1]
    return _covered(places[ranks == best], size, ends)


def _not_first(ranks: np.ndarray) -> np.ndarray:
    """Where an n-gram stands that has stood before; places are in order."""
    _, first = np.unique(ranks, return_index=True)
    later = np.ones(len(ranks), bool)
    later[first] = False
    return later


def _covered(places: np.ndarray, size: int, ends: np.ndarray) -> float:
    """Share of the characters under n-grams that begin at `places`, each character once."""
    steps = np.zeros(len(ends), np.int64)
    np.add.at(steps, places, 1)
    np.add.at(steps, places + size, -1)
    return float(np.diff(ends)[np.cumsum(steps)[:-1] > 0].sum() / ends[-1])
