"""The backward kernels: one for the gradient of queries, one for those of keys and values, without atomics."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from hcxjax.kernels.pallas_tpu.forward import named, segments, turn
from hcxjax.kernels.pallas_tpu.grid import Step, Walk, call
from hcxjax.kernels.pallas_tpu.tile import LANES, LOG2E, column, dot, masked, rotated, spread
from hcxjax.kernels.plan import AttentionPlan
from hcxjax.kernels.rotary import Angles
from hcxjax.protocols import Array
from hcxjax.shapes import shaped


@shaped
def backward(
    q_BKGTH: Array,
    k_BKSH: Array,
    v_BKSH: Array,
    do_BKGTH: Array,
    lse_BKGT: Array,
    delta_BKGT: Array,
    plan: AttentionPlan,
    *,
    scale: float,
    angles: Angles | None,
    interpret: Any,
    counts: bool = False,
) -> tuple[Array, ...]:
    """(dq_BKGTH, dk_BKSH, dv_BKSH) of whole blocks, and where visits are counted visits_BIJ of both kernels.

    ds = p (do v^T − delta),   dq = scale ds k,   dk = scale ds^T q,   dv = p^T do,   p = exp(scale q k^T − lse)

    Args:
      delta_BKGT: do·o − dlse, with dlse the gradient of lse.
    Source: Dao 2023, arXiv:2307.08691, algorithm 2. Deviations: a kernel holds queries and another holds keys, so that
      sums have one order; lse has a gradient.
    """
    inputs = {
        "k_BKSH": k_BKSH,
        "v_BKSH": v_BKSH,
        "do_BKGTH": do_BKGTH,
        "lse_BKG1T": lse_BKGT[..., None, :] * LOG2E,
        "delta_BKG1T": delta_BKGT[..., None, :],
        **segments(plan),
    }
    run = functools.partial(call, interpret=interpret, counts=counts)
    dq_BKGTH, turned_BKGTH, *q_visits = _gradient_of_queries(run, q_BKGTH, inputs, plan, scale, angles)
    dk_BKSH, dv_BKSH, *kv_visits = _gradients_of_keys(run, turned_BKGTH, inputs, plan)
    return dq_BKGTH, dk_BKSH, dv_BKSH, *q_visits, *kv_visits


def _gradient_of_queries(
    run: Callable[..., list[Array]],
    q_BKGTH: Array,
    inputs: dict[str, Array],
    plan: AttentionPlan,
    scale: float,
    angles: Angles | None,
) -> list[Array]:
    """dq, and the queries as `turn` leaves them: the other kernel would turn a block again at every tile."""
    queries, keys = plan.tile
    columns = (queries, min(LANES, keys))
    shape = jax.ShapeDtypeStruct(q_BKGTH.shape, q_BKGTH.dtype)
    return run(
        functools.partial(_queries_kernel, scale=scale),
        Walk(plan, "queries"),
        {"q_BKGTH": q_BKGTH, **inputs, **named(angles)},
        outputs={"dq_BKGTH": shape, "turned_BKGTH": shape},
        scratch={
            "q_column": pltpu.VMEM(columns, jnp.int32),
            "lse_column": pltpu.VMEM(columns, jnp.float32),
            "delta_column": pltpu.VMEM(columns, jnp.float32),
            "sum": pltpu.VMEM((queries, q_BKGTH.shape[-1]), jnp.float32),
        },
        matmuls=3,
        name="attention_dq",
    )


def _gradients_of_keys(
    run: Callable[..., list[Array]], turned_BKGTH: Array, inputs: dict[str, Array], plan: AttentionPlan
) -> list[Array]:
    queries, keys = plan.tile
    k_BKSH, v_BKSH = inputs["k_BKSH"], inputs["v_BKSH"]
    sums = pltpu.VMEM((keys, k_BKSH.shape[-1]), jnp.float32)
    return run(
        _keys_kernel,
        Walk(plan, "keys"),
        {"q_BKGTH": turned_BKGTH, **inputs},
        outputs={
            "dk_BKSH": jax.ShapeDtypeStruct(k_BKSH.shape, k_BKSH.dtype),
            "dv_BKSH": jax.ShapeDtypeStruct(v_BKSH.shape, v_BKSH.dtype),
        },
        scratch={"kv_column": pltpu.VMEM((keys, min(LANES, queries)), jnp.int32), "dk_sum": sums, "dv_sum": sums},
        matmuls=4,
        name="attention_dkv",
    )


def _queries_kernel(
    step: Step,
    *,
    q: Any,
    k: Any,
    v: Any,
    do: Any,
    lse: Any,
    delta: Any,
    q_segments: Any,
    kv_segments: Any,
    dq: Any,
    turned: Any,
    q_column: Any,
    lse_column: Any,
    delta_column: Any,
    sum: Any,
    scale: float,
    cos: Any = None,
    sin: Any = None,
) -> None:
    @pl.when(step.first)
    def _begin() -> None:
        turn(q, turned, cos, sin, scale)
        for row, spread_out in ((q_segments, q_column), (lse, lse_column), (delta, delta_column)):
            spread_out[...] = column(row[...], spread_out.shape[1])
        sum[...] = jnp.zeros_like(sum)

    @step.compute
    def _tile(is_masked: bool) -> None:
        s_TS = dot(turned[...], k[...], axes=(1, 1))
        keys = s_TS.shape[1]
        if is_masked:
            s_TS = masked(s_TS, q_column[...], kv_segments[...], step.offset, queries_down=True)
        p_TS = jnp.exp2(s_TS - spread(lse_column[...], keys))
        ds_TS = p_TS * (dot(do[...], v[...], axes=(1, 1)) - spread(delta_column[...], keys))
        sum[...] += dot(ds_TS.astype(k.dtype), k[...], axes=(1, 0))

    @pl.when(step.last)
    def _end() -> None:
        dq_TH = sum[...] * scale
        if cos is not None:
            dq_TH = rotated(dq_TH, cos[...], -sin[...])
        dq[...] = dq_TH.astype(dq.dtype)


def _keys_kernel(
    step: Step,
    *,
    q: Any,
    k: Any,
    v: Any,
    do: Any,
    lse: Any,
    delta: Any,
    q_segments: Any,
    kv_segments: Any,
    dk: Any,
    dv: Any,
    kv_column: Any,
    dk_sum: Any,
    dv_sum: Any,
) -> None:
    @pl.when(step.first)
    def _begin() -> None:
        kv_column[...] = column(kv_segments[...], kv_column.shape[1])
        dk_sum[...] = jnp.zeros_like(dk_sum)
        dv_sum[...] = jnp.zeros_like(dv_sum)

    @step.compute
    def _tile(is_masked: bool) -> None:
        s_ST = dot(k[...], q[...], axes=(1, 1))
        if is_masked:
            s_ST = masked(s_ST, kv_column[...], q_segments[...], step.offset, queries_down=False)
        p_ST = jnp.exp2(s_ST - lse[...])
        dv_sum[...] += dot(p_ST.astype(do.dtype), do[...], axes=(1, 0))
        ds_ST = p_ST * (dot(v[...], do[...], axes=(1, 1)) - delta[...])
        dk_sum[...] += dot(ds_ST.astype(q.dtype), q[...], axes=(1, 0))

    @pl.when(step.last)
    def _end() -> None:
        # The queries hold scale log2(e).
        dk[...] = (dk_sum[...] / LOG2E).astype(dk.dtype)
        dv[...] = dv_sum[...].astype(dv.dtype)
