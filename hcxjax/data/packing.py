"""Documents of known lengths laid into rows of one length with next to no padding, and the arrays of a row.

A document of n tokens is the stream s = [EOT, t_1, ..., t_n, EOT]; its inputs are s[:-1] and its targets s[1:], so it
takes n + 1 positions and each of its tokens is predicted exactly once an epoch. A document that is longer than what is
left of a row goes on in the next one; the first input there is the token before.

An infilled piece takes `SENTINELS` positions more. Which pieces are infilled differs by epoch, but how many in a row
does not: the plan reserves their positions, so rows are full in every epoch.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

from hcxjax.data.hashing import drawn, mixed
from hcxjax.text.infilling import SENTINELS, Sentinels, infill, thirds
from hcxjax.text.vocabulary import Vocabulary

MIN_PIECE = 8
"""Positions below which the start of a document waits for the next row: a piece of a few tokens teaches nothing."""


class Piece(NamedTuple):
    """Targets start..stop-1 of a document's stream; `last` where the closing EOT is among them."""

    document: int
    start: int
    stop: int
    last: bool


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

    lengths: np.ndarray

    def tokens(self, document: int) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Plan:
    """Rows of pieces.

    Attributes:
      length: positions of a row.
      pieces: int64 of shape (pieces, 4): document, start, stop, last.
      row_starts: first piece of each row, and the number of pieces at the end; int64 of shape (rows + 1,).
      infilled: pieces to infill in each row; int32.
      min_tokens: `Infilling.min_tokens` of the plan.
    """

    length: int
    pieces: np.ndarray
    row_starts: np.ndarray
    infilled: np.ndarray
    min_tokens: int

    @property
    def rows(self) -> int:
        """Rows of one epoch."""
        return len(self.infilled)

    def row(self, number: int) -> list[Piece]:
        """The pieces of one row, in order."""
        span = self.pieces[self.row_starts[number] : self.row_starts[number + 1]]
        return [Piece(document, start, stop, bool(last)) for document, start, stop, last in span.tolist()]

    @property
    def padding(self) -> float:
        """Share of positions that hold nothing."""
        used = int((self.pieces[:, 2] - self.pieces[:, 1]).sum()) + SENTINELS * int(self.infilled.sum())
        return 1 - used / (self.rows * self.length)


def pack(lengths: np.ndarray, length: int, infilling: Infilling, seed: int) -> Plan:
    """A plan of all documents, in order.

    Args:
      lengths: tokens of each document.
      length: positions of a row.
      seed: decides how many pieces each row infills.
    Raises:
      ValueError: rows are too short to hold anything.
    """
    infilling.check()
    if length < 2 * MIN_PIECE:
        raise ValueError(f"LENGTH is {length}; rows of packed documents need at least {2 * MIN_PIECE} positions")
    pieces: list[Piece] = []
    row_starts, infilled, left = [], [], 0
    for document, tokens in enumerate(lengths.tolist()):
        start, end = 0, tokens + 1
        while start < end:
            if left == 0 or left < min(MIN_PIECE, end - start):
                row_starts.append(len(pieces))
                infilled.append(0)
                left = length
            stop, extra = _piece_end(start, end, left, infilling, (seed, document))
            pieces.append(Piece(document, start, stop, stop == end))
            infilled[-1] += extra > 0
            left -= stop - start + extra
            start = stop
    table = np.array(pieces, np.int64).reshape(-1, 4)
    starts = np.array([*row_starts, len(pieces)], np.int64)
    return Plan(length, table, starts, np.array(infilled, np.int32), infilling.min_tokens)


def _piece_end(start: int, end: int, left: int, infilling: Infilling, key: tuple[int, int]) -> tuple[int, int]:
    """Where a piece that begins at `start` ends, and the positions it reserves beyond its own."""
    stop = min(end, start + left - SENTINELS)
    if _text_tokens(start, stop, stop == end) >= infilling.min_tokens and drawn(infilling.rate, *key, start):
        return stop, SENTINELS
    return min(end, start + left), 0


def _text_tokens(start: int, stop: int, last: bool) -> int:
    return stop - start - last


@dataclasses.dataclass(frozen=True)
class RowBuilder:
    """The arrays of a plan's rows.

    Attributes:
      plan: which pieces stand in which row.
      documents: their tokens.
      vocabulary: ids of padding, end of text and sentinels, and where characters start.
      suffix_first_share: share of infilled pieces in joint SPM order.
    """

    plan: Plan
    documents: Documents
    vocabulary: Vocabulary
    suffix_first_share: float

    def build(self, row: int, key: tuple[int, ...]) -> Mapping[str, np.ndarray]:
        """Arrays of one row, without a batch axis.

        Args:
          row: number within the plan.
          key: seed, source and epoch: decides which pieces are infilled and in which order.
        Returns: tokens_T, targets_T, segment_ids_T, positions_T (int32) and weights_T (float32).
        """
        pieces = self.plan.row(row)
        chosen = self._chosen(pieces, row, key)
        arrays = empty_row(self.plan.length, self.vocabulary.pad)
        at = 0
        for number, piece in enumerate(pieces):
            stream = self._stream(piece, number in chosen, (*key, row, number))
            to = at + len(stream) - 1
            arrays["tokens"][at:to] = stream[:-1]
            arrays["targets"][at:to] = stream[1:]
            arrays["weights"][at:to] = 1
            arrays["segment_ids"][at:to] = number + 1
            arrays["positions"][at:to] = np.arange(to - at)
            at = to
        return arrays

    def _chosen(self, pieces: list[Piece], row: int, key: tuple[int, ...]) -> set[int]:
        """Numbers of the pieces that are infilled: as many as the plan says, of those long enough."""
        eligible = [
            number
            for number, piece in enumerate(pieces)
            if _text_tokens(piece.start, piece.stop, piece.last) >= self.plan.min_tokens
        ]
        eligible.sort(key=lambda number: mixed(*key, row, number, 1))
        return set(eligible[: int(self.plan.infilled[row])])

    def _stream(self, piece: Piece, infilled: bool, key: tuple[int, ...]) -> np.ndarray:
        """The piece with the token before it: one longer than its positions."""
        tokens = self.documents.tokens(piece.document)
        end_of_text = np.array([self.vocabulary.end_of_text], np.int32)
        before = tokens[piece.start - 1 : piece.start] if piece.start else end_of_text
        text = tokens[piece.start : piece.stop - piece.last]
        if infilled:
            cuts = thirds(self.vocabulary.starts_character(text))
            sentinels = Sentinels(self.vocabulary.fim_prefix, self.vocabulary.fim_middle, self.vocabulary.fim_suffix)
            text = infill(text, cuts, sentinels, suffix_first=drawn(self.suffix_first_share, *key, 2))
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
