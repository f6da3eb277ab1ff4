"""Attention in loops over the tiles that a plan names, forward and backward: memory grows with a row, not its square.

Of one row at a time, because each has spans of its own: on a CPU one after the other, elsewhere all together, as far as
the row with most tiles.
"""

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from hcxjax.kernels.plan import AttentionPlan
from hcxjax.kernels.reference import MASKED
from hcxjax.kernels.target import Target
from hcxjax.protocols import Array

R = TypeVar("R")


@jax.custom_vjp
def tiled_attention(q_BKGTH: Array, k_BKSH: Array, v_BKSH: Array, plan: AttentionPlan) -> tuple[Array, Array]:
    """(o_BKGTH in q's dtype, lse_BKGT) of queries that are scaled already.

    The backward pass computes scores anew from lse, in two passes: one by blocks of queries for dq, one by blocks of
    keys for dk and dv. Source: Dao 2023, arXiv:2307.08691, algorithms 1 and 2.
    """
    return _forward(q_BKGTH, k_BKSH, v_BKSH, plan)[0]


def _forward(q_BKGTH: Array, k_BKSH: Array, v_BKSH: Array, plan: AttentionPlan):
    def row(plan: AttentionPlan, q_KGTH: Array, k_KSH: Array, v_KSH: Array) -> tuple[Array, Array]:
        tiles = _Tiles(plan)

        def block(number: Array) -> tuple[Array, Array]:
            q = tiles.queries(q_KGTH, number)

            def visit(other: Array, carried: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
                top, total, o = carried
                k, v = tiles.keys(k_KSH, other), tiles.keys(v_KSH, other)
                allowed_TS = tiles.allowed(number, other)
                s_KGTS = jnp.where(allowed_TS, _product("KGTH,KSH->KGTS", q, k), MASKED)
                above = jnp.maximum(top, jnp.max(s_KGTS, axis=-1, keepdims=True))
                p_KGTS, shrink = jnp.where(allowed_TS, jnp.exp(s_KGTS - above), 0), jnp.exp(top - above)
                total = total * shrink + jnp.sum(p_KGTS, axis=-1, keepdims=True)
                return above, total, o * shrink + _product("KGTS,KSH->KGTH", p_KGTS.astype(v.dtype), v)

            ones = jnp.ones((*q.shape[:-1], 1), jnp.float32)
            nothing = (ones * MASKED, ones * 0, jnp.zeros(q.shape, jnp.float32))
            spans = plan.kv_spans
            top, total, o = jax.lax.fori_loop(spans.start[number], spans.stop[number], visit, nothing)
            # Queries that see nothing keep 0 and MASKED.
            total = jnp.where(total > 0, total, 1)
            return (o / total).astype(q.dtype), (top + jnp.log(total))[..., 0]

        o, lse = jax.lax.map(block, jnp.arange(len(plan.q_places_I)))
        return tiles.joined(o, 2), tiles.joined(lse[..., None], 2)[..., 0]

    length, inputs = q_BKGTH.shape[3], _padded(plan, q_BKGTH, k_BKSH, v_BKSH)
    o_BKGTH, lse_BKGT = _by_row(row, *inputs)
    o_BKGTH = checkpoint_name(o_BKGTH[:, :, :, :length], "attention")
    lse_BKGT = checkpoint_name(lse_BKGT[..., :length], "attention_lse")
    return (o_BKGTH, lse_BKGT), (q_BKGTH, k_BKSH, v_BKSH, plan, o_BKGTH, lse_BKGT)


def _backward(kept: tuple, gradients: tuple[Array, Array]) -> tuple[Array | None, ...]:
    """dS = P · (dO v^T − δ), δ_t = dO_t · o_t − dlse_t; dq = dS k, dk = dS^T q, dv = P^T dO."""
    q_BKGTH, k_BKSH, v_BKSH, plan, o_BKGTH, lse_BKGT = kept
    do_BKGTH, dlse_BKGT = gradients
    delta_BKGT = jnp.sum(do_BKGTH.astype(jnp.float32) * o_BKGTH.astype(jnp.float32), axis=-1) - dlse_BKGT

    def row(plan: AttentionPlan, *arrays: Array) -> tuple[Array, Array, Array]:
        tiles, (q_KGTH, k_KSH, v_KSH, do_KGTH, lse_KGT1, delta_KGT1) = _Tiles(plan), arrays

        def tile(number: Array, other: Array) -> tuple[Array, ...]:
            """(q, k, do, P, dS) of a block of queries and one of keys."""
            q, do, lse, delta = (tiles.queries(side, number) for side in (q_KGTH, do_KGTH, lse_KGT1, delta_KGT1))
            k, v = tiles.keys(k_KSH, other), tiles.keys(v_KSH, other)
            s_KGTS = _product("KGTH,KSH->KGTS", q, k)
            p_KGTS = jnp.where(tiles.allowed(number, other), jnp.exp(s_KGTS - lse), 0)
            ds_KGTS = p_KGTS * (_product("KGTH,KSH->KGTS", do, v) - delta)
            return q, k, do, p_KGTS.astype(q.dtype), ds_KGTS.astype(q.dtype)

        def of_queries(number: Array) -> Array:
            def visit(other: Array, dq: Array) -> Array:
                _, k, _, _, ds_KGTS = tile(number, other)
                return dq + _product("KGTS,KSH->KGTH", ds_KGTS, k)

            nothing, spans = jnp.zeros(tiles.queries(q_KGTH, number).shape, jnp.float32), plan.kv_spans
            return jax.lax.fori_loop(spans.start[number], spans.stop[number], visit, nothing)

        def of_keys(number: Array) -> tuple[Array, Array]:
            def visit(other: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
                q, _, do, p_KGTS, ds_KGTS = tile(other, number)
                dk, dv = sums
                return (
                    dk + _product("KGTS,KGTH->KSH", ds_KGTS, q),
                    dv + _product("KGTS,KGTH->KSH", p_KGTS, do),
                )

            nothing, spans = jnp.zeros(tiles.keys(k_KSH, number).shape, jnp.float32), plan.q_spans
            return jax.lax.fori_loop(spans.start[number], spans.stop[number], visit, (nothing, nothing))

        dq = jax.lax.map(of_queries, jnp.arange(len(plan.q_places_I)))
        dk, dv = jax.lax.map(of_keys, jnp.arange(len(plan.kv_places_J)))
        return tiles.joined(dq, 2), tiles.joined(dk, 1), tiles.joined(dv, 1)

    inputs = (q_BKGTH, k_BKSH, v_BKSH, do_BKGTH, lse_BKGT[..., None], delta_BKGT[..., None])
    found = _by_row(row, *_padded(plan, *inputs))
    return *(_like(gradient, given) for gradient, given in zip(found, inputs, strict=False)), None


tiled_attention.defvjp(_forward, _backward)


@dataclasses.dataclass(frozen=True)
class _Tiles:
    """Cuts blocks out of one row's arrays, whose places are their dimension before the last; the plan is of that row,
    its arrays without B."""

    plan: AttentionPlan

    def queries(self, side: Array, number: Array) -> Array:
        size = self.plan.tile.queries
        return jax.lax.dynamic_slice_in_dim(side, number * size, size, axis=side.ndim - 2)

    def keys(self, side: Array, number: Array) -> Array:
        size = self.plan.tile.keys
        return jax.lax.dynamic_slice_in_dim(side, number * size, size, axis=side.ndim - 2)

    def allowed(self, queries: Array, keys: Array) -> Array:
        """mask_TS of one tile."""
        plan = self.plan
        q_segments_T1 = self.queries(plan.q_segments_BT[:, None], queries)
        kv_segments_1S = self.keys(plan.kv_segments_BS[:, None], keys).T
        q_places_T1 = plan.q_places_I[queries] + jnp.arange(plan.tile.queries)[:, None]
        kv_places_1S = plan.kv_places_J[keys] + jnp.arange(plan.tile.keys)
        return (q_segments_T1 == kv_segments_1S) & (q_segments_T1 > 0) & (kv_places_1S <= q_places_T1)

    @staticmethod
    def joined(blocks: Array, axis: int) -> Array:
        """Blocks [I, ..., size, H] laid one after another along `axis` of the result."""
        blocks = jnp.moveaxis(blocks, 0, axis)
        return blocks.reshape(*blocks.shape[:axis], -1, blocks.shape[-1])


def _by_row(row: Callable[..., R], plan: AttentionPlan, *arrays: Array) -> R:
    """`row` of each row's plan and arrays; the places of its blocks are those of every row."""
    q_places_I, kv_places_J = plan.q_places_I, plan.kv_places_J

    def one(given: tuple[tuple, tuple[Array, ...]]) -> R:
        (q_segments_T, kv_segments_S, kv_spans, q_spans), arrays = given
        of_row = AttentionPlan(q_segments_T, kv_segments_S, q_places_I, kv_places_J, kv_spans, q_spans, plan.tile)
        return row(of_row, *arrays)

    rows = (plan.q_segments_BT, plan.kv_segments_BS, plan.kv_spans, plan.q_spans), arrays
    return jax.lax.map(one, rows) if Target.now().platform == "cpu" else jax.vmap(one)(rows)


def _padded(plan: AttentionPlan, *arrays: Array) -> tuple:
    """(plan, arrays) whose sides are whole blocks: [B, K, G, T, ...] of queries, [B, K, S, H] of keys."""
    more_T = len(plan.q_places_I) * plan.tile.queries - plan.q_segments_BT.shape[1]
    more_S = len(plan.kv_places_J) * plan.tile.keys - plan.kv_segments_BS.shape[1]

    def pad(array: Array, axis: int, more: int) -> Array:
        widths = [(0, 0)] * array.ndim
        widths[axis] = (0, more)
        return jnp.pad(array, widths) if more else array

    plan = dataclasses.replace(
        plan, q_segments_BT=pad(plan.q_segments_BT, 1, more_T), kv_segments_BS=pad(plan.kv_segments_BS, 1, more_S)
    )
    return plan, *(pad(array, array.ndim - 2, more_S if array.ndim == 4 else more_T) for array in arrays)


def _like(gradient: Array, given: Array) -> Array:
    """Without the padding, in the dtype of what it is the gradient of."""
    return jax.lax.slice_in_dim(gradient, 0, given.shape[-2], axis=given.ndim - 2).astype(given.dtype)


def _product(equation: str, *operands: Array) -> Array:
    return jnp.einsum(equation, *operands, preferred_element_type=jnp.float32)
