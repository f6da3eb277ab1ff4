"""The project's Hopper kernels: the numbers in pallas' interpreter, and that they are lowered for CUDA."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from hcxjax.kernels import pallas_gpu
from hcxjax.kernels.pallas_gpu import pallas_gpu_attention
from hcxjax.kernels.pallas_gpu_blocks import BLOCK, TILE
from hcxjax.kernels.plan import Tile, attention_plan
from hcxjax.kernels.reference import reference_attention
from hcxjax.kernels.xla import xla_attention
from tests.kernels.absent import absent_gpu, on_h200
from tests.kernels.interpreted import interpreted

NAMES = ("o", "lse", "dq", "dk", "dv")


def both_passes(attention):
    """(q, k, v, do, segments) → what NAMES says; lse's gradient is the first of do."""

    def run(q, k, v, do, segments):
        plan, scale = attention_plan(segments, TILE), q.shape[-1] ** -0.5
        seen = (segments > 0)[:, None]
        (o, lse), backward = jax.vjp(lambda *qkv: attention(*qkv, plan, scale=scale), q, k, v)
        return o, lse * seen, *backward((do.astype(o.dtype), do[..., 0].swapaxes(1, 2).astype(lse.dtype) * seen))

    return run


def case(sizes, heads=2, kv_heads=1, width=64, padding=0, seed=0):
    """q, k, v, do in bfloat16, and segment ids of one row of documents of these sizes, then padding."""
    rng = np.random.default_rng(seed)
    segments = np.repeat([*range(1, len(sizes) + 1), 0], [*sizes, padding]).astype(np.int32)[None]
    counts = (heads, kv_heads, kv_heads, heads)
    arrays = [jnp.asarray(rng.normal(size=(1, segments.shape[1], n, width)), jnp.bfloat16) for n in counts]
    return *arrays, jnp.asarray(segments)


def assert_as_good_as_xla(found, inputs, first=0):
    """From the first place on: max|x − x32| ≤ 2 max|x_xla − x32| + 1e-3, x32 the float32 reference; padding is 0."""
    *arrays, segments = inputs
    exact = jax.jit(both_passes(reference_attention))(*(x.astype(jnp.float32) for x in arrays), segments)
    xla = jax.jit(both_passes(xla_attention))(*inputs)
    for *three, name in zip(found, xla, exact, NAMES, strict=True):
        three = (np.asarray(x.swapaxes(1, 2) if name == "lse" else x, np.float32)[:, first:] for x in three)
        ours, theirs, x32 = three
        assert np.abs(ours - x32).max() <= 2 * np.abs(theirs - x32).max() + 1e-3, name
        assert not np.any(ours[np.asarray(segments)[:, first:] == 0]), f"{name} of padding"


def test_equals_the_reference_and_reads_nothing_that_is_skipped(monkeypatch):
    """The first document is the first block: its keys, values and do are NaN, which no other may notice.

    The second is two whole blocks, then come one of a token, one that ends off a tile's edge, and padding.
    """
    *arrays, segments = case((BLOCK, 2 * BLOCK, 1, 60), padding=30)
    q, *poisoned = arrays[0], *(x.at[:, :BLOCK].set(jnp.nan) for x in arrays[1:])
    with interpreted(monkeypatch):
        found = jax.jit(both_passes(pallas_gpu_attention))(q, *poisoned, segments)
    for x, name in zip(found, NAMES, strict=True):
        assert name == "lse" or np.all(np.isnan(np.asarray(x[:, :BLOCK], np.float32))), name
    assert_as_good_as_xla(found, (*arrays, segments), first=BLOCK)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_random_packings_equal_the_reference(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    length = int(rng.integers(BLOCK - 20, 3 * BLOCK))
    cuts = np.sort(rng.choice(np.arange(1, length), size=rng.integers(1, 9), replace=False))
    *sizes, padding = np.diff([0, *cuts, length])
    heads, kv_heads = [(4, 1), (4, 4), (2, 1)][seed % 3]
    inputs = case(sizes, heads, kv_heads, width=(64, 128)[seed % 2], padding=padding, seed=seed)
    with interpreted(monkeypatch):
        found = jax.jit(both_passes(pallas_gpu_attention))(*inputs)
    assert_as_good_as_xla(found, inputs)


@pytest.mark.parametrize("width", [64, 128])
def test_lowers_for_cuda(width):
    """As far as the machine's own code, which needs one: layouts, shared memory, what wgmma and the copies take."""

    def shapes(heads):
        return jax.ShapeDtypeStruct((2, 1000, heads, width), jnp.bfloat16)

    q, kv, segments = shapes(8), shapes(2), jax.ShapeDtypeStruct((2, 1000), jnp.int32)
    unchecked = [export.DisabledSafetyCheck.custom_call("mosaic_gpu_v2")]
    lower = export.export(jax.jit(both_passes(pallas_gpu_attention)), platforms=["cuda"], disabled_checks=unchecked)
    text = lower(q, kv, kv, q, segments).mlir_module()
    assert text.count("mosaic_gpu_v2") == 3


def test_mistakes(monkeypatch):
    q, k, v, _, segments = case((20,))

    def attend(tile):
        return jax.eval_shape(lambda ids: pallas_gpu_attention(q, k, v, attention_plan(ids, tile), scale=1.0), segments)

    with pytest.raises(ValueError, match=r"tiles are \(64, 128\).*takes \(128, 128\) alone"):
        attend(Tile(64, 128))
    for version, wrong in ((12070, False), (12080, True), (12090, True), (12091, False), (13000, False)):
        versions = types.SimpleNamespace(cuda_runtime_get_version=lambda version=version: version)
        monkeypatch.setattr(pallas_gpu, "cuda_versions", versions)
        if not wrong:
            pallas_gpu._check_assembler()
            continue
        with pytest.raises(ValueError, match=rf"CUDA is 12\.{version % 1000 // 10}; .* takes 12\.9\.1 or newer"):
            attend(TILE)


@absent_gpu
@pytest.mark.parametrize("width", [64, 128])
def test_compiles_for_a_gpu_that_is_not_there(width, capfd, monkeypatch):
    """To Hopper's machine code, which needs no GPU; next to none of a thread's registers are kept in memory."""
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
    q, kv = (on_h200((2, 4096, heads, width), jnp.bfloat16) for heads in (16, 4))
    run = jax.jit(both_passes(pallas_gpu_attention))
    run.lower(q, kv, kv, q, on_h200((2, 4096), jnp.int32)).compile()
    spilled = re.findall(r"stack frame, (\d+) bytes spill stores", "".join(capfd.readouterr()))
    assert len(spilled) == 3 and max(map(int, spilled)) <= 32, spilled
