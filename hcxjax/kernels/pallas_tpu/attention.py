"""Attention on TPU by three kernels: forward, the gradient of queries, and those of keys and values."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from hcxjax.kernels.pallas_tpu.backward import backward
from hcxjax.kernels.pallas_tpu.forward import forward
from hcxjax.kernels.pallas_tpu.tile import LANES
from hcxjax.kernels.plan import AttentionPlan
from hcxjax.kernels.rotary import Angles
from hcxjax.protocols import Array
from hcxjax.shapes import shaped


@shaped
def pallas_tpu_attention(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    plan: AttentionPlan,
    *,
    scale: float,
    angles: Angles | None = None,
    interpret: Any = False,
) -> tuple[Array, Array]:
    """As `reference_attention`, in the inputs' precision with float32 sums.

    Only tiles that hold an allowed pair are read and computed, forward and backward, and those that hold no other pair
    without a mask. Memory grows with queries + keys. For remat o is named 'attention' and lse 'attention_lse'.

    Args:
      angles: turns the queries; they get no gradient themselves.
      interpret: as of `pallas_call`, to run on a CPU; for tests.
    Returns: o_BTNH in q's dtype; lse_BNT, float32, and −1e30 where a query sees nothing.
    Raises:
      ValueError: a tile that no TPU can take.
    """
    for name, size in plan.tile._asdict().items():
        if size % LANES and not interpret:
            raise ValueError(f"Tile.{name} is {size}; on a TPU it must be a multiple of {LANES} (Backend.tile)")
    return _attention(_Settings(scale, interpret), q_BTNH, k_BSKH, v_BSKH, plan, angles)


class _Settings(NamedTuple):
    scale: float
    interpret: Any


def _outputs(
    settings: _Settings, q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, plan: AttentionPlan, angles: Angles | None
) -> tuple[Array, Array]:
    batch, length, heads, _ = q_BTNH.shape
    o_BKGTH, lse_BKGT = forward(
        _queries(q_BTNH, k_BSKH.shape[2], plan),
        _keys(k_BSKH, plan),
        _keys(v_BSKH, plan),
        _whole(plan),
        angles=_whole_angles(angles, plan),
        **settings._asdict(),
    )
    o_BTNH = _rows(o_BKGTH)[:, :length]
    lse_BNT = lse_BKGT.reshape(batch, heads, -1)[..., :length]
    return checkpoint_name(o_BTNH, "attention"), checkpoint_name(lse_BNT, "attention_lse")


def _forward(settings: _Settings, *inputs: Any) -> tuple[tuple[Array, Array], tuple[Any, ...]]:
    outputs = _outputs(settings, *inputs)
    return outputs, (*inputs, *outputs)


def _backward(settings: _Settings, kept: tuple[Any, ...], gradients: tuple[Array, Array]) -> tuple[Any, ...]:
    q_BTNH, k_BSKH, v_BSKH, plan, angles, o_BTNH, lse_BNT = kept
    (length, _, _), kv_heads = q_BTNH.shape[1:], k_BSKH.shape[2]
    q_BKGTH, o_BKGTH, do_BKGTH = (_queries(x_BTNH, kv_heads, plan) for x_BTNH in (q_BTNH, o_BTNH, gradients[0]))
    lse_BKGT, dlse_BKGT = (_sums(x_BNT, kv_heads, plan) for x_BNT in (lse_BNT, gradients[1]))
    delta_BKGT = jnp.sum(o_BKGTH.astype(jnp.float32) * do_BKGTH.astype(jnp.float32), axis=-1) - dlse_BKGT
    dq_BKGTH, dk_BKSH, dv_BKSH = backward(
        q_BKGTH,
        _keys(k_BSKH, plan),
        _keys(v_BSKH, plan),
        do_BKGTH,
        lse_BKGT,
        delta_BKGT,
        _whole(plan),
        angles=_whole_angles(angles, plan),
        **settings._asdict(),
    )
    dk_BSKH, dv_BSKH = (x_BKSH.swapaxes(1, 2)[:, : k_BSKH.shape[1]] for x_BKSH in (dk_BKSH, dv_BKSH))
    return _rows(dq_BKGTH)[:, :length], dk_BSKH, dv_BSKH, None, None


_attention = jax.custom_vjp(_outputs, nondiff_argnums=(0,))
_attention.defvjp(_forward, _backward)


def _filled(x: Array, axis: int, size: int) -> Array:
    """Filled up with zeros to whole blocks."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % size)
    return jnp.pad(x, widths)


def _queries(q_BTNH: Array, kv_heads: int, plan: AttentionPlan) -> Array:
    q_BTNH = _filled(q_BTNH, 1, plan.tile.queries)
    batch, length, _, width = q_BTNH.shape
    return q_BTNH.reshape(batch, length, kv_heads, -1, width).transpose(0, 2, 3, 1, 4)


def _keys(k_BSKH: Array, plan: AttentionPlan) -> Array:
    return _filled(k_BSKH, 1, plan.tile.keys).swapaxes(1, 2)


def _sums(x_BNT: Array, kv_heads: int, plan: AttentionPlan) -> Array:
    x_BNT = _filled(x_BNT, 2, plan.tile.queries)
    return x_BNT.reshape(x_BNT.shape[0], kv_heads, -1, x_BNT.shape[2])


def _rows(o_BKGTH: Array) -> Array:
    batch, _, _, length, width = o_BKGTH.shape
    return o_BKGTH.transpose(0, 3, 1, 2, 4).reshape(batch, length, -1, width)


def _whole(plan: AttentionPlan) -> AttentionPlan:
    return dataclasses.replace(
        plan,
        q_segments_BT=_filled(plan.q_segments_BT, 1, plan.tile.queries),
        kv_segments_BS=_filled(plan.kv_segments_BS, 1, plan.tile.keys),
    )


def _whole_angles(angles: Angles | None, plan: AttentionPlan) -> Angles | None:
    if angles is None:
        return None
    cos_BTE, sin_BTE = angles
    return _filled(cos_BTE, 1, plan.tile.queries), _filled(sin_BTE, 1, plan.tile.queries)
