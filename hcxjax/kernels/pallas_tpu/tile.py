"""What the kernels do with one tile: products, masks, rotations, and columns that are spread over lanes.

Logarithms and exponentials are to base 2, as the hardware has them: log2(e) goes into the queries with the scale.
"""

import functools
import math

import jax
import jax.numpy as jnp

from hcxjax.protocols import Array

LANES = 128
LOG2E = math.log2(math.e)


def dot(x: Array, y: Array, axes: tuple[int, int]) -> Array:
    """The product over one axis of each, in float32; in jax's default matmul precision."""
    contracted = ((axes[:1], axes[1:]), ((), ()))
    return jax.lax.dot_general(x, y, contracted, preferred_element_type=jnp.float32)


def column(row_1T: Array, lanes: int) -> Array:
    """A row of numbers as a column of rows that are alike, [T, lanes]."""
    return jnp.broadcast_to(row_1T, (lanes, row_1T.shape[1])).T


def spread(column: Array, width: int) -> Array:
    """[T, lanes] → [T, width]."""
    lanes = column.shape[1]
    return column[:, :width] if width <= lanes else jnp.tile(column, (1, width // lanes))


def folded(x_TS: Array, lanes: int) -> Array:
    """Sums of every lanes-th column, [T, lanes]: registers are added, and nothing moves between lanes."""
    return functools.reduce(jnp.add, jnp.split(x_TS, x_TS.shape[1] // lanes, axis=1))


def rotated(x_TH: Array, cos_TH: Array, sin_TH: Array) -> Array:
    """`hcxjax.kernels.rotary.rotate` of one head, in float32; with −sin, back."""
    first, second = jnp.split(x_TH, 2, axis=1)
    return jnp.concatenate([first * cos_TH - second * sin_TH, second * cos_TH + first * sin_TH], axis=1)


def masked(s: Array, column: Array, row: Array, offset: Array, *, queries_down: bool) -> Array:
    """Scores whose keys are of another document, or after the query, become −inf: exp2(−inf − MASKED) is 0.

    Args:
      s: [T, S] where queries go down, [S, T] where they go across.
      column, row: segments of what goes down and of what goes across.
      offset: the place of the first query less that of the first key.
    """
    down = jax.lax.broadcasted_iota(jnp.int32, column.shape, 0)
    across = jax.lax.broadcasted_iota(jnp.int32, (1, s.shape[1]), 1)
    if queries_down:
        causal = across <= spread(down + offset, s.shape[1])
    else:
        causal = across >= spread(down - offset, s.shape[1])
    return jnp.where((spread(column, s.shape[1]) == row) & causal, s, -jnp.inf)
