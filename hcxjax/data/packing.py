"""Documents of known lengths laid into rows of one length with next to no padding, and the arrays of a row.

A document of n tokens is the stream s = [EOT, t_1, ..., t_n, EOT]; its inputs are s[:-1] and its targets s[1:], so it
takes n + 1 positions and each of its tokens is predicted exactly once an epoch. A document that is longer than what is
left of a row goes on in the next one; the first input there is the token before.

An infilled piece takes `SENTINELS` positions more. How many rows some documents are given (`rows_for`) follows from
their lengths alone; infilling and tidy row ends spend what is spare, and stop where nothing is.
"""

import dataclasses
from typing import NamedTuple, Protocol

import numpy as np

from hcxjax.data.hashing import drawn, mixed
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

    def tokens(self, document: int, start: int = 0, stop: int | None = None) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Plan:
    """Rows of pieces.

    Attributes:
      length: positions of a row.
      pieces: int64 of shape (pieces, 5): document, start, stop, last, infilled.
      row_starts: first piece of each row, and the number of pieces at the end; int64 of shape (rows + 1,). The last
        row may be empty.
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
    def used(self) -> int:
        """Positions that hold something."""
        return int((self.pieces[:, 2] - self.pieces[:, 1]).sum() + SENTINELS * self.pieces[:, 4].sum())


def rows_for(lengths: np.ndarray, length: int, infilling: Infilling) -> int:
    """Rows that hold documents of `lengths` tokens once, with room for the infilling that is expected.

    Raises:
      ValueError: rows are too short to hold anything.
    """
    infilling.check()
    if length < 2 * MIN_PIECE:
        raise ValueError(f"LENGTH is {length}; rows of packed documents need at least {2 * MIN_PIECE} positions")
    streams = lengths.astype(np.int64) + 1
    needed = int(streams.sum())
    pieces = int((lengths >= infilling.min_tokens).sum()) + needed // length
    row_ends = needed / length * min(1.0, MIN_PIECE / max(1.0, needed / max(1, len(lengths)))) * MIN_PIECE / 2
    return -(-int(needed + SENTINELS * infilling.rate * pieces + row_ends) // length)


def pack(
    lengths: np.ndarray, length: int, infilling: Infilling, key: tuple[int, ...], documents: np.ndarray | None = None
) -> Plan:
    """A plan of `rows_for(lengths, length, infilling)` rows that holds each document once.

    Args:
      lengths: tokens of each document.
      length: positions of a row.
      key: decides which pieces are infilled.
      documents: their numbers; None is 0, 1, ....
    Raises:
      ValueError: rows are too short to hold anything.
    """
    rows = rows_for(lengths, length, infilling)
    spare = rows * length - int(lengths.sum()) - len(lengths)
    pieces: list[Piece] = []
    row_starts, left, prefix = [], 0, mixed(*key)
    numbers = np.arange(len(lengths)) if documents is None else documents
    for document, tokens in zip(numbers.tolist(), lengths.tolist(), strict=True):
        start, end = 0, tokens + 1
        while start < end:
            if not left or (left < min(MIN_PIECE, end - start) and left <= spare):
                row_starts.append(len(pieces))
                spare -= left
                left = length
            infilled, reserved = False, min(end, start + left - SENTINELS)
            if spare >= SENTINELS and reserved - start - (reserved == end) >= infilling.min_tokens:
                infilled = drawn(infilling.rate, prefix, document, start)
            stop = reserved if infilled else min(end, start + left)
            pieces.append(Piece(document, start, stop, stop == end, infilled))
            left -= stop - start + SENTINELS * infilled
            spare -= SENTINELS * infilled
            start = stop
    row_starts += [len(pieces)] * (rows + 1 - len(row_starts))
    return Plan(length, np.array(pieces, np.int64).reshape(-1, len(Piece._fields)), np.array(row_starts, np.int64))


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
        tokens = self.documents.tokens(piece.document, max(0, piece.start - 1), piece.stop - piece.last)
        end_of_text = np.array([self.vocabulary.end_of_text], np.int32)
        before, text = (tokens[:1], tokens[1:]) if piece.start else (end_of_text, tokens)
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
