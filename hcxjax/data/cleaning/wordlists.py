"""Hate, advertising and boilerplate: by lists of phrases, or by a classifier of your own."""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hcxjax.checks import number, whole
from hcxjax.data.cleaning.characters import code_points
from hcxjax.data.cleaning.steps import Outcome, share

_SLOT_BITS = 16
LEXICONS = Path(__file__).with_name("lexicons")


@dataclasses.dataclass(frozen=True)
class Wordlist:
    """Drops documents with many phrases of a list. A crude default: it knows words, not what is said with them.

    A phrase is found at the start of a word, in any case; a Korean one may go on, because particles and endings follow,
    an English one must end there. Both a number and a share are asked for, so that a judgment that quotes an insult and
    an article about spam stay. Source for dropping by a list: Raffel et al. 2020, arXiv:1910.10683, section 2.2, where
    one word is enough; Xu et al. 2021, arXiv:2104.06390, show what that loses of minorities' text.

    Attributes:
      name: of a list of this package, or the path of one of your own: UTF-8, a phrase a line, # begins a comment.
      most: phrases for each word that may stand.
      least: phrases that a document must hold to be dropped.
      reason: what is counted; the list's name unless it is given.
    """

    name: str = "hate"
    most: float = 0.01
    least: int = 3
    reason: str | None = None

    def __post_init__(self):
        share(self, "most")
        whole(self, 1, "least")

    def __call__(self, text: str) -> Outcome:
        found = count_phrases(text, phrases(self.name))
        many = found >= self.least and found > self.most * len(text.split())
        return Outcome(text, (self.reason or Path(self.name).stem) if many else None)

    def contents(self) -> str:
        """sha256 of the list's phrases, which may change under one name. Read once a process."""
        return _contents(self.name)


@dataclasses.dataclass(frozen=True)
class Boilerplate:
    """Drops pages that are mostly menus, notices and calls to sign up.

    Source: Raffel et al. 2020, arXiv:1910.10683, section 2.2, removes lines with such phrases; here the document goes,
    and only where they are much of it, because a line taken out of a text leaves a seam.

    Attributes:
      name: of a list, as `Wordlist.name`.
      most: share of the characters that may stand in lines that hold a phrase.
      least: lines with a phrase; one such line in a short text is no boilerplate.
      longest_line: characters; a longer line is prose that happens to hold a phrase.
    """

    name: str = "boilerplate"
    most: float = 0.3
    least: int = 3
    longest_line: int = 100

    def __post_init__(self):
        share(self, "most")
        whole(self, 1, "longest_line", "least")

    def __call__(self, text: str) -> Outcome:
        known = phrases(self.name)
        lower = text.lower()
        present = _present(lower, known)
        if not present:
            return Outcome(text)
        lines = [line for raw in lower.splitlines() if (line := raw.strip())]
        hits = [line for line in lines if len(line) <= self.longest_line and count_phrases(line, present)]
        much = len(hits) >= self.least and sum(map(len, hits)) > self.most * sum(map(len, lines))
        return Outcome(text, "boilerplate" if much else None)

    def contents(self) -> str:
        """sha256 of the list's phrases, as `Wordlist.contents`."""
        return _contents(self.name)


@dataclasses.dataclass(frozen=True)
class Classified:
    """Drops what a classifier scores too high: the place for a model of hate, advertising or quality.

    Attributes:
      classifier: text → score; a function or a picklable object, named in gin.
      threshold: the score from which a document is dropped.
      reason: what is counted.
    """

    classifier: Callable[[str], float]
    threshold: float
    reason: str

    def __post_init__(self):
        number(self, "threshold")
        if not callable(self.classifier):
            raise ValueError(
                f"Classified.classifier is {self.classifier!r}; it must be a function from text to a score"
            )

    def __call__(self, text: str) -> Outcome:
        return Outcome(text, self.reason if self.classifier(text) >= self.threshold else None)


@functools.cache
def phrases(name: str) -> tuple[str, ...]:
    """The phrases of a list, in lower case.

    Raises:
      ValueError: there is no such list, or nothing in it.
    """
    path = LEXICONS / f"{name}.txt" if re.fullmatch(r"\w+", name) else Path(name).expanduser()
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in LEXICONS.glob("*.txt")))
        raise ValueError(f"Wordlist.name is {name!r}; it must be one of {known}, or the path of a list")
    lines = (line.partition("#")[0].strip().lower() for line in path.read_text(encoding="utf-8").splitlines())
    if not (found := tuple(dict.fromkeys(line for line in lines if line))):
        raise ValueError(f"Wordlist.name is {name!r}; the list is empty")
    return found


@functools.cache
def _contents(name: str) -> str:
    return hashlib.sha256("\n".join(phrases(name)).encode()).hexdigest()


def count_phrases(text: str, known: tuple[str, ...]) -> int:
    """Phrases of `known`, in lower case, that stand in `text` at the start of a word."""
    lower = text.lower()
    present = _present(lower, known)
    return len(_pattern(present).findall(lower)) if present else 0


def _present(lower: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `known` that stand anywhere in `lower`: mostly none, and an alternation takes its time to say so."""
    if len(known) > 8:
        table, first, short = _beginnings(known)
        keys = _triples(code_points(lower))
        hits = keys[table[_slot(keys)]]
        known = short + tuple(phrase for key in set(hits.tolist()) for phrase in first.get(key, ()))
    return tuple(sorted(phrase for phrase in known if phrase in lower))


@functools.cache
def _beginnings(known: tuple[str, ...]) -> tuple[np.ndarray, dict[int, tuple[str, ...]], tuple[str, ...]]:
    """(slots that a phrase begins in, first three characters → phrases, phrases that are shorter)."""
    table = np.zeros(1 << _SLOT_BITS, bool)
    first: dict[int, tuple[str, ...]] = {}
    for phrase in known:
        if len(phrase) >= 3:
            key = _triples(code_points(phrase[:3]))
            table[_slot(key)] = True
            first[int(key[0])] = (*first.get(int(key[0]), ()), phrase)
    return table, first, tuple(phrase for phrase in known if len(phrase) < 3)


def _triples(points: np.ndarray) -> np.ndarray:
    """Every three characters in a row as one uint64: 21 bits each."""
    wide = points.astype(np.uint64)
    return wide[:-2] | wide[1:-1] << np.uint64(21) | wide[2:] << np.uint64(42) if len(wide) > 2 else wide[:0]


def _slot(keys: np.ndarray) -> np.ndarray:
    return (keys * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - _SLOT_BITS)


@functools.lru_cache(maxsize=256)
def _pattern(known: tuple[str, ...]) -> re.Pattern[str]:
    """The longest phrase wins; only a phrase that ends in a Latin letter or digit must end the word."""
    ordered = sorted(known, key=len, reverse=True)
    ends = (re.escape(phrase) + (r"(?![a-z0-9])" if re.search(r"[a-z0-9]$", phrase) else "") for phrase in ordered)
    return re.compile(rf"(?<![a-z0-9가-힣])(?:{'|'.join(ends)})")
