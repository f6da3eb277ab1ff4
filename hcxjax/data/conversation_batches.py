"""Which conversations make up a batch: pure functions of their lengths, a key and the batch's number.

Rows are as long as a bucket, and a batch has as many of them as its tokens allow; or rows are packed. Nothing here
knows of a mesh or of hosts, so that the order is the same on any.
"""

import bisect
import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from hcxjax.data.hashing import shuffled
from hcxjax.data.mixing import permuted

LEAST_BUCKET = 32
"""Positions of the shortest default bucket: shorter rows save little and cost a program each."""
_ORDER = -1  # tells the order of batches from that of the conversations in a bucket


class Rows(NamedTuple):
    """A batch: each row holds some conversations, one after the other, in `length` positions; or none."""

    length: int
    conversations: list[tuple[int, ...]]


class Batches(Protocol):
    """A plan without an end."""

    @property
    def padding(self) -> float:
        """Share of the positions of an epoch that hold nothing."""
        ...

    @property
    def an_epoch(self) -> float:
        """Batches that hold each conversation once."""
        ...

    def batch(self, number: int) -> Rows: ...


def halvings(length: int) -> tuple[int, ...]:
    """Default buckets: `length` and its halves, down to `LEAST_BUCKET`; the shortest first."""
    buckets = [length]
    while buckets[0] % 2 == 0 and buckets[0] // 2 >= LEAST_BUCKET:
        buckets.insert(0, buckets[0] // 2)
    return tuple(buckets)


def rows_of(buckets: Sequence[int], tokens: int) -> tuple[int, ...]:
    """Rows of a batch of each bucket: as many as hold at most `tokens`.

    All are multiples of those of the longest, so that whatever divides these divides all.
    """
    least = tokens // buckets[-1]
    return tuple(tokens // bucket // least * least if least else 0 for bucket in buckets)


class LengthBatches:
    """Conversations of similar length share a batch; the number of rows varies, that of tokens hardly.

    Each epoch shuffles the conversations of a bucket, and then the batches. What fills no batch of its bucket joins the
    next longer one that has any, so that one batch an epoch at most has empty rows. Every conversation comes once an
    epoch.

    Source: HyperCLOVA X, arXiv:2404.01954, on supervised fine-tuning: sequences of similar length in a mini-batch of a
    constant maximum number of tokens.

    Args:
      lengths: positions of each conversation.
      buckets: row lengths, rising; the last holds the longest conversation.
      rows: of a batch of each bucket.
      key: decides the order; None keeps that of the conversations.
      sizes: rows that each takes, never in two batches, at most those of a batch of its bucket; None is one row each.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        buckets: Sequence[int],
        rows: Sequence[int],
        key: tuple[int, ...] | None,
        sizes: np.ndarray | None = None,
    ):
        assert len(lengths) and lengths.max() <= buckets[-1], (lengths.max(), buckets)
        self._lengths, self._buckets, self._rows, self._key = lengths, tuple(buckets), tuple(rows), key
        self._sizes = sizes
        chosen = np.searchsorted(np.array(buckets), lengths)
        self._members = [np.flatnonzero(chosen == bucket) for bucket in range(len(buckets))]
        self._epoch = functools.lru_cache(maxsize=2)(self._planned)
        self._count = len(self._planned(0))

    @property
    def an_epoch(self) -> float:
        return float(self._count)

    @property
    def padding(self) -> float:
        return 1 - float(self._lengths.sum()) / self.positions

    @property
    def positions(self) -> int:
        """Positions of all rows of an epoch."""
        return sum(self._buckets[bucket] * self._rows[bucket] for bucket, _ in self._epoch(0))

    def batch(self, number: int) -> Rows:
        """Batch `number`, counted through all epochs."""
        length, count, members = self.members(number)
        rows = [(member,) for member in members.tolist()]
        return Rows(length, rows + [()] * (count - len(rows)))

    def members(self, number: int) -> tuple[int, int, np.ndarray]:
        """(length, number of rows, who shares them) of batch `number`, counted through all epochs."""
        epoch, place = divmod(number, self._count)
        if self._key is not None:
            place = permuted(place, self._count, *self._key, epoch)
        bucket, members = self._epoch(epoch)[place]
        return self._buckets[bucket], self._rows[bucket], members

    def _planned(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        """(bucket, conversations) of each batch of an epoch."""
        batches, waiting = [], np.zeros(0, np.int64)
        for bucket, members in enumerate(self._members):
            if not len(members):
                continue
            if self._key is not None:
                members = members[shuffled(len(members), *self._key, epoch, _ORDER, bucket)]
            if self._sizes is not None and np.any(self._sizes[waiting] > self._rows[bucket]):
                batches.append(self._last(waiting))
                waiting = waiting[:0]
            *full, waiting = self._filled(np.concatenate([waiting, members]), self._rows[bucket])
            batches += [(bucket, batch) for batch in full]
        if len(waiting):
            batches.append(self._last(waiting))
        return batches

    def _filled(self, members: np.ndarray, rows: int) -> list[np.ndarray]:
        """Members in batches of `rows` rows: the last is what fills none, perhaps nothing."""
        if self._sizes is None:
            full = len(members) // rows * rows
            return [*(members[start : start + rows] for start in range(0, full, rows)), members[full:]]
        batches = [np.array(batch) for batch in packed(members, self._sizes[members], rows)]
        filled = [int(self._sizes[batch].sum()) for batch in batches]
        if min(filled) == rows:
            return [*batches, members[:0]]
        least = max(number for number, count in enumerate(filled) if count == min(filled))
        return [*batches[:least], *batches[least + 1 :], batches[least]]

    def _last(self, members: np.ndarray) -> tuple[int, np.ndarray]:
        """A batch that is not full, with the shortest rows that hold it: shorter rows are more, so there is room."""
        return int(np.searchsorted(np.array(self._buckets), self._lengths[members].max())), members


class PackedBatches:
    """Conversations packed into rows of one length, each row of one source; the rows' order changes by epoch.

    Which conversations share a row is decided once: they do not see each other.

    Args:
      lengths: positions of each conversation.
      sources: number of each one's source.
      length: positions of a row, at least the longest conversation's.
      rows: of a batch.
      key: decides the order.
    """

    def __init__(self, lengths: np.ndarray, sources: np.ndarray, length: int, rows: int, key: tuple[int, ...]):
        self._length, self._batch_rows, self._key = length, rows, key
        self._rows: list[tuple[int, ...]] = []
        for source in np.unique(sources).tolist():
            members = np.flatnonzero(sources == source)
            members = members[shuffled(len(members), *key, source, _ORDER)]
            self._rows += packed(members, lengths[members], length)
        self._used = int(lengths.sum())

    @property
    def an_epoch(self) -> float:
        return len(self._rows) / self._batch_rows

    @property
    def padding(self) -> float:
        return 1 - self._used / (self._length * len(self._rows))

    def batch(self, number: int) -> Rows:
        """Batch `number`, counted through all epochs; it may hold the end of one and the beginning of the next."""
        start = number * self._batch_rows
        return Rows(self._length, [self._row(row) for row in range(start, start + self._batch_rows)])

    def _row(self, number: int) -> tuple[int, ...]:
        epoch, place = divmod(number, len(self._rows))
        return self._rows[permuted(place, len(self._rows), *self._key, epoch)]


def packed(members: np.ndarray, lengths: np.ndarray, length: int) -> list[tuple[int, ...]]:
    """Rows of members whose lengths add up to at most `length`: best fit, the longest first.

    Source: Johnson 1973, "Near-optimal bin packing algorithms": at most 11/9 of the fewest rows, plus a few.
    """
    assert not len(lengths) or lengths.max() <= length, (lengths.max(), length)
    rows: list[list[int]] = []
    with_space: dict[int, list[int]] = {}
    spaces: list[int] = []  # the keys of `with_space` that have a row, rising
    for place in np.argsort(-lengths, kind="stable").tolist():
        size = int(lengths[place])
        found = bisect.bisect_left(spaces, size)
        if found == len(spaces):
            rows.append([])
            row, space = len(rows) - 1, length
        else:
            space = spaces[found]
            row = with_space[space].pop()
            if not with_space[space]:
                spaces.pop(found)
        rows[row].append(int(members[place]))
        left = space - size
        waiting = with_space.setdefault(left, [])
        if not waiting:
            bisect.insort(spaces, left)
        waiting.append(row)
    return [tuple(row) for row in rows]
