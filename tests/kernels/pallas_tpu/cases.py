"""Rows and arrays that the tests of the TPU kernels share, and ways to run them: interpreted, on a CPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from hcxjax.kernels.pallas_tpu.attention import pallas_tpu_attention
from hcxjax.kernels.plan import Tile, attention_plan
from hcxjax.kernels.reference import reference_attention

SCALE = 0.3
TILE = Tile(16, 16)
NAMES = ("o", "lse", "dq", "dk", "dv")
planned = jax.jit(attention_plan, static_argnums=1)
interpreted = functools.partial(pallas_tpu_attention, interpret=True)


def packings(rows, length, seed=0, tile=TILE):
    """Segment ids: one whole document, documents of one token, ends on and off a tile's edge, nothing but padding,
    then random ones, most with a padding tail."""
    rng = np.random.default_rng(seed)
    edges, off = [tile.queries] * (length // tile.queries), [tile.queries - 1, 2, 1]
    sizes = [[length], [1] * length, edges, off, []][:rows]
    while len(sizes) < rows:
        cuts = rng.choice(np.arange(1, length), size=rng.integers(1, min(9, length)), replace=False)
        parts = np.diff([0, *sorted(cuts), length]).tolist()
        sizes.append(parts if rng.random() < 0.3 else parts[:-1])
    segments = np.zeros((rows, length), np.int32)
    for row, parts in zip(segments, sizes, strict=True):
        ids = np.repeat(np.arange(1, len(parts) + 1), parts)[:length]
        row[: len(ids)] = ids
    return segments


def arrays(segments, heads, kv_heads, width, dtype="float32", seed=0):
    """q, k, v, the angles of positions, and gradients of o and, where a query sees something, of lse."""
    rng, (rows, length) = np.random.default_rng(seed), segments.shape
    q, k, v, do = (
        jnp.asarray(rng.normal(size=(rows, length, n, width)), dtype) for n in (heads, kv_heads, kv_heads, heads)
    )
    turns = rng.uniform(0, 6, size=(rows, length, width // 2)).astype(np.float32)
    dlse = rng.normal(size=(rows, heads, length)) * (segments > 0)[:, None]
    return (q, k, v), (jnp.cos(turns), jnp.sin(turns)), (do, jnp.asarray(dlse, jnp.float32))


@functools.partial(jax.jit, static_argnames="kernel")
def output_and_gradients(qkv, angles, gradients, plan, kernel=interpreted):
    (o, lse), backward = jax.vjp(lambda *qkv: kernel(*qkv, plan, scale=SCALE, angles=angles), *qkv)
    return o, lse * (plan.q_segments_BT > 0)[:, None], *backward(gradients)


def exact(qkv, angles, gradients, plan):
    """The dense reference, in float32."""
    qkv, gradients = jax.tree.map(lambda x: x.astype(jnp.float32), (qkv, gradients))
    return output_and_gradients(qkv, angles, gradients, plan, kernel=reference_attention)
