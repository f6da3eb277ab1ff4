"""Byte-pair merges over units of any kind: what SentencePiece does over characters, here over whole pieces."""

import collections
import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence


def learn_merges(
    sequences: Sequence[tuple[Sequence[int], float]], join: Callable[[int, int], int | None]
) -> Iterator[int]:
    """The unit of each merge, the heaviest pair first; equal weights in the order of their ids.

    Args:
      sequences: (units, weight).
      join: (left, right) → the id of the joined unit; None where the two must stay apart.
    Source: Sennrich et al. 2016, arXiv:1508.07909, algorithm 1, with pairs counted incrementally.
    """
    rows = [list(units) for units, _ in sequences]
    weights = [weight for _, weight in sequences]
    pairs: dict[tuple[int, int], float] = collections.defaultdict(float)
    places: dict[tuple[int, int], set[int]] = collections.defaultdict(set)
    for number, row in enumerate(rows):
        for pair in itertools.pairwise(row):
            pairs[pair] += weights[number]
            places[pair].add(number)
    queue = [(-weight, pair) for pair, weight in pairs.items()]
    heapq.heapify(queue)
    while queue:
        weight, pair = heapq.heappop(queue)
        if -weight != pairs[pair]:  # an older entry; a newer one is queued
            continue
        if (unit := join(*pair)) is None:
            continue
        yield unit
        changed = set()
        # Sorted: the order of a sum of floats would otherwise hang on the order of a set.
        for number in sorted(places.pop(pair)):
            row, merged = rows[number], _merged(rows[number], pair, unit)
            if len(merged) == len(row):
                continue
            for old in itertools.pairwise(row):
                pairs[old] -= weights[number]
                changed.add(old)
            for new in itertools.pairwise(merged):
                pairs[new] += weights[number]
                places[new].add(number)
                changed.add(new)
            rows[number] = merged
        pairs[pair] = 0.0
        for other in changed - {pair}:
            if pairs[other] > 0:
                heapq.heappush(queue, (-pairs[other], other))


def _merged(row: list[int], pair: tuple[int, int], unit: int) -> list[int]:
    merged, at = [], 0
    while at < len(row):
        if at + 1 < len(row) and (row[at], row[at + 1]) == pair:
            merged.append(unit)
            at += 2
        else:
            merged.append(row[at])
            at += 1
    return merged
