"""Token scores of host batches under the current parameters: one compiled function for every evaluator."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import jax
import numpy as np

from hcxjax.mesh import Layout
from hcxjax.models.likelihood import TokenScores
from hcxjax.protocols import Batch, Params


class Scored(Protocol):
    """An objective that can say what its model thinks of every target."""

    def scores(self, params: Params, batch: Batch) -> TokenScores: ...


class Scorer:
    """Scores of packed rows on a mesh, fetched whole to every process.

    Args:
      objective: whose model scores; a batch's shape is compiled once.
      layout: where the parameters are.
    """

    def __init__(self, objective: Scored, layout: Layout):
        self._layout = layout
        self._scores = jax.jit(objective.scores, out_shardings=layout.sharding())

    def __call__(self, params: Params, rows: Mapping[str, np.ndarray]) -> TokenScores:
        """Numpy scores of host arrays of whole batches."""
        count = len(rows["tokens_BT"])
        batch = self._layout.shard_batch(lambda start, stop: {k: v[start:stop] for k, v in rows.items()}, count)
        return jax.device_get(self._scores(params, batch))


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a sequence's targets lie: `row` of all rows, from `start` up to `stop`."""

    row: int
    start: int
    stop: int


def pack_sequences(
    sequences: Sequence[Sequence[int]], length: int, batch: int
) -> tuple[list[dict[str, np.ndarray]], list[Place]]:
    """Token sequences as batches of packed rows; the first token of each is only read, the others are targets.

    Returns: (batches of `batch` rows of `length`, the place of every sequence in the order given).
    Raises:
      ValueError: a sequence is longer than a row holds.
    """
    rows: list[list[Sequence[int]]] = [[]]
    places, used = [], 0
    for number, sequence in enumerate(sequences):
        size = len(sequence) - 1
        if size > length:
            raise ValueError(f"sequence {number} has {size} tokens to score; a row holds {length} (WorldProbes.length)")
        if used + size > length:
            rows.append([])
            used = 0
        places.append(Place(len(rows) - 1, used, used + size))
        rows[-1].append(sequence)
        used += size
    rows += [[] for _ in range(-len(rows) % batch)]
    arrays = [_row(row, length) for row in rows]
    stacked = {name: np.stack([row[name] for row in arrays]) for name in arrays[0]}
    return [{k: v[at : at + batch] for k, v in stacked.items()} for at in range(0, len(rows), batch)], places


def _row(sequences: Sequence[Sequence[int]], length: int) -> dict[str, np.ndarray]:
    names = ("tokens_BT", "targets_BT", "segment_ids_BT", "positions_BT")
    row = {name: np.zeros(length, np.int32) for name in names} | {"weights_BT": np.zeros(length, np.float32)}
    at = 0
    for segment, sequence in enumerate(sequences, 1):
        here = slice(at, at + len(sequence) - 1)
        row["tokens_BT"][here], row["targets_BT"][here] = sequence[:-1], sequence[1:]
        row["segment_ids_BT"][here], row["weights_BT"][here] = segment, 1
        row["positions_BT"][here] = np.arange(len(sequence) - 1)
        at = here.stop
    return row
