"""What a thread block of `pallas_gpu` has of a row, with which blocks it is paired, and which elements are allowed."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hcxjax.kernels.plan import AttentionPlan, Spans, Tile
from hcxjax.kernels.warpgroup import COMPUTING, ROWS, Ref, along, columns, offsets, rows
from hcxjax.protocols import Array

TILE = Tile(COMPUTING * ROWS, COMPUTING * ROWS)
"""What a plan for these kernels is made with."""

BLOCK = COMPUTING * ROWS
"""Queries, or keys, of a thread block."""


class Sides(NamedTuple):
    """The plan as a kernel reads it: arrays outside of it, references to them inside.

    Own is the side that a thread block has a block of, other the side that it goes through.
    """

    own_segments: Array | Ref
    own_places: Array | Ref
    other_segments: Array | Ref
    other_places: Array | Ref
    spans: Array | Ref


@dataclasses.dataclass(frozen=True)
class Whole:
    """Rows filled up to whole blocks. Padding among the queries is document -1, which no key is of."""

    by_queries: Sides
    by_keys: Sides

    @classmethod
    def of(cls, plan: AttentionPlan) -> "Whole":
        """As planned."""
        q_segments_BT = jnp.where(plan.q_segments_BT > 0, plan.q_segments_BT, -1)
        queries = filled(q_segments_BT, len(plan.q_places_I), filling=-1), plan.q_places_I
        keys = filled(plan.kv_segments_BS, len(plan.kv_places_J)), plan.kv_places_J
        return cls(Sides(*queries, *keys, _stacked(plan.kv_spans)), Sides(*keys, *queries, _stacked(plan.q_spans)))

    def queries(self, x: Array, axis: int = 1) -> Array:
        """An array of the queries, filled up likewise."""
        return filled(x, len(self.by_queries.own_places), axis)

    def keys(self, x: Array) -> Array:
        """An array of the keys, filled up likewise."""
        return filled(x, len(self.by_keys.own_places))


def filled(x: Array, blocks: int, axis: int = 1, filling: int = 0) -> Array:
    """The array with so many whole blocks along an axis."""
    missing = blocks * BLOCK - x.shape[axis]
    return jnp.pad(x, [(0, missing * (number == axis)) for number in range(x.ndim)], constant_values=filling)


def _stacked(spans: Spans) -> Array:
    """[B, 4, blocks]: start, stop, plain_start, plain_stop."""
    return jnp.stack(spans, axis=1).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Block:
    """Where a thread block is.

    Attributes:
      row, head, number: of the batch, its head, its block.
      warpgroup: which of the thread block's own is running.
      queries: is its own side that of the queries? Then these are down its tiles, and else across.
      start, stop, plain_start, plain_stop: its span of the other side's blocks.
    """

    sides: Sides
    queries: bool
    row: Array
    head: Array
    number: Array
    warpgroup: Array
    start: Array
    stop: Array
    plain_start: Array
    plain_stop: Array

    @classmethod
    def here(cls, sides: Sides, *, queries: bool) -> "Block":
        """Of the thread block that is running."""
        row, head, number, warpgroup = (jax.lax.axis_index(name) for name in ("row", "head", "block", "warpgroup"))
        # Blocks with most to do begin first: the first keys, the last queries.
        number = sides.spans.shape[2] - 1 - number if queries else number
        span = (sides.spans[row, edge, number] for edge in range(4))
        return cls(sides, queries, row, head, number, warpgroup, *span)

    @property
    def mine(self) -> slice | pl.Slice:
        """The running warpgroup's own rows."""
        return pl.ds(self.number * BLOCK + self.warpgroup * ROWS, ROWS)

    def masked(self, tile: Array, other: Array, first: int, filling: float) -> Array:
        """The tile with `filling` where the plan does not allow it; nothing is compared where it is seen whole.

        Args:
          other: number of the other side's block that is across the tile, from its place `first` on.
        """

        def compared() -> Array:
            across = pl.ds(other * BLOCK + first, tile.shape[1])
            own = rows(self.sides.own_segments.at[self.row, self.mine])
            others = columns(self.sides.other_segments.at[self.row, across])
            own_first = self.sides.own_places[self.number] + self.warpgroup * ROWS
            own_place = own_first + offsets(tile.shape, 0)
            other_place = self.sides.other_places[other] + first + offsets(tile.shape, 1)
            before = other_place <= own_place if self.queries else own_place <= other_place
            same = along(own, tile.shape, 0) == along(others, tile.shape, 1)
            return jnp.where(same & before, tile, filling)

        plain = (other >= self.plain_start) & (other < self.plain_stop)
        return jax.lax.cond(plain, lambda: tile, compared)
