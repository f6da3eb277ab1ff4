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

from hcxjax.kernels.plan import AttentionPlan
from hcxjax.kernels.visits import FIRST, LAST, NEEDED, PLAIN, Visits, visits
from hcxjax.protocols import Array

SCALAR_MEMORY = 2**20
"""Bytes that v5e, v5p, v6e and TPU7x have."""


@dataclasses.dataclass(frozen=True)
class Step:
    """What a kernel needs to know of where it is.

    Attributes:
      first, last: tile of the held block, over all heads that add to its results.
      masked, plain: the tile is needed, and some or none of its pairs are masked.
      offset: the place of the tile's first query less that of its first key.
      count: adds one to the tile's count of visits, where they are counted.
    """

    first: Array
    last: Array
    masked: Array
    plain: Array
    offset: Array
    count: Callable[[], None] | None = None

    def compute(self, tile: Callable[[bool], None]) -> None:
        """tile(is it masked?), where it is needed."""
        for here, is_masked in ((self.masked, True), (self.plain, False)):

            @pl.when(here)
            def _visit(is_masked: bool = is_masked) -> None:
                tile(is_masked)
                if self.count is not None:
                    self.count()


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

    def visits(self) -> Visits:
        """What is visited, in order.

        Raises:
          ValueError: the list does not fit into scalar memory.
        """
        (rows, q_blocks), kv_blocks = self.plan.kv_spans.start.shape, self.plan.q_spans.start.shape[1]
        length, most = rows * q_blocks * kv_blocks, SCALAR_MEMORY // 16
        if length >= most:
            raise ValueError(
                f"{rows} rows of {q_blocks} x {kv_blocks} tiles are {length}; a TPU kernel lists fewer than "
                f"{most}: larger tiles (DecoderConfig.attention_tile), or fewer rows at once (Experiment.accumulate)"
            )
        if self.holds == "queries":
            return visits(*self.plan.kv_spans, kv_blocks)
        return visits(*self.plan.q_spans, q_blocks)

    def at(self, point: tuple[Any, ...], scalars: Scalars) -> dict[str, Any]:
        """By letter, the index of the row, head or block."""
        place = dict(zip(self.axes, point, strict=True))
        visit, (held, streamed) = place["W"], "TS" if self.holds == "queries" else "ST"
        return place | {"B": scalars.rows[visit], held: scalars.held[visit], streamed: scalars.streamed[visit]}

    def step(self, groups: int, scalars: Scalars, visits: Any = None) -> Step:
        """Inside a kernel: where it is.

        Args:
          visits: a reference to counts of visits, [B, I, J]; None: they are not counted.
        """
        place = self.at(tuple(map(pl.program_id, range(3))), scalars)
        bits = scalars.bits[place["W"]]
        first, last, needed, plain = (bits & bit != 0 for bit in (FIRST, LAST, NEEDED, PLAIN))
        if self.holds == "keys":
            first, last = first & (place["G"] == 0), last & (place["G"] == groups - 1)
        offset = scalars.q_places[place["T"]] - scalars.kv_places[place["S"]]

        step = Step(first, last, needed & ~plain, plain, offset)
        if visits is None:
            return step

        @pl.when(sum(map(pl.program_id, range(3))) == 0)
        def _begin() -> None:
            visits[...] = jnp.zeros_like(visits)

        def count() -> None:
            visits[place["B"], place["T"], place["S"]] += 1

        return dataclasses.replace(step, count=count)

    def block(self, name: str, shape: tuple[int, ...]) -> pl.BlockSpec:
        """What of an array a kernel sees at a time, by the letters that end its name.

        One row (B), KV head (K), query head of its group (G); a block of queries (T), of keys (S); all of any other,
        and where there are no letters, all, in scalar memory.
        """
        sizes = {"B": None, "K": None, "G": None, "T": self.plan.tile.queries, "S": self.plan.tile.keys}
        letters = _letters(name)
        if not letters:
            return pl.BlockSpec(memory_space=pltpu.SMEM)

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
    counts: bool = False,
) -> list[Array]:
    """Runs kernel(step, **references) at every point of a walk.

    Args:
      inputs, outputs, scratch: by name; of arrays the kernel is given blocks (`Walk.block`), under their names without
        the letters.
      matmuls: of queries x keys x head dim that the kernel does, for the estimate of its cost.
      counts: visits_BIJ, how often each tile is computed by all heads, is a last result; only where it is interpreted.
    """
    sizes: dict[str, int] = {}
    for key, x in inputs.items():
        for letter, size in zip(_letters(key), x.shape, strict=True):
            assert sizes.setdefault(letter, size) == size, f"{key} has {letter} = {size}, others {sizes[letter]}"
    listed = walk.visits()
    scalars = Scalars(*listed[:4], walk.plan.q_places_I, walk.plan.kv_places_J)
    cost = _cost(sizes, matmuls, [*inputs.values(), *outputs.values()])
    if counts:
        shape = (sizes["B"], len(scalars.q_places), len(scalars.kv_places))
        outputs = {**outputs, "visits_": jax.ShapeDtypeStruct(shape, jnp.int32)}
    names = [key.rpartition("_")[0] for key in (*inputs, *outputs)] + list(scratch)

    def body(*references: Any) -> None:
        named = dict(zip(names, references[len(scalars) :], strict=True))
        step = walk.step(sizes["G"], Scalars(*references[: len(scalars)]), named.pop("visits", None))
        kernel(step, **named)

    grid = {"K": sizes["K"], "G": sizes["G"], "W": listed.count}
    return pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=tuple(grid[axis] for axis in walk.axes),
            in_specs=[walk.block(key, x.shape) for key, x in inputs.items()],
            out_specs=[walk.block(key, x.shape) for key, x in outputs.items()],
            scratch_shapes=list(scratch.values()),
        ),
        out_shape=list(outputs.values()),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel" if walk.axes == "KGW" else "arbitrary", "arbitrary")
        ),
        cost_estimate=cost,
        name=name,
        interpret=interpret,
    )(*scalars, *inputs.values())


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
