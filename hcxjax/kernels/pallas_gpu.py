"""The project's own attention for Hopper GPUs: other documents' tiles are skipped, forward and backward.

Experimental: it compiles for Hopper and its numbers are proven in pallas' interpreter, but it has not been timed or
tuned on a GPU, so 'auto' never takes it. Three kernels (o; dq; dk with dv) go through exactly the tiles of the plan's
spans, and compare elements only in those not seen whole. Each is deterministic: nothing is added up by atomics.

A thread block has 128 queries (or keys). Two of its warpgroups compute 64 rows each; the third only has the tiles of
the other side copied into shared memory, before they are needed.

Source: Dao 2023 (FlashAttention-2), arXiv:2307.08691, algorithms 1 and 2; Shah et al. 2024 (FlashAttention-3),
arXiv:2407.08608, section 3.1, on the warpgroup that copies. Deviations: dq has a kernel of its own in place of atomic
sums, and the two computing warpgroups do not take turns at the tensor cores.
"""

import functools

import jax
import jax.numpy as jnp
from jax._src.lib import cuda_versions
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas import mosaic_gpu as plgpu

from hcxjax.kernels.pallas_gpu_backward import LOG2_E, backward_keys, backward_queries
from hcxjax.kernels.pallas_gpu_blocks import BLOCK, TILE, Block, Whole
from hcxjax.kernels.plan import AttentionPlan
from hcxjax.kernels.reference import MASKED
from hcxjax.kernels.rotary import Angles
from hcxjax.kernels.warpgroup import (
    ROWS,
    SWIZZLED,
    add_product,
    along,
    arrivals,
    launched,
    numbers,
    pipelined,
    product,
    tiles,
    transposed,
    zeros,
)
from hcxjax.protocols import Array
from hcxjax.shapes import shaped


@shaped
def pallas_gpu_attention(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, plan: AttentionPlan, *, scale: float, angles: Angles | None = None
) -> tuple[Array, Array]:
    """As `reference_attention` of queries that are turned, in 16-bit products with float32 sums.

    What is kept for the backward pass is named 'attention' (o) and 'attention_lse'.

    Raises:
      ValueError: the plan has other tiles, or NVIDIA's assembler is one that is known to compile causal masks wrongly.
    """
    assert angles is None
    _check_assembler()
    if plan.tile != TILE:
        raise ValueError(
            f"the plan's tiles are {tuple(plan.tile)}; attention backend 'pallas_gpu' takes {tuple(TILE)} alone: leave "
            f"DecoderConfig.attention_tile out, and let 2 x Layout.context x {BLOCK} divide the length of rows"
        )
    return _attend(q_BTNH, k_BSKH, v_BSKH, plan, scale)


def _check_assembler() -> None:
    """Source: the check of jax.experimental.pallas.ops.gpu.attention_mgpu."""
    version = cuda_versions.cuda_runtime_get_version() if cuda_versions is not None else 0
    if 12080 <= version < 12091:
        raise ValueError(
            f"CUDA is {version // 1000}.{version % 1000 // 10}; attention backend 'pallas_gpu' takes 12.9.1 or newer, "
            "or one before 12.8: the assemblers between compile causal masks wrongly"
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, plan: AttentionPlan, scale: float) -> tuple[Array, Array]:
    return _attended(q_BTNH, k_BSKH, v_BSKH, plan, scale)


def _attended(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, plan: AttentionPlan, scale: float) -> tuple[Array, Array]:
    whole, length = Whole.of(plan), q_BTNH.shape[1]
    o_BTNH, lse_BNT = _forward(whole.queries(q_BTNH), whole.keys(k_BSKH), whole.keys(v_BSKH), whole, scale)
    return o_BTNH[:, :length], lse_BNT[..., :length]


def _attend_forward(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, plan: AttentionPlan, scale: float) -> tuple:
    o_BTNH, lse_BNT = _attended(q_BTNH, k_BSKH, v_BSKH, plan, scale)
    o_BTNH, lse_BNT = checkpoint_name(o_BTNH, "attention"), checkpoint_name(lse_BNT, "attention_lse")
    return (o_BTNH, lse_BNT), (q_BTNH, k_BSKH, v_BSKH, plan, o_BTNH, lse_BNT)


def _attend_backward(scale: float, kept: tuple, cotangents: tuple[Array, Array]) -> tuple:
    q_BTNH, k_BSKH, v_BSKH, plan, o_BTNH, lse_BNT = kept
    do_BTNH, dlse_BNT = cotangents
    # Of the softmax ds = p (dp − Σ p dp), where Σ p dp = do·o; of lse ds = p dlse.
    delta_BTN = jnp.sum(do_BTNH.astype(jnp.float32) * o_BTNH.astype(jnp.float32), axis=-1)
    delta_BNT = delta_BTN.swapaxes(1, 2) - dlse_BNT
    whole = Whole.of(plan)
    q_BTNH, do_BTNH = whole.queries(q_BTNH), whole.queries(do_BTNH)
    k_BSKH, v_BSKH = whole.keys(k_BSKH), whole.keys(v_BSKH)
    rows = whole.queries(lse_BNT * LOG2_E, axis=2), whole.queries(delta_BNT, axis=2)
    dq_BTNH = backward_queries(q_BTNH, k_BSKH, v_BSKH, do_BTNH, *rows, whole.by_queries, scale=scale)
    dk_BSKH, dv_BSKH = backward_keys(q_BTNH, k_BSKH, v_BSKH, do_BTNH, *rows, whole.by_keys, scale=scale)
    length, keys = plan.q_segments_BT.shape[1], plan.kv_segments_BS.shape[1]
    return dq_BTNH[:, :length], dk_BSKH[:, :keys], dv_BSKH[:, :keys], None


_attend.defvjp(_attend_forward, _attend_backward)


def _forward(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, whole: Whole, scale: float) -> tuple[Array, Array]:
    batch, length, heads, width = q_BTNH.shape
    groups, power = heads // k_BSKH.shape[2], scale * LOG2_E

    def kernel(q, k, v, sides, o, lse, q_tiles, lse_tiles, arrived):
        block = Block.here(sides, queries=True)
        here = block.row, block.mine, block.head
        q_tile, lse_tile = q_tiles.at[block.warpgroup], lse_tiles.at[block.warpgroup]

        def compute(through) -> None:
            plgpu.copy_gmem_to_smem(q.at[here], q_tile, arrived.at[block.warpgroup])
            plgpu.barrier_wait(arrived.at[block.warpgroup])
            o_tile, top, total = through((zeros(ROWS, width), zeros(ROWS) - jnp.inf, zeros(ROWS)))
            seen = total > 0
            q_tile[...] = (o_tile * along(jnp.where(seen, 1 / total, 0.0), o_tile.shape, 0)).astype(q.dtype)
            lse_tile[...] = jnp.where(seen, top / LOG2_E + jnp.log(total), MASKED)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(q_tile, o.at[here])
            plgpu.copy_smem_to_gmem(lse_tile, lse.at[block.row, block.head, block.mine])
            plgpu.wait_smem_to_gmem(0)

        def step(index, k_tile, v_tile, k_read, v_read, carried):
            o_tile, top, total = carried
            s = product(q_tile, transposed(k_tile))
            plgpu.barrier_arrive(k_read)
            s = block.masked(s, block.start + index[0], 0, -jnp.inf)
            above = jnp.maximum(top, s.max(axis=1) * power)
            # A row that has seen nothing yet: −inf − −inf would be NaN.
            base = jnp.where(above == -jnp.inf, 0.0, above)
            p, shrink = jnp.exp2(s * power - along(base, s.shape, 0)), jnp.exp2(top - base)
            o_tile = add_product(o_tile * along(shrink, o_tile.shape, 0), p, v_tile)
            plgpu.barrier_arrive(v_read)
            return o_tile, above, total * shrink + p.sum(axis=1)

        spec = plgpu.BlockSpec((BLOCK, width), lambda number: (block.start + number, 0), transforms=SWIZZLED)
        through = pipelined(step, compute, (block.stop - block.start,), [spec, spec])
        through(*(part.at[block.row, :, jax.lax.div(block.head, groups)] for part in (k, v)))

    out_type = [q_BTNH, jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)]
    scratch = [tiles(width, q_BTNH.dtype), numbers(), arrivals(1)]
    launch = launched(kernel, out_type, scratch, blocks=length // BLOCK, heads=heads, batch=batch)
    return launch(q_BTNH, k_BSKH, v_BSKH, whole.by_queries)
