"""What a warpgroup of a Hopper GPU does with tiles: the few operations that the kernels of `pallas_gpu` are made of.

An array here is spread over the 128 threads of the warpgroup as wgmma leaves its result; of one with a single dimension
(a number for each row, or for each column of a tile) each thread holds those of its own rows or columns.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from hcxjax.protocols import Array

Ref = Any
"""A reference into the GPU's global or shared memory; pallas has no public type for it."""

ROWS = 64
"""Of the tile that one warpgroup computes with: wgmma's own number."""

COMPUTING = 2
"""Warpgroups of a thread block that compute; one more has tiles copied."""

STAGES = 2
"""Tiles of the other side in shared memory at a time: one is computed with while the next is copied."""

SWIZZLED = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
"""How tiles of 16-bit numbers lie in shared memory, for wgmma and the copy engine alike: in rows of 128 bytes."""

_TILE = plgpu.Layout.WGMMA
_ROWS, _COLUMNS = _TILE.reduce(1), _TILE.reduce(0)


def zeros(*shape: int) -> Array:
    """Float32 zeros: a tile, or a number for each row."""
    return plgpu.layout_cast(jnp.zeros(shape, jnp.float32), _TILE if len(shape) == 2 else _ROWS)


def rows(ref: Ref) -> Array:
    """The numbers of `ref`, one for each row of a tile."""
    return plgpu.load(ref, (), layout=_ROWS, optimized=False)


def columns(ref: Ref) -> Array:
    """The numbers of `ref`, one for each column of a tile."""
    return plgpu.load(ref, (), layout=_COLUMNS, optimized=False)


def along(numbers: Array, shape: tuple[int, ...], axis: int) -> Array:
    """Numbers of the rows (axis 0) or columns (axis 1) as a whole tile."""
    return plgpu.layout_cast(jax.lax.broadcast_in_dim(numbers, shape, [axis]), _TILE)


def offsets(shape: tuple[int, ...], axis: int) -> Array:
    """Of each element of a tile its row (axis 0) or column (axis 1), int32."""
    return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=_TILE)


def transposed(tile: Ref) -> Ref:
    """The tile in shared memory, seen the other way round."""
    return tile.T


def product(left: Ref, right: Ref) -> Array:
    """left · right of two tiles in shared memory, in float32."""

    def multiply(sums: Ref) -> Array:
        plgpu.wgmma(sums, left, right)
        return sums[...]

    return pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((left.shape[0], right.shape[1]), jnp.float32))


def add_product(sums: Array, left: Array, right: Ref) -> Array:
    """sums + left · right, where `left` is in registers and cut down to the precision of `right`, in shared memory."""

    def multiply(sums: Ref) -> None:
        plgpu.wgmma(sums, left.astype(right.dtype), right)

    begun: Any = plgpu.WGMMAAccumulatorRef.init(sums)
    return pl.run_state(multiply)(begun)


def tiles(width: int, dtype: jnp.dtype) -> Ref:
    """Shared memory for a tile of each computing warpgroup."""
    return plgpu.SMEM((COMPUTING, ROWS, width), dtype, transforms=SWIZZLED)


def numbers() -> Ref:
    """Shared memory for a float32 number for each row of each computing warpgroup."""
    return plgpu.SMEM((COMPUTING, ROWS), jnp.float32)


def arrivals(copies: int) -> Ref:
    """A barrier for each computing warpgroup, passed when so many copies to it have arrived."""
    return plgpu.Barrier(num_barriers=COMPUTING, num_arrivals=copies)


def launched(kernel: Callable, out_type: Any, scratch: list, *, blocks: int, heads: int, batch: int) -> Callable:
    """The kernel, compiled for thread blocks named (head, block, row) of three warpgroups."""
    return plgpu.kernel(
        kernel,
        out_type=out_type,
        scratch_types=scratch,
        compiler_params=plgpu.CompilerParams(approx_math=True),
        grid=(heads, blocks, batch),
        grid_names=("head", "block", "row"),
        num_threads=COMPUTING + 1,
        thread_name="warpgroup",
    )


def pipelined(step: Callable, compute: Callable, grid: tuple, specs: list) -> Callable:
    """Has tiles copied by one warpgroup, for the others to compute with.

    Args:
      step: (place in the grid, tiles, a barrier for each to arrive at when it was read, what is carried) → carried.
      compute: is given the loop, carried → carried, and runs in the warpgroups that compute.
    Returns: what takes the references to the whole arrays and does it all.
    """
    return plgpu.emit_pipeline_warp_specialized(
        step,
        grid=grid,
        in_specs=specs,
        compute_context=compute,
        max_concurrent_steps=STAGES,
        num_compute_wgs=COMPUTING,
        memory_registers=40,
        wg_axis="warpgroup",
        manual_consumed_barriers=True,
    )
