"""What the training loop asks of its parts, the batch types, and the legend of shape suffixes.

Arrays end in `_` and one capital per dimension; scalars and trees have no suffix.

| letter | dimension            | letter | dimension                  |
|--------|----------------------|--------|----------------------------|
| B      | batch (rows)         | H      | head dimension             |
| T      | query, sequence      | F      | feed-forward width         |
| S      | key, cache           | V      | vocabulary                 |
| D      | model width          | L      | layers                     |
| N      | query heads          | P      | prompt                     |
| K      | KV heads; texts      | R      | rank (adapters)            |
| G      | query heads per KV   | M      | watched measures           |
| W      | listed ids, tiles    | I, J   | blocks of queries, of keys |
| E      | rotary pairs, H/2    |        |                            |
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax

Array: TypeAlias = jax.Array
PyTree: TypeAlias = Any
Params: TypeAlias = PyTree
Batch: TypeAlias = Mapping[str, Array]
"""Of a language model: `tokens_BT`, `targets_BT` (int32), `weights_BT` (float32, of the targets), `segment_ids_BT`
(int32, 1, 2, ... by document, 0 is padding), `positions_BT` (int32, from 0 in each document), `source_B` (int32)."""


class Mean(NamedTuple):
    """A metric that is summed over microbatches and divided once: `sum / weight`."""

    sum: Array | float
    weight: Array | float


class Maximum(NamedTuple):
    """A metric of which the largest value over microbatches is kept."""

    value: Array | float


Metrics: TypeAlias = Mapping[str, Mean | Maximum]
VETO = "skip/"
"""Begins the name of a `Maximum` by which an objective asks to skip a batch, where it is above 0. The field of the
objective whose limit the batch was beyond follows."""


class Objective(Protocol):
    """What is minimised. Pure: holds modules and hyperparameters, never arrays."""

    def init(self, rng: Array) -> Params:
        """Parameters whose leaves are boxed with their logical axes."""
        ...

    def loss(self, params: Params, batch: Batch, rng: Array) -> tuple[Array, Array, Metrics]:
        """(sum, weight, metrics): a sum and what to divide it by once all microbatches are added, never a mean."""
        ...

    def flops(self, batch: Batch) -> float:
        """Model FLOPs of one update on `batch`, forward and backward, recomputation not counted."""
        ...


@runtime_checkable
class Partial(Protocol):
    """An objective that is meant to train a part of its parameters."""

    @property
    def trainable(self) -> tuple[str, ...]:
        """Prefixes of the paths of that part."""
        ...


class Source(Protocol):
    """Where batches come from, on the host."""

    def start(self, layout: Any, params: Params) -> None:
        """Opens files, compiles, checks sizes. `layout` is a `hcxjax.mesh.Layout`."""
        ...

    def follow(self, before: "Source", updates: int) -> None:
        """An earlier phase of the run takes `updates` batches from `before`; called before `start`, once a phase.

        A source of the same data goes on where that one ends.
        """
        ...

    def begin_from(self, folder: str) -> None:
        """The run's first parameters are those of the run or the model in `folder`; called after `start`.

        Raises:
          ValueError: they were trained on tokens of another vocabulary.
        """
        ...

    def next(self, params: Params, step: int) -> Batch:
        """The batch of update `step` (from 0) as global arrays."""
        ...

    def measures(self) -> Mapping[str, float]:
        """Numbers about the batch that was given last which its update does not know, such as how it was made."""
        ...

    def get_state(self) -> PyTree:
        """All that `next` needs to repeat; leaves are integers or global arrays."""
        ...

    def set_state(self, state: PyTree) -> None:
        """Takes what `get_state` gave; ValueError where it belongs to other data."""
        ...

    def close(self) -> None:
        """Lets go of threads and files."""
        ...


@runtime_checkable
class Shaped(Protocol):
    """A source whose batches all have the same shapes."""

    def shapes(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Of the arrays of a batch over all processes, before anything is opened."""
        ...


class Evaluator(Protocol):
    """Measures parameters during a run; may write files below `run_dir`."""

    every: int

    def start(self, layout: Any, run_dir: str) -> None: ...

    def evaluate(self, params: Params, step: int) -> Mapping[str, float]: ...
