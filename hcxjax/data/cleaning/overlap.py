"""Documents that hold questions of the evaluation sets are dropped, so that what is measured was not read before."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from hcxjax.checks import whole
from hcxjax.data.cleaning.characters import HANGUL, LETTER, WORD, code_points, edges, folded, kinds
from hcxjax.data.cleaning.evaluation_sets import evaluation_fields, fingerprint_of
from hcxjax.data.cleaning.steps import Outcome
from hcxjax.data.cleaning.windows import window_hashes, word_hashes

_KOREAN = 0.3
"""Share of Hangul from which a field is taken as Korean."""
_LETTERS = 3
"""Letters of a word that tells something."""
_END = "\0"
_FILTER_BITS = 26


@dataclasses.dataclass(frozen=True)
class BenchmarkOverlap:
    """Drops documents that share windows of text with evaluation sets.

    Source: Brown et al. 2020 (GPT-3), arXiv:2005.14165, appendix C: 13-grams of words, in lower case, punctuation
    left out. Korean has windows of characters, spacing left out, since spacing varies; 30 of them are about 9 eojeol.
    Both kinds lie dense, one at every word or character, so that n in a row are n - 1 words or characters more than one
    window. A field shorter than a window is too short to tell from ordinary text, and is not looked for; nor is a
    window of words of which most are numbers or letters: 0 1 2 3 ... stands in every exam and in every program.

    Deviation: GPT-3 cuts the match and 200 characters around it out of a document; here the document goes, as the
    pieces would stand without their context.

    Attributes:
      paths: files and folders of evaluation sets: csv, tsv, json, jsonl, txt, with .gz or in .tar.gz. Nothing is looked
        for where there is none.
      words: of a window, in fields that are not Korean.
      characters: letters and digits of a window, in Korean fields.
      min_words: different windows of words from which a document is dropped.
      min_characters: different windows of characters from which a document is dropped. Fewer are mostly a statute or a
        proverb that an exam quotes (docs/data.md has counts); more miss questions of less than 49 letters, as 20 do.
      left_out: fields that are not read: passages come from Wikipedia and the news, which are no leak without the
        question (GPT-3 found over 90 % of the reading comprehension sets in its text for that reason).

    The windows are read when the step is first called, once a process, 8 bytes each and 8 MiB for a filter.
    """

    paths: tuple[str, ...] = ()
    words: int = 13
    characters: int = 30
    min_words: int = 4
    min_characters: int = 20
    left_out: tuple[str, ...] = ("context", "passage", "paragraph")

    def __post_init__(self):
        whole(self, 1, "words", "characters", "min_words", "min_characters")
        if isinstance(self.paths, str):
            raise ValueError(f"BenchmarkOverlap.paths is {self.paths!r}; it must be a tuple of paths, as in ('bench',)")

    def __call__(self, text: str) -> Outcome:
        by_words, by_characters = self.windows_held(text) if self.paths else (0, 0)
        overlaps = by_words >= self.min_words or by_characters >= self.min_characters
        return Outcome(text, "benchmark overlap" if overlaps else None)

    def contents(self) -> str:
        """sha256 over the names and bytes of the evaluation files; "" without paths. Read once a process.

        Raises:
          ValueError: a path does not exist or cannot be read.
        """
        return _contents(tuple(self.paths)) if self.paths else ""

    def windows_held(self, text: str) -> tuple[int, int]:
        """How many different windows of words and of characters `text` shares with the evaluation sets."""
        by_words, by_characters = _known(tuple(self.paths), self.words, self.characters, tuple(self.left_out))
        points = code_points(folded(text))
        bits = kinds(points)
        inside = (bits & WORD) != 0
        held = by_words.count(window_hashes(word_hashes(points, inside), self.words))
        if not (bits & HANGUL).any():
            return held, 0  # no window of a Korean field: most code, most English
        return held, by_characters.count(window_hashes(points[inside], self.characters))


class _Known:
    """A sorted set of hashes behind a table of bits, which answers most questions with one look."""

    def __init__(self, parts: Sequence[np.ndarray]):
        self.hashes = hashes = np.unique(np.concatenate(parts))
        self.filter = np.zeros(1 << (_FILTER_BITS - 3), np.uint8)
        np.bitwise_or.at(self.filter, *_bit(hashes))

    def count(self, hashes: np.ndarray) -> int:
        """How many different ones of `hashes` are in the set."""
        place, bit = _bit(hashes)
        maybe = np.unique(hashes[(self.filter[place] & bit) != 0])
        at = np.searchsorted(self.hashes, maybe)
        inside = at < len(self.hashes)
        return int(np.count_nonzero(self.hashes[at[inside]] == maybe[inside]))


def _bit(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(byte of the filter, bit in it) of each hash."""
    top = hashes >> np.uint64(64 - _FILTER_BITS)
    return (top >> np.uint64(3)).astype(np.int64), np.uint8(1) << (top & np.uint64(7)).astype(np.uint8)


@functools.cache
def _contents(paths: tuple[str, ...]) -> str:
    return fingerprint_of(paths)


@functools.lru_cache(maxsize=4)
def _known(paths: tuple[str, ...], size: int, characters: int, left_out: tuple[str, ...]) -> tuple[_Known, _Known]:
    """The windows of words and of characters of all fields."""
    by_words, by_characters = [], []
    fields = dict.fromkeys(evaluation_fields(paths, [name.lower() for name in left_out]))
    for block in _blocks(fields):
        some_words, some_characters = _field_windows(block, size, characters)
        by_words.append(np.unique(some_words))
        by_characters.append(np.unique(some_characters))
    return _Known(by_words), _Known(by_characters)


def _blocks(fields: Iterable[str]) -> Iterator[str]:
    """Fields, each with an end, some hundred thousand characters at a time: one by one they take a minute."""
    block, size = [], 0
    for field in fields:
        block.append(folded(field).replace(_END, " ") + _END)
        size += len(field)
        if size > 1 << 19:
            yield "".join(block)
            block, size = [], 0
    yield "".join(block)


def _field_windows(block: str, size: int, characters: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows of words of fields that are not Korean, and of characters of those that are; none spans two fields."""
    points = code_points(block)
    bits = kinds(points)
    field = np.cumsum(points == ord(_END)) - (points == ord(_END))
    count = int(field[-1]) + 1 if len(field) else 0
    hangul = np.bincount(field[(bits & HANGUL) != 0], minlength=count)
    korean = hangul >= _KOREAN * np.maximum(1, np.bincount(field[(bits & LETTER) != 0], minlength=count))
    inside = (bits & WORD) != 0
    starts, ends = edges(inside)
    by_words = window_hashes(word_hashes(points, inside), size)
    letters = np.cumsum(np.append(0, (bits & LETTER) != 0))
    telling = np.cumsum(np.append(0, letters[ends] - letters[starts] >= _LETTERS))
    told = (telling[size:] - telling[: max(0, len(telling) - size)])[: len(by_words)] * 2 > size
    return (
        _within(by_words, field[starts], ~korean, size, told),
        _within(window_hashes(points[inside], characters), field[inside], korean, characters),
    )


def _within(
    hashes: np.ndarray, field: np.ndarray, wanted: np.ndarray, size: int, told: np.ndarray | bool = True
) -> np.ndarray:
    """Those hashes that are `told` and whose window lies in one `wanted` field; `field` is that of each value."""
    first, last = field[: len(hashes)], field[size - 1 :]
    return hashes[(first == last) & wanted[first] & told]
