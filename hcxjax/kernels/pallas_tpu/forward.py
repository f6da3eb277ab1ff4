"""The forward kernel: softmax(q k^T) v of a block of queries, as keys and values are streamed past it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from hcxjax.kernels.pallas_tpu.grid import Step, Walk, call
from hcxjax.kernels.pallas_tpu.tile import LANES, LOG2E, column, dot, folded, masked, rotated, spread
from hcxjax.kernels.plan import AttentionPlan
from hcxjax.kernels.reference import MASKED
from hcxjax.kernels.rotary import Angles
from hcxjax.protocols import Array
from hcxjax.shapes import shaped


@shaped
def forward(
    q_BKGTH: Array,
    k_BKSH: Array,
    v_BKSH: Array,
    plan: AttentionPlan,
    *,
    scale: float,
    angles: Angles | None,
    interpret: Any,
    counts: bool = False,
) -> tuple[Array, ...]:
    """(o_BKGTH, lse_BKGT) of whole blocks, and where visits are counted visits_BIJ.

    Source: Dao 2023, arXiv:2307.08691, algorithm 1. Deviation: sums are kept apart by lane until the last tile.
    """
    queries, keys = plan.tile
    lanes, width = min(LANES, keys), q_BKGTH.shape[-1]
    inputs = {"q_BKGTH": q_BKGTH, "k_BKSH": k_BKSH, "v_BKSH": v_BKSH, **segments(plan), **named(angles)}
    sums_BKG1T = jax.ShapeDtypeStruct((*q_BKGTH.shape[:3], 1, q_BKGTH.shape[3]), jnp.float32)
    o_BKGTH, lse_BKG1T, *visits = call(
        functools.partial(_kernel, scale=scale),
        Walk(plan, "queries"),
        inputs,
        outputs={"o_BKGTH": jax.ShapeDtypeStruct(q_BKGTH.shape, q_BKGTH.dtype), "lse_BKG1T": sums_BKG1T},
        scratch={
            "turned": pltpu.VMEM((queries, width), q_BKGTH.dtype),
            "q_column": pltpu.VMEM((queries, lanes), jnp.int32),
            "top": pltpu.VMEM((queries, lanes), jnp.float32),
            "total": pltpu.VMEM((queries, lanes), jnp.float32),
            "sum": pltpu.VMEM((queries, width), jnp.float32),
        },
        matmuls=2,
        name="attention_forward",
        interpret=interpret,
        counts=counts,
    )
    return o_BKGTH, lse_BKG1T[..., 0, :], *visits


def segments(plan: AttentionPlan) -> dict[str, Array]:
    """Of queries and keys as rows; padding is 0 on one side and −1 on the other, so that it equals nothing."""
    kv_segments_BS = jnp.where(plan.kv_segments_BS == 0, -1, plan.kv_segments_BS)
    return {"q_segments_B1T": plan.q_segments_BT[:, None], "kv_segments_B1S": kv_segments_BS[:, None]}


def named(angles: Angles | None) -> dict[str, Array]:
    """Of queries, where they are turned."""
    return {} if angles is None else {"cos_BTE": angles[0], "sin_BTE": angles[1]}


def turn(q: Any, turned: Any, cos: Any, sin: Any, scale: float) -> None:
    """Queries as the kernels read them: turned, and times what makes exp2(q k) of exp(scale q k)."""
    q_TH = q[...].astype(jnp.float32)
    if cos is not None:
        q_TH = rotated(q_TH, cos[...], sin[...])
    turned[...] = (q_TH * (scale * LOG2E)).astype(turned.dtype)


def _kernel(
    step: Step,
    *,
    q: Any,
    k: Any,
    v: Any,
    q_segments: Any,
    kv_segments: Any,
    o: Any,
    lse: Any,
    turned: Any,
    q_column: Any,
    top: Any,
    total: Any,
    sum: Any,
    scale: float,
    cos: Any = None,
    sin: Any = None,
) -> None:
    lanes = top.shape[1]

    @pl.when(step.first)
    def _begin() -> None:
        turn(q, turned, cos, sin, scale)
        q_column[...] = column(q_segments[...], lanes)
        top[...] = jnp.full_like(top, MASKED)
        total[...] = jnp.zeros_like(total)
        sum[...] = jnp.zeros_like(sum)

    @step.compute
    def _tile(is_masked: bool) -> None:
        s_TS = dot(turned[...], k[...], axes=(1, 1))
        if is_masked:
            s_TS = masked(s_TS, q_column[...], kv_segments[...], step.offset, queries_down=True)
        before, keys = top[...], s_TS.shape[1]
        top[...] = jnp.maximum(before, jnp.max(s_TS, axis=1, keepdims=True))
        p_TS = jnp.exp2(s_TS - spread(top[...], keys))
        shrink = jnp.exp2(before - top[...])
        total[...] = total[...] * shrink + folded(p_TS, lanes)
        sum[...] = sum[...] * spread(shrink, sum.shape[1]) + dot(p_TS.astype(v.dtype), v[...], axes=(1, 0))

    @pl.when(step.last)
    def _end() -> None:
        all_lanes = jnp.broadcast_to(jnp.sum(total[...], axis=1, keepdims=True), total.shape)
        seen = all_lanes != 0  # of a query that does see something the sum is 1 or more, or NaN
        o[...] = (sum[...] * spread(jnp.where(seen, 1 / all_lanes, 0), sum.shape[1])).astype(o.dtype)
        lse_column = jnp.where(seen, (top[...] + jnp.log2(all_lanes)) / LOG2E, MASKED)
        lse[...] = lse_column.T[:1]
