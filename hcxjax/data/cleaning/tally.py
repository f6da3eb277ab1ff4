"""What cleaning did, in counts that add up over parts, processes and machines, with a few examples of each reason."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from hcxjax.data.cleaning.steps import Outcome

EXCERPT = 160
"""Characters of an example."""

_COUNTS = ("documents", "kept", "bytes_in", "bytes_out", "tokens")
_COUNTERS = ("dropped", "dropped_bytes", "changed", "changed_documents")


class Place(NamedTuple):
    """Where a document stands: record `record` of part `part` of a source. Places sort in reading order."""

    source: str
    part: int
    record: int

    def __str__(self) -> str:
        return f"{self.source}:{self.part}:{self.record}"


class Example(NamedTuple):
    """A document that was dropped or changed; `excerpt` never shows what was masked."""

    place: Place
    excerpt: str


@dataclasses.dataclass
class Tally:
    """Counts of one source or of a part of it; `+` is associative and commutative: any order of parts gives the same.

    Attributes:
      most_examples: kept of each reason; the first in the order of their places.
      documents: that came in, kept or not.
      kept: that came out.
      bytes_in: UTF-8 bytes of the documents that came in.
      bytes_out: of what came out.
      tokens: of what came out; the caller's to fill in.
      dropped: documents by reason.
      dropped_bytes: their bytes by reason.
      changed: changes by kind, in kept documents.
      changed_documents: kept documents by kind of change.
      examples: reason or kind → documents.
    """

    most_examples: int = 5
    documents: int = 0
    kept: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    tokens: int = 0
    dropped: Counter[str] = dataclasses.field(default_factory=Counter)
    dropped_bytes: Counter[str] = dataclasses.field(default_factory=Counter)
    changed: Counter[str] = dataclasses.field(default_factory=Counter)
    changed_documents: Counter[str] = dataclasses.field(default_factory=Counter)
    examples: dict[str, list[Example]] = dataclasses.field(default_factory=dict)

    def add(self, text: str, outcome: Outcome, place: Place) -> None:
        """Counts one document: `text` as it came in, and what became of it."""
        size = len(text.encode())
        self.documents += 1
        self.bytes_in += size
        if outcome.dropped is not None:
            self._drop(outcome.dropped, size, place, text)
            return
        self.kept += 1
        self.bytes_out += size if outcome.text == text else len(outcome.text.encode())
        for kind, times in outcome.changes.items():
            self.changed[kind] += times
            self.changed_documents[kind] += 1
            if self._wanted(kind, place):
                self._show(kind, place, _around_change(text, outcome.text))

    def add_unread(self, reason: str, place: Place, documents: int = 1) -> None:
        """Counts documents that no text came of, such as broken records; they came in and were dropped."""
        self.documents += documents
        self.dropped[reason] += documents
        self._show(reason, place, "")

    def drop_kept(self, reason: str, place: Place, text: str) -> None:
        """Takes back a document that was counted as kept, such as a duplicate, known only once all were read."""
        size = len(text.encode())
        self.kept -= 1
        self.bytes_out -= size
        self._drop(reason, size, place, text)

    def _drop(self, reason: str, size: int, place: Place, text: str) -> None:
        self.dropped[reason] += 1
        self.dropped_bytes[reason] += size
        if self._wanted(reason, place):
            self._show(reason, place, " ".join(text[: 4 * EXCERPT].split())[:EXCERPT])

    def _wanted(self, reason: str, place: Place) -> bool:
        shown = self.examples.get(reason, [])
        return len(shown) < self.most_examples or place < shown[-1].place

    def _show(self, reason: str, place: Place, excerpt: str) -> None:
        shown = sorted([*self.examples.get(reason, []), Example(place, excerpt)])
        if kept := shown[: self.most_examples]:
            self.examples[reason] = kept

    def __add__(self, other: "Tally") -> "Tally":
        if self.most_examples != other.most_examples:
            raise ValueError(
                f"Tally.most_examples is {self.most_examples} of one and {other.most_examples} of the other"
            )
        total = Tally(self.most_examples)
        for name in _COUNTS + _COUNTERS:
            setattr(total, name, getattr(self, name) + getattr(other, name))
        for part in (self, other):
            for reason, shown in part.examples.items():
                for example in shown:
                    total._show(reason, *example)
        return total

    def to_json(self) -> dict[str, Any]:
        """Plain values, in an order that depends on the counts alone."""
        plain: dict[str, Any] = {name: getattr(self, name) for name in ("most_examples", *_COUNTS)}
        plain |= {name: dict(sorted(getattr(self, name).items())) for name in _COUNTERS}
        shown = {reason: [[*place, text] for place, text in some] for reason, some in sorted(self.examples.items())}
        return plain | {"examples": shown}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Tally":
        """The tally that `to_json` wrote."""
        names = ("most_examples", *_COUNTS)
        examples = {
            reason: [Example(Place(source, part, record), text) for source, part, record, text in some]
            for reason, some in plain["examples"].items()
        }
        fields: dict[str, Any] = {name: plain[name] for name in names}
        fields |= {name: Counter(plain[name]) for name in _COUNTERS}
        return cls(**fields, examples=examples)


def total(tallies: Iterable[Tally]) -> Tally:
    """Their sum; an empty tally of none."""
    tallies = list(tallies)
    return functools.reduce(Tally.__add__, tallies) if tallies else Tally()


def _around_change(before: str, after: str) -> str:
    """What stands around the first change, taken from the changed text: it shows the mask, not what it hides."""
    at = next((place for place, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), len(after))
    return " ".join(after[max(0, at - EXCERPT // 2) : at + EXCERPT // 2].split())
