"""Attention over a key/value cache, a part at a time: time grows with what was written, not with what would fit."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from hcxjax.kernels.reference import MASKED
from hcxjax.protocols import Array
from hcxjax.shapes import shaped

PART = 128
"""Keys read at a time, or fewer where the cache's capacity is no multiple of it."""


ROWS = 4
"""Rows on a CPU that go through a cache of several parts together, as far as the farthest of them: short texts are soon
done. On accelerators all rows go together, because small steps one after another would leave them idle."""


@shaped
def cached_attention(
    q_BTNH: Array,
    positions_BT: Array,
    read: Callable[[int, int, Array, int], tuple[Array, Array]],
    capacity: int,
    scale: float,
) -> Array:
    """softmax(q k^T · scale) v over the keys at positions up to each query's own; key s of a row is its position s.

    The softmax is carried from part to part as in Milakov & Gimelshein 2018, arXiv:1805.02867, algorithm 3. A part that
    a row does not see leaves what is carried as it was, bit for bit: how far the other rows have come changes nothing.

    Args:
      read: (row, rows, start, size) → k_BKSH, v_BKSH of `size` positions from `start`, of `rows` rows from `row`.
      capacity: positions that the cache has.
    Returns: o_BTNH in q's dtype; scores and sums are float32.
    """
    batch = len(q_BTNH)
    apart = capacity > math.gcd(PART, capacity) and batch % ROWS == 0
    rows = ROWS if apart and jax.default_backend() == "cpu" and not _sharded() else batch
    done = [
        _through(
            q_BTNH[row : row + rows] * scale,
            positions_BT[row : row + rows],
            functools.partial(read, row, rows),
            capacity,
        )
        for row in range(0, batch, rows)
    ]
    return jnp.concatenate(done) if len(done) > 1 else done[0]


def _sharded() -> bool:
    """Are there several devices? Rows then lie on different ones."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1


def _through(
    q_BTNH: Array, positions_BT: Array, read: Callable[[Array, int], tuple[Array, Array]], capacity: int
) -> Array:
    batch, length, heads, width = q_BTNH.shape
    size = math.gcd(PART, capacity)
    kv_heads = jax.eval_shape(lambda: read(jnp.int32(0), size))[0].shape[1]
    q_BKGTH = q_BTNH.reshape(batch, length, kv_heads, -1, width).transpose(0, 2, 3, 1, 4)

    def part(number: Array, carried: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        top_BKGT1, total_BKGT1, o_BKGTH = carried
        start = number * size
        k_BKSH, v_BKSH = read(start, size)
        s_BKGTS = jnp.einsum("BKGTH,BKSH->BKGTS", q_BKGTH, k_BKSH, preferred_element_type=jnp.float32)
        seen_BTS = start + jnp.arange(size) <= positions_BT[..., None]
        s_BKGTS = jnp.where(seen_BTS[:, None, None], s_BKGTS, MASKED)
        # What no query of the row sees may be anything that an earlier text left, and 0 times NaN would be NaN.
        v_BKSH = jnp.where(jnp.any(seen_BTS, axis=1)[:, None, :, None], v_BKSH, 0)
        above_BKGT1 = jnp.maximum(top_BKGT1, jnp.max(s_BKGTS, axis=-1, keepdims=True))
        p_BKGTS = jnp.exp(s_BKGTS - above_BKGT1)
        shrink_BKGT1 = jnp.exp(top_BKGT1 - above_BKGT1)
        total_BKGT1 = total_BKGT1 * shrink_BKGT1 + jnp.sum(p_BKGTS, axis=-1, keepdims=True)
        new_BKGTH = jnp.einsum(
            "BKGTS,BKSH->BKGTH", p_BKGTS.astype(v_BKSH.dtype), v_BKSH, preferred_element_type=jnp.float32
        )
        return above_BKGT1, total_BKGT1, o_BKGTH * shrink_BKGT1 + new_BKGTH

    ones_BKGT1 = jnp.ones((batch, kv_heads, heads // kv_heads, length, 1), jnp.float32)
    nothing = (ones_BKGT1 * MASKED, ones_BKGT1 * 0, jnp.zeros(q_BKGTH.shape, jnp.float32))
    parts = jnp.minimum(jnp.max(positions_BT), capacity - 1) // size + 1
    _, total_BKGT1, o_BKGTH = jax.lax.fori_loop(0, parts, part, nothing)
    # The first part holds position 0, which every query sees: no total is 0.
    o_BTNH = (o_BKGTH / total_BKGT1).transpose(0, 3, 1, 2, 4).reshape(q_BTNH.shape)
    return o_BTNH.astype(q_BTNH.dtype)
