"""The kernels together, as they are called."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.kernels.pallas_tpu.attention import pallas_tpu_attention
from hcxjax.kernels.plan import Tile, attention_plan
from hcxjax.kernels.reference import MASKED
from hcxjax.kernels.rotary import rotate
from tests.kernels.pallas_tpu.cases import (
    NAMES,
    SCALE,
    TILE,
    arrays,
    exact,
    interpreted,
    output_and_gradients,
    packings,
    planned,
)


def assert_near(ours, theirs, atol):
    for one, other, what in zip(ours, theirs, NAMES, strict=True):
        np.testing.assert_allclose(one, other, atol=atol * max(1, np.abs(other).max()), err_msg=what)


@pytest.fixture(scope="module")
def hundred():
    """100 random packings, their arrays, and what the kernels make of them; the length is no multiple of a tile."""
    segments = packings(100, 45)
    plan, inputs = planned(segments, TILE), arrays(segments, 2, 1, 16)
    return segments, plan, inputs, output_and_gradients(*inputs, plan)


def test_equals_the_reference_on_random_packings(hundred):
    segments, plan, inputs, ours = hundred
    assert_near(ours, exact(*inputs, plan), atol=1e-6)
    for x, what in zip(ours, NAMES, strict=True):
        if what != "lse":
            assert np.all(np.asarray(x)[segments == 0] == 0), f"{what} of padding"


def test_lse_of_what_sees_nothing_is_finite(hundred):
    segments, plan, (qkv, angles, _), _ = hundred
    _, lse = jax.jit(lambda *qkv: interpreted(*qkv, plan, scale=SCALE, angles=angles))(*qkv)
    np.testing.assert_array_equal(np.asarray(lse.swapaxes(1, 2))[segments == 0], np.float32(MASKED))


def test_a_packed_row_is_its_documents_alone(hundred):
    """Each document of one row in a row of its own, where it was; the sum of these is the packed row."""
    segments, _, (qkv, angles, gradients), packed = hundred
    row = int(np.argmax(segments.max(axis=1) * (segments[:, -1] == 0)))
    apart = np.where(segments[row] == np.arange(1, 101)[:, None], 1, 0).astype(np.int32)
    inputs = jax.tree.map(lambda x: jnp.broadcast_to(x[row], x.shape), (qkv, angles, gradients))
    alone = output_and_gradients(*inputs, planned(apart, TILE))
    assert segments[row].max() > 3
    for one, other, what in zip(packed, alone, NAMES, strict=True):
        np.testing.assert_allclose(np.sum(other, axis=0), one[row], atol=2e-6, err_msg=what)


def dense(q_BTNH, k_BSKH, v_BSKH, plan, *, scale, angles):
    """Scores and softmax in float32, products in the inputs' precision."""
    q_BTNH = rotate(q_BTNH, angles)
    k_BSNH, v_BSNH = (jnp.repeat(x, q_BTNH.shape[2] // x.shape[2], axis=2) for x in (k_BSKH, v_BSKH))
    s_BNTS = jnp.einsum("BTNH,BSNH->BNTS", q_BTNH, k_BSNH, preferred_element_type=jnp.float32) * scale
    s_BNTS = jnp.where(plan.mask()[:, None], s_BNTS, MASKED)
    p_BNTS = (jax.nn.softmax(s_BNTS, axis=-1) * plan.mask()[:, None]).astype(v_BSNH.dtype)
    lse_BNT = jax.nn.logsumexp(s_BNTS, axis=-1).astype(jnp.float32)
    return jnp.einsum("BNTS,BSNH->BTNH", p_BNTS, v_BSNH), lse_BNT


SHAPES = [(heads, kv_heads, width) for heads in (1, 4, 8) for kv_heads in (1, 4, 8) for width in (64, 128)]
CASES = [(*shape, dtype) for shape in SHAPES if shape[0] % shape[1] == 0 for dtype in ("bfloat16", "float32")]
FEW = {(4, 1, 64, "bfloat16"), (4, 4, 128, "bfloat16")}


@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "dtype"),
    [pytest.param(*case, marks=[] if case in FEW else pytest.mark.slow) for case in CASES],
)
def test_is_as_near_to_float32_as_xla(heads, kv_heads, width, dtype):
    """Heads and head dims, in tiles whose sizes are not each other's, and rows that they do not divide; against dense
    attention as XLA computes it in that precision. In float32 that is the reference itself; scores of 15 are rounded
    by 1e-6 at every step, and so are the exponents of probabilities."""
    segments = packings(6, 53, seed=1)[2:]
    inputs = arrays(segments, heads, kv_heads, width, dtype)
    plan = planned(segments, Tile(16, 32))
    ours, theirs = (output_and_gradients(*inputs, plan, kernel=kernel) for kernel in (interpreted, dense))
    for x32, x, x_xla, what in zip(exact(*inputs, plan), ours, theirs, NAMES, strict=True):
        assert x.dtype == (jnp.float32 if what == "lse" else dtype)
        error, allowed = (np.abs(np.asarray(y, np.float32) - x32).max() for y in (x, x_xla))
        assert error <= 2 * allowed + (5e-6 * max(1, np.abs(x32).max()) if dtype == "float32" else 1e-3), what


def test_what_is_skipped_is_not_read(hundred):
    """NaN in a document whose edges are edges of tiles: nothing else sees it, forward and backward."""
    _, _, inputs, _ = hundred
    segments = np.broadcast_to(np.repeat([1, 2, 3], [16, 16, 13]).astype(np.int32), (100, 45))
    plan, (qkv, angles, (do, dlse)) = planned(segments, TILE), inputs
    clean = output_and_gradients(qkv, angles, (do, dlse), plan)
    *poisoned, bad_do = (x.at[:, 16:32].set(jnp.nan) for x in (*qkv, do))
    for one, other, what in zip(
        clean, output_and_gradients(tuple(poisoned), angles, (bad_do, dlse), plan), NAMES, strict=True
    ):
        if what == "lse":
            one, other = one.swapaxes(1, 2), other.swapaxes(1, 2)
        assert np.all(np.isnan(other[:, 16:32])), what
        for kept in (slice(0, 16), slice(32, 45)):
            np.testing.assert_array_equal(one[:, kept], other[:, kept], err_msg=what)


def test_part_of_a_row_over_other_keys_of_it():
    """As a device in a ring has them: an early and a late chunk, of which the early one sees none of these keys."""
    segments = packings(8, 64, seed=3)
    queries, keys = np.r_[0:16, 48:64], np.r_[16:40, 40:64]
    plan = planned(
        segments[:, queries],
        Tile(8, 8),
        kv_segments_BS=segments[:, keys],
        q_places_I=queries[::8].astype(np.int32),
        kv_places_J=keys[::8].astype(np.int32),
    )
    ((q, k, v), (cos, sin), (do, dlse)) = arrays(segments, 4, 2, 16)
    inputs = (q[:, queries], k[:, keys], v[:, keys]), (cos[:, queries], sin[:, queries])
    seen = plan.mask().any(-1)
    gradients = do[:, queries], dlse[..., queries] * seen[:, None]
    ours, theirs = output_and_gradients(*inputs, gradients, plan), exact(*inputs, gradients, plan)
    assert np.any(seen) and not np.any(seen[:, :16])
    for one, other, what in zip(ours, theirs, NAMES, strict=True):
        if what == "lse":
            one, other = (np.where(seen[:, None], x, 0) for x in (one, other))
        np.testing.assert_allclose(one, other, atol=2e-6, err_msg=what)
    assert np.all(ours[0][:, :16] == 0)
    assert np.all(ours[2][:, :16] == 0)


@pytest.mark.slow
def test_no_write_races_with_a_read():
    """On two cores that divide the heads, with their memories and copies acted out."""
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # what was found is public nowhere
    from jax.experimental.pallas import tpu as pltpu

    segments = packings(2, 24, seed=5, tile=Tile(8, 8))
    inputs, plan = arrays(segments, 4, 2, 8), planned(segments, Tile(8, 8))
    two_cores = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)
    kernel = functools.partial(pallas_tpu_attention, interpret=two_cores)
    ours = jax.block_until_ready(output_and_gradients(*inputs, plan, kernel=kernel))
    races = interpret_pallas_call.races
    assert races is not None and not races.races_found
    assert_near(ours, exact(*inputs, plan), atol=1e-6)


def shapes(heads, kv_heads, width, dtype, length=1024):
    """Of (q, k, v), angles, gradients, as `arrays` makes them."""
    rows = jax.ShapeDtypeStruct((1, length), jnp.int32)
    return jax.eval_shape(lambda ids: arrays(np.zeros(ids.shape), heads, kv_heads, width, dtype), rows), rows


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("width", [64, 128])
def test_lowers_for_tpu(width, dtype):
    inputs, ids = shapes(4, 2, width, dtype)

    def run(inputs, ids):
        return output_and_gradients(*inputs, attention_plan(ids, Tile(512, 512)), kernel=pallas_tpu_attention)

    module = jax.export.export(jax.jit(run), platforms=["tpu"])(inputs, ids).mlir_module()
    assert module.count("tpu_custom_call") == 3


def test_remat_by_name_keeps_what_the_backward_kernels_read(capsys):
    (qkv, _, _), ids = shapes(2, 1, 64, "float32")
    policy = jax.checkpoint_policies.save_only_these_names("attention", "attention_lse")

    def layer(q, k, v, ids):
        return pallas_tpu_attention(2 * q, k, v, attention_plan(ids, Tile(512, 512)), scale=SCALE)[0]

    jax.ad_checkpoint.print_saved_residuals(jax.checkpoint(layer, policy=policy), *qkv, ids)
    kept = [line for line in capsys.readouterr().out.splitlines() if "argument" not in line]
    assert len(kept) == 2
    assert "f32[1,1024,2,64] named 'attention'" in kept[0]
    assert "f32[1,2,1024] named 'attention_lse'" in kept[1]


def test_mistakes():
    (qkv, _, _), ids = shapes(2, 1, 64, "float32", length=100)
    plan = jax.eval_shape(lambda ids: attention_plan(ids, Tile(128, 100)), ids)
    with pytest.raises(ValueError, match=r"keys is 100; on a TPU it must be a multiple of 128"):
        jax.eval_shape(lambda qkv, plan: pallas_tpu_attention(*qkv, plan, scale=1.0), qkv, plan)
