"""How a kernel walks over a batch: by a list of the tiles that are needed, which is as long as its grid.

A grid over all pairs of blocks would stop at every tile that is skipped, if only to do nothing there: at 32,768 tokens
of short documents nine in ten. The list lies in scalar memory, and its length bounds the grid while the program runs.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from hcxjax.kernels.plan import AttentionPlan, Spans
from hcxjax.protocols import Array

FIRST, LAST, NEEDED, PLAIN = 1, 2, 4, 8
"""Bits of a visit: the first, the last of its held block; the tile holds a pair that is allowed; it holds no other."""

SCALAR_MEMORY = 2**20
"""Bytes that v5e, v5p, v6e and TPU7x have."""


class Visits(NamedTuple):
    """A block is held while those it is paired with are streamed past it. int32; the first `count` of W are in use."""

    rows_W: Array
    held_W: Array
    streamed_W: Array
    bits_W: Array
    count: Array


def visits(spans: Spans, streamed: int) -> Visits:
    """The tiles of `spans`, whose blocks are the held ones, in order.

    A block that is paired with nothing is visited once, without the bit NEEDED: its results are zeros to be written.

    Args:
      streamed: blocks of the other side.
    Raises:
      ValueError: the list would not fit into scalar memory.
    """
    rows, held = spans.start.shape
    length, most = rows * held * streamed, SCALAR_MEMORY // 16
    if length >= most:
        raise ValueError(
            f"{rows} rows of {held} x {streamed} tiles are {length}; the list of a TPU kernel takes fewer than {most}: "
            "larger tiles (Backend.tile), or fewer rows at a time (Experiment.accumulate)"
        )
    start_I, stop_I, plain_start_I, plain_stop_I = (bound_BI.reshape(-1) for bound_BI in spans)
    count_I = jnp.maximum(stop_I - start_I, 1)
    end_I = jnp.cumsum(count_I)
    block_W = jnp.repeat(jnp.arange(rows * held), count_I, total_repeat_length=length)
    number_W = jnp.arange(length) - (end_I - count_I)[block_W]
    streamed_W = jnp.minimum(start_I[block_W] + number_W, streamed - 1)
    bits_W = (
        FIRST * (number_W == 0)
        + LAST * (number_W == count_I[block_W] - 1)
        + NEEDED * (start_I < stop_I)[block_W]
        + PLAIN * ((plain_start_I[block_W] <= streamed_W) & (streamed_W < plain_stop_I[block_W]))
    )
    lists = (block_W // held, block_W % held, streamed_W, bits_W)
    return Visits(*(x.astype(jnp.int32) for x in lists), end_I[-1].astype(jnp.int32))


@dataclasses.dataclass(frozen=True)
class Step:
    """What a kernel needs to know of where it is.

    Attributes:
      first, last: tile of the held block, over all heads that add to its results.
      masked, plain: the tile is needed, and some or none of its pairs are masked.
      offset: the place of the tile's first query less that of its first key.
    """

    first: Array
    last: Array
    masked: Array
    plain: Array
    offset: Array

    def compute(self, tile: Callable[[bool], None]) -> None:
        """tile(is it masked?), where it is needed."""
        pl.when(self.masked)(lambda: tile(True))
        pl.when(self.plain)(lambda: tile(False))


class Scalars(NamedTuple):
    """References to scalar memory."""

    rows: Any
    held: Any
    streamed: Any
    bits: Any
    q_places: Any
    kv_places: Any


@dataclasses.dataclass(frozen=True)
class Walk:
    """A grid, and where in a batch each of its points lies.

    Attributes:
      holds: 'queries': for one head after another each block of queries is held, and keys are streamed. 'keys': each
        block of keys is held, and queries are streamed, those of all heads of its group at every tile.
    """

    plan: AttentionPlan
    holds: Literal["queries", "keys"]

    @property
    def axes(self) -> str:
        """Of the grid: KV heads, query heads of a group, visits."""
        return "KGW" if self.holds == "queries" else "KWG"

    @property
    def visits(self) -> Visits:
        q_blocks, kv_blocks = self.plan.kv_spans.start.shape[1], self.plan.q_spans.start.shape[1]
        if self.holds == "queries":
            return visits(self.plan.kv_spans, kv_blocks)
        return visits(self.plan.q_spans, q_blocks)

    def at(self, point: tuple[Any, ...], scalars: Scalars) -> dict[str, Any]:
        """By letter, the index of the row, head or block."""
        place = dict(zip(self.axes, point, strict=True))
        visit, (held, streamed) = place["W"], "TS" if self.holds == "queries" else "ST"
        return place | {"B": scalars.rows[visit], held: scalars.held[visit], streamed: scalars.streamed[visit]}

    def step(self, groups: int, scalars: Scalars) -> Step:
        """Inside a kernel: where it is."""
        place = self.at(tuple(map(pl.program_id, range(3))), scalars)
        bits = scalars.bits[place["W"]]
        first, last, needed, plain = (bits & bit != 0 for bit in (FIRST, LAST, NEEDED, PLAIN))
        if self.holds == "keys":
            first, last = first & (place["G"] == 0), last & (place["G"] == groups - 1)
        offset = scalars.q_places[place["T"]] - scalars.kv_places[place["S"]]
        return Step(first, last, needed & ~plain, plain, offset)

    def block(self, name: str, shape: tuple[int, ...]) -> pl.BlockSpec:
        """What of an array a kernel sees at a time, by the letters that end its name.

        One row (B), KV head (K), query head of its group (G); a block of queries (T), of keys (S); all of any other.
        """
        sizes = {"B": None, "K": None, "G": None, "T": self.plan.tile.queries, "S": self.plan.tile.keys}
        letters = _letters(name)

        def index(*arguments: Any) -> tuple[Any, ...]:
            place = self.at(arguments[:3], Scalars(*arguments[3:]))
            return tuple(place.get(letter, 0) for letter in letters)

        return pl.BlockSpec(tuple(map(sizes.get, letters, shape)), index)


def call(
    kernel: Callable[..., None],
    walk: Walk,
    inputs: Mapping[str, Array],
    outputs: Mapping[str, jax.ShapeDtypeStruct],
    scratch: Mapping[str, Any],
    *,
    matmuls: int,
    name: str,
    interpret: Any,
) -> list[Array]:
    """Runs kernel(step, **references) at every point of a walk.

    Args:
      inputs, outputs, scratch: by name; of arrays the kernel is given blocks (`Walk.block`), under their names without
        the letters.
      matmuls: of queries x keys x head dim that the kernel does, for the estimate of its cost.
    """
    sizes = {letter: size for key, x in inputs.items() for letter, size in zip(_letters(key), x.shape, strict=True)}
    listed = walk.visits
    names = [key.rpartition("_")[0] for key in (*inputs, *outputs)] + list(scratch)

    def body(*references: Any) -> None:
        count = len(Scalars._fields)
        step = walk.step(sizes["G"], Scalars(*references[:count]))
        kernel(step, **dict(zip(names, references[count:], strict=True)))

    grid = {"K": sizes["K"], "G": sizes["G"], "W": listed.count}
    alone = walk.axes.index("W")
    return pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(Scalars._fields),
            grid=tuple(grid[axis] for axis in walk.axes),
            in_specs=[walk.block(key, x.shape) for key, x in inputs.items()],
            out_specs=[walk.block(key, x.shape) for key, x in outputs.items()],
            scratch_shapes=list(scratch.values()),
        ),
        out_shape=list(outputs.values()),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=["parallel"] * alone + ["arbitrary"] * (len(walk.axes) - alone)
        ),
        cost_estimate=_cost(sizes, matmuls, [*inputs.values(), *outputs.values()]),
        name=name,
        interpret=interpret,
    )(*listed[:4], walk.plan.q_places_I, walk.plan.kv_places_J, *inputs.values())


def _cost(sizes: Mapping[str, int], matmuls: int, arrays: list[Any]) -> pl.CostEstimate:
    """Of a batch whose rows are one document each: how many tiles others need is not known when a program is compiled.

    Half of all pairs are allowed, also where keys are of a whole row and queries of a part: parts are half on average.
    """
    pairs = sizes["B"] * sizes["K"] * sizes["G"] * sizes["T"] * sizes["S"] // 2
    return pl.CostEstimate(
        flops=2 * matmuls * pairs * sizes["H"],
        transcendentals=pairs,
        bytes_accessed=sum(x.size * x.dtype.itemsize for x in arrays),
    )


def _letters(name: str) -> str:
    return name.rpartition("_")[2]
