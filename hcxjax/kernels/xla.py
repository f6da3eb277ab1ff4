"""Attention for any device, in chunks of queries: memory grows with chunk x keys, not with queries x keys."""

import functools

import jax
import jax.numpy as jnp

from hcxjax.kernels.plan import AttentionPlan
from hcxjax.kernels.reference import MASKED
from hcxjax.kernels.rotary import Angles
from hcxjax.protocols import Array
from hcxjax.shapes import shaped

CHUNK = 512
"""Queries a chunk. Rows up to this long are done at once."""

MOST_CHUNKS = 16
"""Chunks are unrolled, because each has keys of its own; more of them would only make the program longer."""


@shaped
def xla_attention(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, plan: AttentionPlan, *, scale: float, angles: Angles | None = None
) -> tuple[Array, None]:
    """As `reference_attention`, in the inputs' precision with float32 scores.

    Each chunk of queries reads only the keys up to its end (where the plan is aligned) and is recomputed in the
    backward pass. Returns: o_BTNH in q's dtype.
    """
    assert angles is None
    length = q_BTNH.shape[1]
    if length <= CHUNK:
        return _chunk(q_BTNH, k_BSKH, v_BSKH, plan.mask(), scale=scale), None
    size = max(CHUNK, -(-length // MOST_CHUNKS))
    chunk = jax.checkpoint(functools.partial(_chunk, scale=scale))
    outputs = []
    for start in range(0, length, size):
        queries = slice(start, min(start + size, length))
        keys = slice(None)
        outputs.append(chunk(q_BTNH[:, queries], k_BSKH[:, keys], v_BSKH[:, keys], plan.mask(queries, keys)))
    return jnp.concatenate(outputs, axis=1), None


def _chunk(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask_BTS: Array, *, scale: float) -> Array:
    batch, length, heads, width = q_BTNH.shape
    groups = heads // k_BSKH.shape[2]
    # Batch dimensions first: on CPU a matmul over transposed ones is several times slower.
    q_BKGTH = (q_BTNH * scale).reshape(batch, length, -1, groups, width).transpose(0, 2, 3, 1, 4)
    k_BKSH, v_BKSH = k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)
    s_BKGTS = jnp.einsum("BKGTH,BKSH->BKGTS", q_BKGTH, k_BKSH, preferred_element_type=jnp.float32)
    s_BKGTS = jnp.where(mask_BTS[:, None, None], s_BKGTS, MASKED)
    # Weights are normalised after the product with v: a [T, H] division in place of a [T, S] one.
    top_BKGT1 = jax.lax.stop_gradient(jnp.max(s_BKGTS, axis=-1, keepdims=True))
    p_BKGTS = jnp.exp(s_BKGTS - top_BKGT1)
    total_BKGT1 = jnp.sum(p_BKGTS, axis=-1, keepdims=True)
    o_BKGTH = jnp.einsum("BKGTS,BKSH->BKGTH", p_BKGTS.astype(v_BKSH.dtype), v_BKSH)
    seen_BT = jnp.any(mask_BTS, axis=-1)
    o_BKGTH = o_BKGTH * (seen_BT[:, None, None, :, None] / total_BKGT1)
    return o_BKGTH.transpose(0, 3, 1, 2, 4).reshape(q_BTNH.shape).astype(q_BTNH.dtype)
