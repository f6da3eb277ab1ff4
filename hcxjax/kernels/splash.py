"""Attention by splash, the TPU kernel that comes with jax. It skips what is not causal; other documents it masks."""

import math
from typing import cast

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from hcxjax.kernels.plan import AttentionPlan, Tile
from hcxjax.kernels.rotary import Angles
from hcxjax.protocols import Array
from hcxjax.shapes import shaped


@shaped
def splash_attention(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    plan: AttentionPlan,
    *,
    scale: float,
    angles: Angles | None = None,
    interpret: bool = False,
) -> tuple[Array, None]:
    """As `reference_attention`, of whole rows. For remat o and the log-sum-exp are both named 'attention'.

    Args:
      interpret: as of `pallas_call`, to run on a CPU; for tests.
    Returns: o_BTNH in q's dtype, 0 for padding.
    Raises:
      ValueError: keys are not those of the queries' own rows.
    """
    assert angles is None
    length, heads = q_BTNH.shape[1:3]
    if k_BSKH.shape[1] != length:
        raise ValueError(
            f"attention backend 'splash' (DecoderConfig.attention) takes whole rows, and here {length} queries see "
            f"{k_BSKH.shape[1]} keys"
        )
    fill = -length % math.lcm(*plan.tile)
    whole = length + fill
    ids_BT = jnp.pad(plan.q_segments_BT, ((0, 0), (0, fill)))
    q_BNTH, k_BKTH, v_BKTH = (
        jnp.pad(x, ((0, 0), (0, fill), (0, 0), (0, 0))).swapaxes(1, 2) for x in (q_BTNH * scale, k_BSKH, v_BSKH)
    )
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([masks.CausalMask((whole, whole))] * heads),
        block_sizes=_block_sizes(plan.tile),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name="attention",
        interpret=interpret,
    )
    o_BNTH = cast(Array, jax.vmap(kernel)(q_BNTH, k_BKTH, v_BKTH, splash.SegmentIds(ids_BT, ids_BT)))
    # To splash padding is a document as any other.
    o_BTNH = jnp.where(ids_BT[..., None, None] > 0, o_BNTH.swapaxes(1, 2), 0)
    return o_BTNH[:, :length], None


def _block_sizes(tile: Tile) -> splash.BlockSizes:
    """The same in every kernel; the fused backward kernel would need memory that grows with the row's square."""
    queries, keys = tile
    return splash.BlockSizes(
        block_q=queries,
        block_kv=keys,
        block_kv_compute=keys,
        block_q_dkv=queries,
        block_kv_dkv=keys,
        block_kv_dkv_compute=keys,
        block_q_dq=queries,
        block_kv_dq=keys,
        use_fused_bwd_kernel=False,
    )
