"""Which row is read when: epochs over blocks of documents, planned block by block for a corpus of any size."""

import functools

import numpy as np

from hcxjax.data.hashing import mixed, shuffled
from hcxjax.data.mixing import permuted
from hcxjax.data.packing import Infilling, Plan, pack, rows_for

BLOCK_TOKENS = 1 << 23
"""Tokens of consecutive documents that are packed together: at rows of 32,768 the half row that is left over on average
is 0.2 % of a block."""
WINDOW = 16
"""Blocks whose rows are shuffled into each other: what has to be planned at a time."""
_BLOCKS = -1  # tells the order of blocks from the order within one


def blocks(lengths: np.ndarray, tokens: int = BLOCK_TOKENS) -> np.ndarray:
    """First document of each block and the number of documents at the end, int64; from the lengths alone."""
    streams = lengths.astype(np.int64) + 1
    before = np.cumsum(streams) - streams
    _, first = np.unique(before // tokens, return_index=True)
    return np.append(first, len(lengths)).astype(np.int64)


class Epochs:
    """Rows of one epoch after another, each with an order and choices of its own; a function of lengths and key alone.

    Each epoch shuffles the blocks, the documents within each, and the rows within a window of blocks. Every epoch has
    the same number of rows, so that none has to be planned to find a row of a later one.

    Args:
      lengths: tokens of each document.
      length: positions of a row.
      infilling: how much is fed out of order.
      key: seed and source.
      block_tokens, window: see `BLOCK_TOKENS`, `WINDOW`.
    Raises:
      ValueError: rows are too short to hold anything.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        length: int,
        infilling: Infilling,
        key: tuple[int, ...],
        block_tokens: int = BLOCK_TOKENS,
        window: int = WINDOW,
    ):
        self._lengths, self._length, self._infilling, self._key, self._window = lengths, length, infilling, key, window
        self._starts = blocks(lengths, block_tokens)
        spans = zip(self._starts[:-1], self._starts[1:], strict=True)
        self._block_rows = np.array([rows_for(lengths[start:stop], length, infilling) for start, stop in spans])
        self.rows = int(self._block_rows.sum())
        self._plan = functools.lru_cache(maxsize=2 * window)(self._packed)  # at a batch that spans two windows
        self._order = functools.lru_cache(maxsize=2)(self._ordered)

    def locate(self, number: int) -> tuple[int, int, Plan]:
        """(epoch, row within the plan, plan of its block) of the `number`-th row that is read."""
        epoch, place = divmod(number, self.rows)
        order, ends = self._order(epoch)
        first = int(np.searchsorted(ends, place, side="right")) // self._window * self._window
        start = int(ends[first - 1]) if first else 0
        size = int(ends[min(first + self._window, len(ends)) - 1]) - start
        place = start + permuted(place - start, size, *self._key, epoch, first)
        chosen = int(np.searchsorted(ends, place, side="right"))
        block = int(order[chosen])
        return epoch, place - int(ends[chosen] - self._block_rows[block]), self._plan(epoch, block)

    def _ordered(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The blocks in the order of `epoch`, and the rows up to the end of each."""
        order = shuffled(len(self._block_rows), *self._key, epoch, _BLOCKS)
        return order, np.cumsum(self._block_rows[order])

    def _packed(self, epoch: int, block: int) -> Plan:
        start, stop = self._starts[block], self._starts[block + 1]
        documents = start + shuffled(int(stop - start), *self._key, epoch, block)
        key = (mixed(*self._key, epoch), block)
        return pack(self._lengths[documents], self._length, self._infilling, key, documents)

    @property
    def padding(self) -> float:
        """Share of positions that hold nothing, in the first blocks of the first epoch."""
        first = range(min(self._window, len(self._block_rows)))
        used = sum(self._plan(0, block).used for block in first)
        return 1 - used / (int(self._block_rows[: len(first)].sum()) * self._length)
