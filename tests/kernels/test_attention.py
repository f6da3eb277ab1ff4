import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.kernels.attention import attention
from hcxjax.kernels.backends import BACKENDS, Backend, Work, chosen
from hcxjax.kernels.plan import Tile, attention_plan
from hcxjax.kernels.reference import reference_attention
from hcxjax.kernels.rotary import rotate
from hcxjax.kernels.target import Target

CHUNK = 8
TILE = Tile(CHUNK, 6)
SCALE = 0.3


def packings(rows, length, seed):
    """Segment ids: one whole document, documents of one token, ends on and off a tile's edge, then random ones, most
    with a padding tail."""
    rng = np.random.default_rng(seed)
    sizes = [[length], [1] * length, [CHUNK] * (length // CHUNK), [CHUNK - 1, 2, 1]]
    while len(sizes) < rows:
        cuts = rng.choice(np.arange(1, length), size=rng.integers(1, min(6, length)), replace=False)
        parts = np.diff([0, *sorted(cuts), length]).tolist()
        sizes.append(parts if rng.random() < 0.3 else parts[:-1])
    segments = np.zeros((rows, length), np.int32)
    for row, parts in enumerate(sizes[:rows]):
        at = 0
        for number, size in enumerate(parts):
            stop = min(at + size, length)
            segments[row, at:stop] = number + 1
            at = stop
    return segments


def arrays(rows, length, heads, kv_heads, width, dtype="float32", seed=0):
    """q, k, v and the gradient of o."""
    rng = np.random.default_rng(seed)
    counts = (heads, kv_heads, kv_heads, heads)
    return [jnp.asarray(rng.normal(size=(rows, length, count, width)), dtype) for count in counts]


@functools.partial(jax.jit, static_argnames="backend")
def output_and_gradients(q, k, v, do, plan, backend):
    """o and lse, and gradients of both: lse's is the first of do."""
    (o, lse), backward = jax.vjp(lambda *qkv: attention(*qkv, plan, scale=SCALE, backend=backend), q, k, v)
    seen = (plan.q_segments_BT > 0)[:, None]
    return o, lse * seen, *backward((do, do[..., 0].swapaxes(1, 2).astype(lse.dtype) * seen))


NAMES = ("o", "lse", "dq", "dk", "dv")
forward = jax.jit(functools.partial(attention, scale=SCALE), static_argnames="backend")


def numpy_attention(q, k, v, segments):
    """Float64, one document, query and head at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    o, lse, group = np.zeros(q.shape), np.zeros((len(q), q.shape[2], q.shape[1])), q.shape[2] // k.shape[2]
    for row, t in np.ndindex(segments.shape):
        seen = [s for s in range(t + 1) if segments[row, s] == segments[row, t] != 0]
        for head in range(q.shape[2]) if seen else ():
            scores = k[row, seen, head // group] @ q[row, t, head] * SCALE
            chances = np.exp(scores - scores.max())
            o[row, t, head] = chances @ v[row, seen, head // group] / chances.sum()
            lse[row, head, t] = scores.max() + np.log(chances.sum())
    return o, lse


def test_backends_equal_numpy_on_random_packings():
    segments = packings(36, 19, seed=1)
    assert np.any(segments == 0)
    plan = attention_plan(segments, TILE)
    q, k, v, do = arrays(36, 19, 4, 2, 8)
    exact = numpy_attention(q, k, v, segments)
    both = {name: output_and_gradients(q, k, v, do, plan, backend=name) for name in ("reference", "xla")}
    for name, (o, lse, *_) in both.items():
        np.testing.assert_allclose(o, exact[0], atol=2e-6, err_msg=name)
        np.testing.assert_allclose(lse, exact[1], atol=4e-6, err_msg=name)
    for one, other, what in zip(both["reference"], both["xla"], NAMES, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5, err_msg=what)
        if what != "lse":
            assert np.all(np.asarray(other)[segments == 0] == 0), f"{what} of padding"


@pytest.mark.parametrize(
    ("length", "heads", "kv_heads", "width"),
    [
        (TILE.keys - 1, 1, 1, 16),
        (CHUNK, 4, 1, 64),
        (3 * CHUNK, 8, 1, 16),
        (2 * CHUNK + 5, 8, 4, 128),
        *(
            pytest.param(3 * CHUNK + 1, heads, kv_heads, width, marks=pytest.mark.slow)
            for heads in (1, 4, 8)
            for kv_heads in (1, 4, 8)
            for width in (64, 128)
            if heads % kv_heads == 0
        ),
    ],
)
def test_xla_equals_reference(length, heads, kv_heads, width):
    plan = attention_plan(packings(5, length, seed=length), TILE)
    inputs = arrays(5, length, heads, kv_heads, width, seed=length)
    ours = output_and_gradients(*inputs, plan, backend="xla")
    theirs = output_and_gradients(*inputs, plan, backend="reference")
    for one, other, what in zip(theirs, ours, NAMES, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5 * max(1, np.abs(one).max()), err_msg=what)


def test_rows_together_equal_rows_one_after_another(monkeypatch):
    """Accelerators take all rows at once."""
    segments, qkv = packings(6, 21, seed=2), arrays(6, 21, 4, 2, 8)[:3]

    def run(rows):
        plan, inputs = attention_plan(segments[:rows], TILE), [x[:rows] for x in qkv]
        return forward(*inputs, plan, backend="xla")

    one_by_one = run(6)
    monkeypatch.setattr(Target, "now", classmethod(lambda cls: cls("tpu", "TPU v5")))
    for alone, together in zip(one_by_one, run(5), strict=True):  # another shape, which is traced anew
        np.testing.assert_allclose(alone[:5], together, atol=1e-6)


def test_what_is_skipped_is_not_read():
    """NaN beyond a query's span, forward and backward."""
    segments = np.repeat(np.arange(1, 5, dtype=np.int32), 12)[None]  # documents whose edges are edges of tiles
    plan = attention_plan(segments, Tile(12, 6))
    q, k, v, do = arrays(1, 48, 2, 1, 8)
    clean = output_and_gradients(q, k, v, do, plan, backend="xla")
    poisoned = [x.at[:, 12:24].set(jnp.nan) for x in (q, k, v, do)]
    for one, other, what in zip(clean, output_and_gradients(*poisoned, plan, backend="xla"), NAMES, strict=True):
        if what == "lse":
            one, other = one.swapaxes(1, 2), other.swapaxes(1, 2)
        for kept in (slice(0, 12), slice(24, 48)):
            np.testing.assert_array_equal(one[:, kept], other[:, kept], err_msg=what)


def test_memory_grows_with_the_row_and_not_its_square():
    def temporary(length):
        plan = jax.eval_shape(lambda ids: attention_plan(ids, Tile(128, 128)), jnp.ones((1, length), jnp.int32))
        shapes = [jax.ShapeDtypeStruct((1, length, heads, 16), jnp.float32) for heads in (2, 1, 1, 2)]
        lowered = output_and_gradients.lower(*shapes, plan, backend="xla")
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary(4096) < 5 * temporary(1024)


def test_queries_turned_inside_are_those_turned_before():
    plan, (q, k, v, _) = attention_plan(packings(2, 9, seed=0), TILE), arrays(2, 9, 4, 2, 8)
    turns = np.random.default_rng(0).normal(size=(2, 9, 4)).astype(np.float32)
    angles = jnp.cos(turns), jnp.sin(turns)
    for backend in ("reference", "xla"):
        inside, _ = forward(q, k, v, plan, backend=backend, angles=angles)
        before, _ = forward(rotate(q, angles), k, v, plan, backend=backend)
        np.testing.assert_array_equal(inside, before)


@jax.jit
def dense_bfloat16(q, k, v, do, plan):
    """Scores and softmax in float32, products in bfloat16: the yardstick of how far it may be from float32."""

    def dense(q, k, v):
        k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
        scores = jnp.einsum("BTNH,BSNH->BNTS", q, k, preferred_element_type=jnp.float32) * SCALE
        mask = plan.mask()[:, None]
        scores = jnp.where(mask, scores, -1e9)
        chances = jax.nn.softmax(scores, axis=-1) * mask
        return jnp.einsum("BNTS,BSNH->BTNH", chances.astype(q.dtype), v), jax.nn.logsumexp(scores, axis=-1)

    (o, lse), backward = jax.vjp(dense, q, k, v)
    dlse = (do[..., 0] * (plan.q_segments_BT > 0)[..., None]).swapaxes(1, 2)
    return o, lse, *backward((do, dlse.astype(lse.dtype)))


def test_bfloat16_is_as_near_to_float32_as_dense_attention():
    plan = attention_plan(packings(6, 21, seed=3), TILE)
    inputs = arrays(6, 21, 8, 4, 16, "bfloat16")
    exact = output_and_gradients(*(x.astype(jnp.float32) for x in inputs), plan, backend="reference")
    ours, dense = output_and_gradients(*inputs, plan, backend="xla"), dense_bfloat16(*inputs, plan)
    for x32, x, x_dense, what in zip(exact, ours, dense, NAMES, strict=True):
        if what == "lse":
            continue
        assert x.dtype == jnp.bfloat16
        error, allowed = (np.abs(np.asarray(y, np.float32) - x32).max() for y in (x, x_dense))
        assert error <= 2 * allowed + 1e-3, what


def test_part_of_a_row_against_all_of_it():
    """As a device sees it that holds some chunks of a row and has gathered the keys."""
    segments = packings(3, 32, seed=4)
    q, k, v, _ = arrays(3, 32, 2, 2, 8)
    whole, whole_lse = numpy_attention(q, k, v, segments)
    places = np.r_[8:16, 24:32]
    plan = attention_plan(
        segments[:, places], Tile(8, 8), kv_segments_BS=segments, q_places_I=np.array([8, 24], np.int32)
    )
    for backend in ("reference", "xla"):
        o, lse = forward(q[:, places], k, v, plan, backend=backend)
        np.testing.assert_allclose(o, whole[:, places], atol=2e-6, err_msg=backend)
        seen = segments[:, None, places] > 0
        np.testing.assert_allclose(np.where(seen, lse, 0), whole_lse[:, :, places], atol=4e-6, err_msg=backend)


def test_choice_is_told_and_nothing_is_taken_in_its_place(monkeypatch, caplog):
    fast = Backend(reference_attention, platforms=("tpu",), head_dims=(128,))
    monkeypatch.setitem(BACKENDS, "fast", fast)
    assert fast.refusal(Target("tpu", "TPU v5"), Work(128, "float32")) is None
    refusal = fast.refusal(Target("tpu", "TPU v5"), Work(80, "float32"))
    assert refusal == "DecoderConfig.head_dim is 80; it can do 128"
    q, k, v, _ = arrays(1, 4, 4, 2, 8)
    plan = attention_plan(np.ones((1, 4), np.int32), TILE)
    with pytest.raises(ValueError, match=r"'fast' \(DecoderConfig\.attention\) cannot be used: it runs on tpu, .* cpu"):
        attention(q, k, v, plan, scale=1.0, backend="fast")
    chosen.cache_clear()
    with caplog.at_level("INFO"):
        assert chosen(Target("cpu", "cpu"), Work(8, "float32")) == "xla"
    assert "attention backend on cpu, head dim 8, float32, whole rows: xla" in caplog.text


def test_mistakes():
    q, k, v, _ = arrays(1, 4, 4, 2, 8)
    plan = attention_plan(np.ones((1, 4), np.int32), TILE)
    with pytest.raises(
        ValueError, match=r"'flash' is unknown; DecoderConfig\.attention is one of auto, reference, xla"
    ):
        attention(q, k, v, plan, scale=1.0, backend="flash")
    with pytest.raises(ValueError, match=r"num_heads is 3; it must be a multiple of num_kv_heads, 2"):
        attention(q[:, :, :3], k, v, plan, scale=1.0)
    with pytest.raises(ValueError, match=r"H is 4 in k_BSKH"):
        attention(q, k[..., :4], v, plan, scale=1.0)
