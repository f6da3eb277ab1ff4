"""Text as the units that a vocabulary is learnt in: no merge runs across their edges.

A *run* is a Hangul word, a digit, whitespace, or anything else between spaces; it keeps the space before it. A *word*
is a part of a run: letters with the mark before them, marks with the line break and indentation after them.
"""

import re
from collections.abc import Mapping

_LETTER = r"[^\W\d_가-힣]"
_MARK = r"(?:[^\w\s]|_)"
_REST = rf"(?:{_MARK}|{_LETTER})+(?:(?<={_MARK})[\r\n]+[ \t]*)?"
# Runs of whitespace are taken whole, as encoding merges them; only a single space belongs to what follows it.
_RUN = re.compile(rf" ?[가-힣]+|\d| ?{_REST}|[\r\n]+[ \t]*|[ \t]+|\s")
_WORD = re.compile(
    rf" ?[가-힣]+| {_LETTER}+|{_MARK}?{_LETTER}+|\d| ?{_MARK}+(?:[\r\n]+[ \t]*)?|[\r\n]+[ \t]*|[ \t]+|\s"
)
_HANGUL = re.compile("( ?)([가-힣]{2,})")
LETTERS = re.compile(r" ?[^\W\d_]+")
"""A run of letters alone, of any script."""


def runs(text: str) -> list[str]:
    """The runs of `text`; joined they are `text`."""
    return _RUN.findall(text)


def words(run: str) -> list[str]:
    """The words of a run; joined they are the run."""
    return _WORD.findall(run)


def hangul(run: str) -> str | None:
    """The Hangul word of two syllables or more that `run` is, without its space; None for any other run."""
    found = _HANGUL.fullmatch(run)
    return found[2] if found else None


def parts(run: str, morphemes: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The units of a run: its morphemes where they are known, else its words.

    Args:
      morphemes: Hangul word → its morphemes.
    """
    word = hangul(run)
    if word is None or word not in morphemes:
        return words(run)
    first, *rest = morphemes[word]
    return [run[: len(run) - len(word)] + first, *rest]
