"""Attention for any device, in chunks of queries: memory grows with chunk x keys, not with queries x keys."""

import functools

import jax
import jax.numpy as jnp

from hcxjax.kernels.plan import AttentionPlan
from hcxjax.kernels.reference import MASKED
from hcxjax.protocols import Array
from hcxjax.shapes import shaped

CHUNK = 512
"""Queries a chunk. Rows up to this long are done at once."""

MOST_CHUNKS = 16
"""Chunks are unrolled, because each has keys of its own; more of them would only make the program longer."""


@shaped
def xla_attention(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, plan: AttentionPlan, *, scale: float) -> Array:
    """As `reference_attention`, in the inputs' precision with float32 scores.

    Each chunk of queries reads only the keys up to its end (where the plan is aligned) and is recomputed in the
    backward pass. Returns: o_BTNH in q's dtype.
    """
    length = q_BTNH.shape[1]
    if length <= CHUNK:
        return _chunk(q_BTNH, k_BSKH, v_BSKH, plan.mask(slice(None), slice(None)), scale=scale)
    size = max(CHUNK, -(-length // MOST_CHUNKS))
    chunk = jax.checkpoint(functools.partial(_chunk, scale=scale))
    outputs = []
    for start in range(0, length, size):
        queries = slice(start, min(start + size, length))
        keys = slice(0, queries.stop) if plan.aligned else slice(None)
        outputs.append(chunk(q_BTNH[:, queries], k_BSKH[:, keys], v_BSKH[:, keys], plan.mask(queries, keys)))
    return jnp.concatenate(outputs, axis=1)


def _chunk(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask_BTS: Array, *, scale: float) -> Array:
    batch, length, heads, width = q_BTNH.shape
    groups = heads // k_BSKH.shape[2]
    q_BTKGH = (q_BTNH * scale).reshape(batch, length, -1, groups, width)
    s_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
    s_BKGTS = jnp.where(mask_BTS[:, None, None], s_BKGTS, MASKED)
    # Weights are normalised after the product with v: a [T, H] division in place of a [T, S] one.
    top_BKGT1 = jax.lax.stop_gradient(jnp.max(s_BKGTS, axis=-1, keepdims=True))
    p_BKGTS = jnp.exp(s_BKGTS - top_BKGT1)
    total_BTKG = jnp.einsum("BKGTS->BTKG", p_BKGTS)
    o_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", p_BKGTS.astype(v_BSKH.dtype), v_BSKH)
    seen_BT = jnp.any(mask_BTS, axis=-1)
    share_BTKG = seen_BT[:, :, None, None] / total_BTKG
    return (o_BTKGH * share_BTKG[..., None]).astype(q_BTNH.dtype).reshape(q_BTNH.shape)
