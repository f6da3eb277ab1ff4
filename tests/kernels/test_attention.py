import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.kernels import xla
from hcxjax.kernels.attention import attention
from hcxjax.kernels.plan import AttentionPlan, attention_plan

CHUNK = 8
SCALE = 0.3


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Rows of these tests are long enough to be divided."""
    monkeypatch.setattr(xla, "CHUNK", CHUNK)


def packings(rows, length, seed):
    """(segment ids, positions): one whole document, documents of one token, ends on and off a chunk's edge, then
    random ones, most with a padding tail."""
    rng = np.random.default_rng(seed)
    sizes = [[length], [1] * length, [CHUNK] * (length // CHUNK), [CHUNK - 1, 2, 1]]
    while len(sizes) < rows:
        cuts = rng.choice(np.arange(1, length), size=rng.integers(1, min(6, length)), replace=False)
        parts = np.diff([0, *sorted(cuts), length]).tolist()
        sizes.append(parts if rng.random() < 0.3 else parts[:-1])
    segments, positions = np.zeros((2, rows, length), np.int32)
    for row, parts in enumerate(sizes[:rows]):
        at = 0
        for number, size in enumerate(parts):
            stop = min(at + size, length)
            segments[row, at:stop], positions[row, at:stop] = number + 1, np.arange(stop - at)
            at = stop
    return segments, positions


def arrays(rows, length, heads, kv_heads, width, dtype="float32", seed=0):
    """q, k, v and the gradient of o."""
    rng = np.random.default_rng(seed)
    counts = (heads, kv_heads, kv_heads, heads)
    return [jnp.asarray(rng.normal(size=(rows, length, count, width)), dtype) for count in counts]


@functools.partial(jax.jit, static_argnames="backend")
def output_and_gradients(q, k, v, do, plan, backend):
    o, backward = jax.vjp(lambda *qkv: attention(*qkv, plan, scale=SCALE, backend=backend), q, k, v)
    return o, *backward(do)


def numpy_attention(q, k, v, segments):
    """Float64, one document, query and head at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    o, group = np.zeros(q.shape), q.shape[2] // k.shape[2]
    for row, t in np.ndindex(segments.shape):
        seen = [s for s in range(t + 1) if segments[row, s] == segments[row, t] != 0]
        for head in range(q.shape[2]) if seen else ():
            scores = k[row, seen, head // group] @ q[row, t, head] * SCALE
            chances = np.exp(scores - scores.max())
            o[row, t, head] = chances @ v[row, seen, head // group] / chances.sum()
    return o


def test_backends_equal_numpy_on_random_packings():
    segments, positions = packings(36, 19, seed=1)
    assert np.any(segments == 0)
    plan = attention_plan(segments, positions)
    q, k, v, do = arrays(36, 19, 4, 2, 8)
    exact = numpy_attention(q, k, v, segments)
    both = {name: output_and_gradients(q, k, v, do, plan, backend=name) for name in ("reference", "xla")}
    for name, (o, *_) in both.items():
        np.testing.assert_allclose(o, exact, atol=2e-6, err_msg=name)
    for one, other, what in zip(both["reference"], both["xla"], ("o", "dq", "dk", "dv"), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5, err_msg=what)
        assert np.all(np.asarray(other)[segments == 0] == 0), f"{what} of padding"


@pytest.mark.parametrize(
    ("length", "heads", "kv_heads", "width"),
    [
        (CHUNK - 1, 1, 1, 16),
        (CHUNK, 4, 1, 64),
        (CHUNK + 1, 4, 4, 16),
        (2 * CHUNK, 8, 1, 16),
        (2 * CHUNK + 5, 8, 4, 64),
        (3 * CHUNK + 1, 8, 8, 16),
    ],
)
def test_xla_equals_reference(length, heads, kv_heads, width):
    plan = attention_plan(*packings(5, length, seed=length))
    inputs = arrays(5, length, heads, kv_heads, width, seed=length)
    ours = output_and_gradients(*inputs, plan, backend="xla")
    theirs = output_and_gradients(*inputs, plan, backend="reference")
    for one, other, what in zip(theirs, ours, ("o", "dq", "dk", "dv"), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5 * max(1, np.abs(one).max()), err_msg=what)


def test_number_of_chunks_is_bounded(monkeypatch):
    monkeypatch.setattr(xla, "MOST_CHUNKS", 2)
    plan = attention_plan(*packings(2, 21, seed=0))
    q, k, v, _ = arrays(2, 21, 2, 1, 8)
    run = functools.partial(attention, plan=plan, scale=SCALE)
    assert str(jax.make_jaxpr(functools.partial(run, backend="xla"))(q, k, v)).count("exp ") == 2
    np.testing.assert_allclose(run(q, k, v, backend="xla"), run(q, k, v, backend="reference"), atol=1e-5)


@jax.jit
def dense_bfloat16(q, k, v, do, plan):
    """What anyone would write: the yardstick of how far bfloat16 may be from float32."""

    def dense(q, k, v):
        k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
        scores = jnp.einsum("BTNH,BSNH->BNTS", q, k) * SCALE
        mask = plan.mask(slice(None), slice(None))[:, None]
        chances = jax.nn.softmax(jnp.where(mask, scores, -1e9), axis=-1) * mask
        return jnp.einsum("BNTS,BSNH->BTNH", chances.astype(q.dtype), v)

    o, backward = jax.vjp(dense, q, k, v)
    return o, *backward(do)


def test_bfloat16_is_as_near_to_float32_as_dense_attention():
    plan = attention_plan(*packings(6, 21, seed=3))
    inputs = arrays(6, 21, 8, 4, 16, "bfloat16")
    exact = output_and_gradients(*(x.astype(jnp.float32) for x in inputs), plan, backend="reference")
    ours, dense = output_and_gradients(*inputs, plan, backend="xla"), dense_bfloat16(*inputs, plan)
    for x32, x, x_dense, what in zip(exact, ours, dense, ("o", "dq", "dk", "dv"), strict=True):
        assert x.dtype == jnp.bfloat16
        error, allowed = (np.abs(np.asarray(y, np.float32) - x32).max() for y in (x, x_dense))
        assert error <= 2 * allowed + 1e-3, what


def test_queries_over_a_longer_row_read_all_its_keys():
    """A plan that is not aligned, with more queries than a chunk."""
    segments, positions = packings(3, 3 * CHUNK, seed=4)
    q, k, v, _ = arrays(3, 3 * CHUNK, 2, 2, 8)
    whole = numpy_attention(q, k, v, segments)
    last = slice(CHUNK // 2, None)
    plan = AttentionPlan(*(jnp.asarray(x) for x in (positions[:, last], positions, segments[:, last], segments)), False)
    # Key order tells nothing in such a plan: only positions do, so the row may be reversed.
    plan = AttentionPlan(
        plan.q_positions_BT, plan.kv_positions_BS[:, ::-1], plan.q_segments_BT, plan.kv_segments_BS[:, ::-1], False
    )
    o = attention(q[:, last], k[:, ::-1], v[:, ::-1], plan, scale=SCALE, backend="xla")
    np.testing.assert_allclose(o, whole[:, last], atol=2e-6)


def test_mistakes():
    q, k, v, _ = arrays(1, 4, 4, 2, 8)
    plan = attention_plan(*(np.ones((1, 4), np.int32),) * 2)
    with pytest.raises(
        ValueError, match=r"'flash' is unknown; DecoderConfig\.attention is one of auto, reference, xla"
    ):
        attention(q, k, v, plan, scale=1.0, backend="flash")
    with pytest.raises(ValueError, match=r"num_heads is 3; it must be a multiple of num_kv_heads, 2"):
        attention(q[:, :, :3], k, v, plan, scale=1.0)
    with pytest.raises(ValueError, match=r"H is 4 in k_BSKH"):
        attention(q, k[..., :4], v, plan, scale=1.0)
