"""The tiles of a plan one after another: for kernels whose grid is as long as the list of what they visit."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hcxjax.protocols import Array
from hcxjax.shapes import shaped

FIRST, LAST, NEEDED, PLAIN = 1, 2, 4, 8
"""Bits of a visit: the first, the last of its held block; the tile holds a pair that is allowed; it holds no other."""


class Visits(NamedTuple):
    """A block is held while those it is paired with are streamed past it. int32; only the first `count` of W are."""

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
    end_I = jnp.cumsum(count_I)
    begin_I, block_I, number_W = end_I - count_I, jnp.arange(rows * held), jnp.arange(rows * held * streamed)
    here_WI = (begin_I <= number_W[:, None]) & (number_W[:, None] < end_I)

    def of_block(x_I: Array) -> Array:
        """x_W. Sums of one number each: XLA makes a single pass of all of these, as it would not of gathers."""
        return jnp.sum(jnp.where(here_WI, x_I, 0), axis=1)

    streamed_W = number_W + of_block(start_I - begin_I)
    bits_W = (
        FIRST * (number_W == of_block(begin_I))
        + LAST * (number_W == of_block(end_I) - 1)
        + NEEDED * of_block(start_I < stop_I)
        + PLAIN * ((of_block(plain_start_I) <= streamed_W) & (streamed_W < of_block(plain_stop_I)))
    )
    listed = Visits(of_block(block_I // held), of_block(block_I % held), streamed_W, bits_W, end_I[-1])
    return jax.tree.map(lambda x: x.astype(jnp.int32), listed)
