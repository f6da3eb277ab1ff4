"""Documents of known lengths laid into rows of one length with next to no padding, and the arrays of a row.

A document of n tokens is the stream s = [EOT, t_1, ..., t_n, EOT]; its inputs are s[:-1] and its targets s[1:], so it
takes n + 1 positions and each of its tokens is predicted exactly once an epoch. A document that is longer than what is
left of a row goes on in the next one; the first input there is the token before.

An infilled piece takes `SENTINELS` positions more. Each epoch is packed anew, in another order of the documents and
with other pieces infilled, so rows are full in every epoch and a document meets other cuts and other neighbours.
"""

import dataclasses
import functools
import itertools
import threading
from typing import NamedTuple, Protocol

import numpy as np

from hcxjax.data.hashing import drawn, shuffled
from hcxjax.data.mixing import permuted
from hcxjax.text.infilling import SENTINELS, Sentinels, infill, thirds
from hcxjax.text.vocabulary import Vocabulary

MIN_PIECE = 8
"""Positions below which the start of a document waits for the next row: a piece of a few tokens teaches nothing."""
_ORDER = 1  # tells this draw from the one that decides whether a piece is infilled


class Piece(NamedTuple):
    """Targets start..stop-1 of a document's stream; `last` where the closing EOT is among them."""

    document: int
    start: int
    stop: int
    last: bool
    infilled: bool


@dataclasses.dataclass(frozen=True)
class Infilling:
    """How much is fed out of order.

    Attributes:
      rate: share of the pieces with at least `min_tokens` tokens that are infilled. Source: Bavarian et al. 2022,
        arXiv:2207.14255, who find 0.5 to 0.9 to cost nothing; HyperCLOVA X does not disclose it, so it is a choice.
      suffix_first_share: share of those in joint SPM order, the rest are PSM.
      min_tokens: shorter pieces are never infilled.
    """

    rate: float = 0.5
    suffix_first_share: float = 0.5
    min_tokens: int = 24

    def check(self) -> None:
        """ValueError unless the settings make sense."""
        for name in ("rate", "suffix_first_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Infilling.{name} is {getattr(self, name)}; it must lie in [0, 1]")
        if self.min_tokens < 3:
            raise ValueError(f"Infilling.min_tokens is {self.min_tokens}; thirds need at least 3")


class Documents(Protocol):
    """What a row is read from; a `TokenStore` is one."""

    def tokens(self, document: int) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Plan:
    """Rows of pieces.

    Attributes:
      length: positions of a row.
      pieces: int64 of shape (pieces, 5): document, start, stop, last, infilled.
      row_starts: first piece of each row, and the number of pieces at the end; int64 of shape (rows + 1,).
    """

    length: int
    pieces: np.ndarray
    row_starts: np.ndarray

    @property
    def rows(self) -> int:
        """Rows of one epoch."""
        return len(self.row_starts) - 1

    def row(self, number: int) -> list[Piece]:
        """The pieces of one row, in order."""
        span = self.pieces[self.row_starts[number] : self.row_starts[number + 1]]
        return [Piece(*piece[:3], *map(bool, piece[3:])) for piece in span.tolist()]

    @property
    def padding(self) -> float:
        """Share of positions that hold nothing."""
        used = (self.pieces[:, 2] - self.pieces[:, 1]).sum() + SENTINELS * self.pieces[:, 4].sum()
        return 1 - int(used) / (self.rows * self.length)


def pack(
    lengths: np.ndarray, length: int, infilling: Infilling, key: tuple[int, ...], order: np.ndarray | None = None
) -> Plan:
    """A plan that holds each document once.

    Args:
      lengths: tokens of each document.
      length: positions of a row.
      key: decides which pieces are infilled.
      order: of the documents; None is as they come.
    Raises:
      ValueError: rows are too short to hold anything.
    """
    infilling.check()
    if length < 2 * MIN_PIECE:
        raise ValueError(f"LENGTH is {length}; rows of packed documents need at least {2 * MIN_PIECE} positions")
    pieces: list[Piece] = []
    row_starts, left = [], 0
    ordered = np.arange(len(lengths)) if order is None else order
    for document, tokens in zip(ordered.tolist(), lengths[ordered].tolist(), strict=True):
        start, end = 0, tokens + 1
        while start < end:
            if left < min(MIN_PIECE, end - start):
                row_starts.append(len(pieces))
                left = length
            infilled, reserved = False, min(end, start + left - SENTINELS)
            if reserved - start - (reserved == end) >= infilling.min_tokens:
                infilled = drawn(infilling.rate, *key, document, start)
            stop = reserved if infilled else min(end, start + left)
            pieces.append(Piece(document, start, stop, stop == end, infilled))
            left -= stop - start + SENTINELS * infilled
            start = stop
    starts = np.array([*row_starts, len(pieces)], np.int64)
    return Plan(length, np.array(pieces, np.int64).reshape(-1, len(Piece._fields)), starts)


class Epochs:
    """Plans of one epoch after another, each in an order and with choices of its own; a function of the key alone.

    Args:
      lengths, length, infilling: as `pack` has them.
      key: seed and source.
    """

    def __init__(self, lengths: np.ndarray, length: int, infilling: Infilling, key: tuple[int, ...]):
        self._lengths, self._length, self._infilling, self._key = lengths, length, infilling, key
        self._rows: list[int] = []
        self._lock = threading.Lock()
        self._plan = functools.lru_cache(maxsize=2)(self._packed)  # at a batch that spans two epochs
        self.locate(0)

    def locate(self, number: int) -> tuple[int, int, Plan]:
        """(epoch, row within it, its plan) of the `number`-th row that is read."""
        with self._lock:
            for epoch in itertools.count():
                if epoch == len(self._rows):
                    self._rows.append(self._plan(epoch).rows)
                if number < self._rows[epoch]:
                    return epoch, permuted(number, self._rows[epoch], *self._key, epoch), self._plan(epoch)
                number -= self._rows[epoch]
        raise AssertionError("unreachable")

    def _packed(self, epoch: int) -> Plan:
        order = shuffled(len(self._lengths), *self._key, epoch)
        return pack(self._lengths, self._length, self._infilling, (*self._key, epoch), order)


@dataclasses.dataclass(frozen=True)
class RowBuilder:
    """The arrays of rows.

    Attributes:
      documents: their tokens.
      vocabulary: ids of padding, end of text and sentinels, and where characters start.
      suffix_first_share: share of infilled pieces in joint SPM order.
    """

    documents: Documents
    vocabulary: Vocabulary
    suffix_first_share: float

    def build(self, pieces: list[Piece], length: int, key: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Arrays of one row, without a batch axis.

        Args:
          pieces: what the row holds.
          length: its positions.
          key: seed, source and epoch: decides the order in which infilled pieces are fed.
        Returns: tokens, targets, segment_ids, positions (int32) and weights (float32).
        """
        arrays = empty_row(length, self.vocabulary.pad)
        at = 0
        for number, piece in enumerate(pieces):
            stream = self._stream(piece, key)
            to = at + len(stream) - 1
            arrays["tokens"][at:to] = stream[:-1]
            arrays["targets"][at:to] = stream[1:]
            arrays["weights"][at:to] = 1
            arrays["segment_ids"][at:to] = number + 1
            arrays["positions"][at:to] = np.arange(to - at)
            at = to
        return arrays

    def _stream(self, piece: Piece, key: tuple[int, ...]) -> np.ndarray:
        """The piece with the token before it: one longer than its positions."""
        tokens = self.documents.tokens(piece.document)
        end_of_text = np.array([self.vocabulary.end_of_text], np.int32)
        before = tokens[piece.start - 1 : piece.start] if piece.start else end_of_text
        text = tokens[piece.start : piece.stop - piece.last]
        if piece.infilled:
            cuts = thirds(self.vocabulary.starts_character(text))
            sentinels = Sentinels(self.vocabulary.fim_prefix, self.vocabulary.fim_middle, self.vocabulary.fim_suffix)
            spm = drawn(self.suffix_first_share, *key, piece.document, piece.start, _ORDER)
            text = infill(text, cuts, sentinels, suffix_first=spm)
        return np.concatenate([before, text, end_of_text[: piece.last]])


def empty_row(length: int, pad: int) -> dict[str, np.ndarray]:
    """Arrays of a row that is all padding."""
    return {
        "tokens": np.full(length, pad, np.int32),
        "targets": np.full(length, pad, np.int32),
        "weights": np.zeros(length, np.float32),
        "segment_ids": np.zeros(length, np.int32),
        "positions": np.zeros(length, np.int32),
    }
