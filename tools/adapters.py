"""The weights of a run that trained an adapter, read in slices with the adapter added: none is held whole."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import jax
import numpy as np

from hcxjax.checkpoint import stored_leaves
from hcxjax.convert.model import block_shape
from hcxjax.mesh import unbox
from hcxjax.objectives.lora import LoRA
from hcxjax.partition import by_path, part_fingerprint
from hcxjax.train import Experiment
from hcxjax.warm_start import PARTIAL

PARAMS = "state/params/"
"""What the paths of parameters begin with in a checkpoint."""


class Leaf(Protocol):
    """A leaf that is read in slices; `hcxjax.checkpoint.StoredLeaf` is one."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def read(self, index: tuple[slice | int, ...]) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class MergedLeaf:
    """W + scale · a b in float32, of a weight that is stacked over layers.

    Attributes:
      weight, a, b, scale: as in `hcxjax.models.low_rank.LowRankWeight`.
    """

    weight: Leaf
    a: Leaf
    b: Leaf
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return self.weight.shape

    def read(self, index: tuple[slice | int, ...]) -> np.ndarray:
        """The values at `index`, which is of layers alone."""
        (layers,) = index
        weight, a, b = (leaf.read((layers,)) for leaf in (self.weight, self.a, self.b))
        stack = () if isinstance(layers, int) else weight.shape[:1]
        rank = a.shape[-1]
        change = a.reshape(*stack, -1, rank) @ b.reshape(*stack, rank, -1)
        return weight + np.float32(self.scale) * change.reshape(weight.shape)


def merged_leaves(experiment: Experiment, step: int | None) -> tuple[int, dict[str, Leaf]]:
    """(step, {path: leaf}) of the parameters of the objective that was adapted.

    Args:
      experiment: of the run; its objective is a `LoRA`.
      step: which checkpoint; None is the newest.
    Raises:
      ValueError: there is no such checkpoint, or the weights that the adapter changes are gone, or other ones.
      CheckpointError: a checkpoint is damaged.
    """
    step, stored = stored_leaves(Path(experiment.run_dir) / "checkpoints", step)
    lora, warm_start = experiment.timeline.at(step).objective, experiment.warm_start
    assert isinstance(lora, LoRA)
    assert warm_start is not None  # an experiment that trains a part has one
    leaves: dict[str, Leaf] = {path.removeprefix(PARAMS): stored[path] for path in stored if path.startswith(PARAMS)}
    shapes = unbox(jax.eval_shape(lora.init, jax.random.key(0)))
    places = {name: place for name, place in warm_start.places(shapes).items() if name not in leaves}
    origins = {prefix: warm_start.origins[prefix] for prefix in {place.prefix for place in places.values()}}
    steps = {place.prefix: place.step for place in places.values()}
    there = {prefix: stored_leaves(origin.checkpoints, steps[prefix])[1] for prefix, origin in origins.items()}
    frozen = {name: there[place.prefix][PARAMS + place.path] for name, place in places.items()}
    warm_start.check_known(_fingerprint(frozen), int(stored[PARTIAL].read(())))
    leaves |= frozen
    merged: dict[str, Leaf] = {}
    for path in by_path(shapes["base"]):
        weight, a, b = (leaves.get(name) for name in (f"base/{path}", f"adapter/{path}/a", f"adapter/{path}/b"))
        assert weight is not None
        merged[path] = weight if a is None or b is None else MergedLeaf(weight, a, b, lora.alpha / lora.rank)
    return step, merged


def _fingerprint(leaves: Mapping[str, Leaf]) -> int:
    """As `hcxjax.partition.fingerprint`, a block at a time."""
    return sum(
        part_fingerprint(name, leaf.read(index), index[0].start if index else 0)
        for name, leaf in leaves.items()
        for index in blocks(leaf.shape)
    ) % (1 << 32)


def blocks(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Indices over the first axis, of parts of `block_shape`; of a number, the empty one."""
    if not shape:
        yield ()
        return
    step = block_shape(shape)[0]
    yield from ((slice(start, min(start + step, shape[0])),) for start in range(0, shape[0], step))
