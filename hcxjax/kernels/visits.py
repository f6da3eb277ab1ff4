"""The tiles of a plan one after another: for kernels whose grid is as long as the list of what they visit."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hcxjax.protocols import Array
from hcxjax.shapes import shaped

FIRST, LAST, NEEDED, PLAIN = 1, 2, 4, 8
"""Bits of a visit: the first, the last of its held block; the tile holds a pair that is allowed; it holds no other."""


class Visits(NamedTuple):
    """A block is held while those it is paired with are streamed past it. int32; the first `count` of W are in use."""

    rows_W: Array
    held_W: Array
    streamed_W: Array
    bits_W: Array
    count: Array


@shaped
def visits(start_BI: Array, stop_BI: Array, plain_start_BI: Array, plain_stop_BI: Array, streamed: int) -> Visits:
    """The tiles of spans, whose blocks are the held ones, row by row.

    A block that is paired with nothing is visited once, without the bit NEEDED: its results are zeros to be written.

    Args:
      streamed: blocks of the other side.
    """
    rows, held = start_BI.shape
    start_I, stop_I, plain_start_I, plain_stop_I = (
        bound_BI.reshape(-1) for bound_BI in (start_BI, stop_BI, plain_start_BI, plain_stop_BI)
    )
    count_I = jnp.maximum(stop_I - start_I, 1)
    end_I, length = jnp.cumsum(count_I), rows * held * streamed
    block_W = jnp.repeat(jnp.arange(rows * held), count_I, total_repeat_length=length)
    number_W = jnp.arange(length) - (end_I - count_I)[block_W]
    streamed_W = jnp.minimum(start_I[block_W] + number_W, streamed - 1)
    bits_W = (
        FIRST * (number_W == 0)
        + LAST * (number_W == count_I[block_W] - 1)
        + NEEDED * (start_I < stop_I)[block_W]
        + PLAIN * ((plain_start_I[block_W] <= streamed_W) & (streamed_W < plain_stop_I[block_W]))
    )
    listed = Visits(block_W // held, block_W % held, streamed_W, bits_W, end_I[-1])
    return jax.tree.map(lambda x: x.astype(jnp.int32), listed)
