"""The backward pass of `pallas_gpu`: dq in one kernel, dk and dv in another; scores are computed again in both.

p = exp(scale s − lse), dv = pᵀ do, ds = p (do vᵀ − delta), dq = scale ds k, dk = scale dsᵀ q.
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from hcxjax.kernels.pallas_gpu_blocks import BLOCK, Block, Sides
from hcxjax.kernels.warpgroup import (
    ROWS,
    SWIZZLED,
    add_product,
    along,
    arrivals,
    columns,
    launched,
    pipelined,
    product,
    rows,
    tiles,
    transposed,
    zeros,
)
from hcxjax.protocols import Array
from hcxjax.shapes import shaped

LOG2_E = math.log2(math.e)
"""Powers of two are what the hardware has: e^x = 2^(x log₂ e)."""


@shaped
def backward_queries(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    do_BTNH: Array,
    lse_BNT: Array,
    delta_BNT: Array,
    sides: Sides,
    *,
    scale: float,
) -> Array:
    """dq_BTNH. All rows are whole blocks.

    Args:
      lse_BNT: log₂ of the sums of the softmax.
      delta_BNT: Σ_s p dp of each query, less the gradient of its lse.
      sides: of the queries.
    """
    batch, length, heads, width = q_BTNH.shape
    groups, power = heads // k_BSKH.shape[2], scale * LOG2_E

    def kernel(q, k, v, do, lse, delta, sides, dq, q_tiles, do_tiles, arrived):
        block = Block.here(sides, queries=True)
        here = block.row, block.mine, block.head
        q_tile, do_tile = q_tiles.at[block.warpgroup], do_tiles.at[block.warpgroup]

        def compute(through) -> None:
            plgpu.copy_gmem_to_smem(q.at[here], q_tile, arrived.at[block.warpgroup])
            plgpu.copy_gmem_to_smem(do.at[here], do_tile, arrived.at[block.warpgroup])
            mine = (rows(part.at[block.row, block.head, block.mine]) for part in (lse, delta))
            plgpu.barrier_wait(arrived.at[block.warpgroup])
            dq_tile, *_ = through((zeros(ROWS, width), *mine))
            q_tile[...] = (dq_tile * scale).astype(q.dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(q_tile, dq.at[here])
            plgpu.wait_smem_to_gmem(0)

        def step(index, k_tile, v_tile, k_read, v_read, carried):
            dq_tile, lse_rows, delta_rows = carried
            # Half a tile at a time: scores, their gradient and dq must all fit in the registers.
            for first in range(0, BLOCK, ROWS):
                half = pl.ds(first, ROWS)
                s = product(q_tile, transposed(k_tile.at[half]))
                dp = product(do_tile, transposed(v_tile.at[half]))
                p = jnp.exp2(s * power - along(lse_rows, s.shape, 0))
                p = block.masked(p, block.start + index[0], first, 0.0)
                dq_tile = add_product(dq_tile, p * (dp - along(delta_rows, s.shape, 0)), k_tile.at[half])
            plgpu.barrier_arrive(k_read)
            plgpu.barrier_arrive(v_read)
            return dq_tile, lse_rows, delta_rows

        spec = plgpu.BlockSpec((BLOCK, width), lambda number: (block.start + number, 0), transforms=SWIZZLED)
        through = pipelined(step, compute, (block.stop - block.start,), [spec, spec])
        through(*(part.at[block.row, :, jax.lax.div(block.head, groups)] for part in (k, v)))

    scratch = [tiles(width, q_BTNH.dtype), tiles(width, q_BTNH.dtype), arrivals(2)]
    launch = launched(kernel, q_BTNH, scratch, blocks=length // BLOCK, heads=heads, batch=batch)
    return launch(q_BTNH, k_BSKH, v_BSKH, do_BTNH, lse_BNT, delta_BNT, sides)


@shaped
def backward_keys(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    do_BTNH: Array,
    lse_BNT: Array,
    delta_BNT: Array,
    sides: Sides,
    *,
    scale: float,
) -> tuple[Array, Array]:
    """(dk_BSKH, dv_BSKH), added up over the query heads that share a KV head; arguments as of `backward_queries`."""
    batch, length, kv_heads, width = k_BSKH.shape
    groups, power = q_BTNH.shape[2] // kv_heads, scale * LOG2_E

    def kernel(q, k, v, do, lse, delta, sides, dk, dv, k_tiles, v_tiles, arrived):
        block = Block.here(sides, queries=False)
        here = block.row, block.mine, block.head
        k_tile, v_tile = k_tiles.at[block.warpgroup], v_tiles.at[block.warpgroup]

        def compute(through) -> None:
            plgpu.copy_gmem_to_smem(k.at[here], k_tile, arrived.at[block.warpgroup])
            plgpu.copy_gmem_to_smem(v.at[here], v_tile, arrived.at[block.warpgroup])
            plgpu.barrier_wait(arrived.at[block.warpgroup])
            dk_tile, dv_tile = through((zeros(ROWS, width), zeros(ROWS, width)))
            k_tile[...] = (dk_tile * scale).astype(k.dtype)
            v_tile[...] = dv_tile.astype(v.dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(k_tile, dk.at[here])
            plgpu.copy_smem_to_gmem(v_tile, dv.at[here])
            plgpu.wait_smem_to_gmem(0)

        def step(index, q_tile, do_tile, lse_tile, delta_tile, *given):
            *read, (dk_tile, dv_tile) = given
            for first in range(0, BLOCK, ROWS):
                half = pl.ds(first, ROWS)
                # Keys down, queries across: what is added up over queries then stays with its row.
                s = product(k_tile, transposed(q_tile.at[half]))
                p = jnp.exp2(s * power - along(columns(lse_tile.at[half]), s.shape, 1))
                p = block.masked(p, block.start + index[0], first, 0.0)
                dv_tile = add_product(dv_tile, p, do_tile.at[half])
                dp = product(v_tile, transposed(do_tile.at[half]))
                ds = p * (dp - along(columns(delta_tile.at[half]), s.shape, 1))
                dk_tile = add_product(dk_tile, ds, q_tile.at[half])
            for barrier in read:
                plgpu.barrier_arrive(barrier)
            return dk_tile, dv_tile

        def at(number, member):
            return block.start + number, block.head * groups + member

        tile = plgpu.BlockSpec((BLOCK, None, width), lambda *index: (*at(*index), 0), transforms=SWIZZLED)
        line = plgpu.BlockSpec((None, BLOCK), lambda *index: at(*index)[::-1])
        through = pipelined(step, compute, (block.stop - block.start, groups), [tile, tile, line, line])
        through(*(part.at[block.row] for part in (q, do, lse, delta)))

    scratch = [tiles(width, k_BSKH.dtype), tiles(width, k_BSKH.dtype), arrivals(2)]
    launch = launched(kernel, [k_BSKH, v_BSKH], scratch, blocks=length // BLOCK, heads=kv_heads, batch=batch)
    return launch(q_BTNH, k_BSKH, v_BSKH, do_BTNH, lse_BNT, delta_BNT, sides)
