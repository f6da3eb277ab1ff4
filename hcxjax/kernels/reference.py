"""Dense attention in float32 at highest precision: the oracle that every backend is compared with."""

import jax
import jax.numpy as jnp

from hcxjax.kernels.plan import AttentionPlan
from hcxjax.kernels.rotary import Angles, rotate
from hcxjax.protocols import Array
from hcxjax.shapes import shaped

MASKED = -1e30
"""Added in place of −inf, whose softmax over a row without keys would be NaN."""


@shaped
def reference_attention(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, plan: AttentionPlan, *, scale: float, angles: Angles | None = None
) -> tuple[Array, Array]:
    """softmax(q k^T · scale + mask) v, each group of N/K query heads sharing a KV head.

    Returns: o_BTNH in q's dtype, 0 for queries that see no key (padding); lse_BNT, float32.
    Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; grouped queries: Ainslie et al. 2023, arXiv:2305.13245.
    """
    batch, length, heads, width = q_BTNH.shape
    groups = heads // k_BSKH.shape[2]
    if angles is not None:
        q_BTNH = rotate(q_BTNH, angles)
    q_BTKGH = q_BTNH.astype(jnp.float32).reshape(batch, length, -1, groups, width)
    k_BSKH, v_BSKH = k_BSKH.astype(jnp.float32), v_BSKH.astype(jnp.float32)
    with jax.default_matmul_precision("highest"):
        s_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH) * scale
        mask_BTS = plan.mask()
        s_BKGTS = jnp.where(mask_BTS[:, None, None], s_BKGTS, MASKED)
        p_BKGTS = jax.nn.softmax(s_BKGTS, axis=-1) * mask_BTS[:, None, None]
        o_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", p_BKGTS, v_BSKH)
    lse_BNT = jax.nn.logsumexp(s_BKGTS, axis=-1).reshape(batch, heads, length)
    return o_BTKGH.reshape(q_BTNH.shape).astype(q_BTNH.dtype), lse_BNT
