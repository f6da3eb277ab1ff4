"""What a cleaning step is: a pure function from a document to what remains of it, or to the reason why nothing does."""

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol, runtime_checkable


class Outcome(NamedTuple):
    """What became of a document.

    Attributes:
      text: what remains of it; of a dropped document, what the step that dropped it was given.
      dropped: why it was dropped: a fixed phrase that names the rule, never the measured value, so that it can be
        counted. None keeps the document.
      changes: what was changed → how often, as in {"e-mail": 2}.
    """

    text: str
    dropped: str | None = None
    changes: Mapping[str, int] = MappingProxyType({})


class Step(Protocol):
    """A frozen dataclass of thresholds: pure, picklable, named in gin, and free of arrays until it is called."""

    def __call__(self, text: str) -> Outcome: ...


@runtime_checkable
class Holding(Protocol):
    """A step that depends on files: the same settings clean otherwise when their contents change."""

    def contents(self) -> str:
        """A digest of them. ValueError where they are not here."""
        ...


def clean(steps: Sequence[Step], text: str) -> Outcome:
    """The steps in order, up to the first that drops the document; their changes are added up."""
    changes: Counter[str] = Counter()
    for step in steps:
        outcome = step(text)
        changes.update(outcome.changes)
        text = outcome.text
        if outcome.dropped is not None:
            return Outcome(text, outcome.dropped, dict(changes))
    return Outcome(text, None, dict(changes))


def share(owner: object, *fields: str) -> None:
    """ValueError unless each of the owner's `fields` is a share, from 0 to 1."""
    for name in fields:
        value = getattr(owner, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(f"{type(owner).__name__}.{name} is {value!r}; it must be a number from 0 to 1")
