"""Attention for any device: short rows at once, longer ones tile by tile where the plan has an allowed pair."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from hcxjax.kernels.plan import AttentionPlan
from hcxjax.kernels.reference import MASKED
from hcxjax.kernels.rotary import Angles
from hcxjax.kernels.xla_tiles import tiled_attention
from hcxjax.protocols import Array
from hcxjax.shapes import shaped


@shaped
def xla_attention(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, plan: AttentionPlan, *, scale: float, angles: Angles | None = None
) -> tuple[Array, Array]:
    """As `reference_attention`, in the inputs' precision with float32 scores.

    Returns: (o_BTNH in q's dtype, lse_BNT).
    """
    assert angles is None, "queries come turned: Backend.rotates is False"
    batch, length, heads, width = q_BTNH.shape
    # Heads first: on CPU a matmul over transposed ones is several times slower.
    q_BKGTH = (q_BTNH * scale).reshape(batch, length, k_BSKH.shape[2], -1, width).transpose(0, 2, 3, 1, 4)
    k_BKSH, v_BKSH = k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)
    one_tile = length <= plan.tile.queries and k_BSKH.shape[1] <= plan.tile.keys
    o_BKGTH, lse_BKGT = (_at_once if one_tile else tiled_attention)(q_BKGTH, k_BKSH, v_BKSH, plan)
    return o_BKGTH.transpose(0, 3, 1, 2, 4).reshape(q_BTNH.shape), lse_BKGT.reshape(batch, heads, length)


def _at_once(q_BKGTH: Array, k_BKSH: Array, v_BKSH: Array, plan: AttentionPlan) -> tuple[Array, Array]:
    mask_BTS = plan.mask()
    s_BKGTS = jnp.einsum("BKGTH,BKSH->BKGTS", q_BKGTH, k_BKSH, preferred_element_type=jnp.float32)
    s_BKGTS = jnp.where(mask_BTS[:, None, None], s_BKGTS, MASKED)
    # Weights are normalised after the product with v: a [T, H] division in place of a [T, S] one.
    top_BKGT1 = jax.lax.stop_gradient(jnp.max(s_BKGTS, axis=-1, keepdims=True))
    p_BKGTS = jnp.exp(s_BKGTS - top_BKGT1)
    total_BKGT1 = jnp.sum(p_BKGTS, axis=-1, keepdims=True)
    o_BKGTH = jnp.einsum("BKGTS,BKSH->BKGTH", p_BKGTS.astype(v_BKSH.dtype), v_BKSH)
    seen_BT = jnp.any(mask_BTS, axis=-1)
    o_BKGTH = o_BKGTH * (seen_BT[:, None, None, :, None] / total_BKGT1)
    lse_BKGT = (top_BKGT1 + jnp.log(total_BKGT1))[..., 0]
    return checkpoint_name(o_BKGTH.astype(q_BKGTH.dtype), "attention"), checkpoint_name(lse_BKGT, "attention_lse")
