"""What a model really sees: rows of a source taken apart into documents again, and counted."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from hcxjax.data.mixing import Balance, shares
from hcxjax.data.packed import PackedTokens
from hcxjax.text.infilling import SENTINELS
from hcxjax.text.vocabulary import Vocabulary

_ROWS_AT_ONCE = 64  # a window of long rows need not fit into memory


@dataclasses.dataclass(frozen=True)
class Seen:
    """A document, or a part of one, as it stands in a row.

    Attributes:
      source: number of its source.
      start, stop: its positions in the row.
      tokens: its ids in the order in which they are predicted, sentinels among them; no end of text.
      begins, ends: whether its first and its last token are the document's own.
      order: in which it is fed: "" as it reads, else "prefix first" or "suffix first".
    """

    source: int
    start: int
    stop: int
    tokens: np.ndarray
    begins: bool
    ends: bool
    order: str

    @property
    def length(self) -> int:
        """Tokens of its text: sentinels are not counted."""
        return len(self.tokens) - SENTINELS * bool(self.order)

    @property
    def whole(self) -> bool:
        """Whether the row holds all of the document."""
        return self.begins and self.ends


def taken_apart(rows: Mapping[str, np.ndarray], vocabulary: Vocabulary) -> list[list[Seen]]:
    """The documents of each row.

    Args:
      rows: host arrays as `PackedTokens.rows` gives them.
      vocabulary: which ids mark a document's ends and an infilled document's thirds.
    """
    found = []
    for number, segments in enumerate(rows["segment_ids_BT"]):
        starts = np.flatnonzero(np.diff(segments, prepend=0))
        stops = np.append(starts, len(segments))[1:]  # none of a row that is all padding
        tokens, targets = rows["tokens_BT"][number], rows["targets_BT"][number]
        found.append(
            [
                _seen(int(rows["source_B"][number]), int(start), int(stop), tokens, targets, vocabulary)
                for start, stop in zip(starts, stops, strict=True)
                if segments[start]
            ]
        )
    return found


def _seen(source: int, start: int, stop: int, tokens: np.ndarray, targets: np.ndarray, vocabulary: Vocabulary) -> Seen:
    # Targets are the stream without its first token, which belongs to the row before or is the end of text.
    ends = bool(targets[stop - 1] == vocabulary.end_of_text)
    body = targets[start : stop - ends]
    order = ""
    if len(body) and body[0] == vocabulary.fim_prefix:
        order = "suffix first" if body[1] == vocabulary.fim_suffix else "prefix first"
    return Seen(source, start, stop, body, bool(tokens[start] == vocabulary.end_of_text), ends, order)


class Run(NamedTuple):
    """A stretch of a document's text, or one special: then `text` is empty."""

    special: str
    text: str


def runs(tokens: np.ndarray, vocabulary: Vocabulary) -> Iterator[Run]:
    """Text and specials in turn. A text that merely spells a special stays text."""
    names = {token: name.strip("<|>").removeprefix("fim_") for name, token in vocabulary.specials.items()}
    waiting: list[int] = []
    for token in tokens.tolist():
        if token in names:
            if waiting:
                yield Run("", vocabulary.decode(waiting))
            waiting = []
            yield Run(names[token], "")
        else:
            waiting.append(token)
    if waiting:
        yield Run("", vocabulary.decode(waiting))


@dataclasses.dataclass(frozen=True)
class Summary:
    """Counts over a window of rows.

    Attributes:
      rows, length: what was looked at: rows, and the positions of each.
      configured: name of a source → the share of the tokens that its rate asks for; in the order of numbers.
      tokens: positions that hold something, by number of the source.
      lengths: tokens of each document or part, sentinels not counted.
      sources: the number of its source.
      whole: whether it is a whole document.
      orders: "", "prefix first" or "suffix first".
      trained: share of the positions that have a weight.
    """

    rows: int
    length: int
    configured: Mapping[str, float]
    tokens: np.ndarray
    lengths: np.ndarray
    sources: np.ndarray
    whole: np.ndarray
    orders: np.ndarray
    trained: float

    @property
    def padding(self) -> float:
        """Share of the positions that hold nothing."""
        return 1 - float(self.tokens.sum()) / (self.rows * self.length)

    @property
    def shares(self) -> dict[str, float]:
        """Each source's share of the tokens."""
        return dict(zip(self.configured, (self.tokens / max(1, self.tokens.sum())).tolist(), strict=True))

    def infilled(self, min_tokens: int = 0) -> float:
        """Share of the documents and parts of at least `min_tokens` that are fed out of order; 0 if there is none."""
        chosen = self.orders[self.lengths >= min_tokens]
        return float((chosen != "").mean()) if len(chosen) else 0.0


def summary(source: PackedTokens, vocabulary: Vocabulary, start: int, stop: int) -> Summary:
    """Counts over rows start..stop-1 of a started source."""
    configured = _configured(source)
    tokens, trained = np.zeros(len(configured), np.int64), 0
    columns: dict[str, list] = collections.defaultdict(list)
    for first in range(start, stop, _ROWS_AT_ONCE):
        rows = source.rows(first, min(stop, first + _ROWS_AT_ONCE))
        np.add.at(tokens, rows["source_B"], (rows["segment_ids_BT"] > 0).sum(axis=1))
        trained += int((rows["weights_BT"] > 0).sum())
        for piece in (piece for row in taken_apart(rows, vocabulary) for piece in row):
            columns["lengths"].append(piece.length)
            columns["sources"].append(piece.source)
            columns["whole"].append(piece.whole)
            columns["orders"].append(piece.order)
    kinds = {"lengths": np.int64, "sources": np.int64, "whole": bool, "orders": "U12"}
    arrays = {name: np.array(columns[name], kind) for name, kind in kinds.items()}
    return Summary(
        stop - start, source.length, configured, tokens, trained=trained / (stop - start) / source.length, **arrays
    )


def _configured(source: PackedTokens) -> dict[str, float]:
    rates = source.rates
    if isinstance(rates, Balance):
        rates = rates.rates({name: store.manifest["tokens"] for name, store in source.corpus.stores("train").items()})
    return {name: float(share) for name, share in shares(rates, source.corpus.names).items()}
