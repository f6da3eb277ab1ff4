import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.kernels.cached import cached_attention

SCALE = 0.3


def case(capacity, positions, seed=0):
    """q_BTNH and the cache k_BKSH, v_BKSH, with 2 of 6 heads for keys."""
    rng, (batch, length) = np.random.default_rng(seed), np.shape(positions)
    shapes = ((batch, length, 6, 16), (batch, 2, capacity, 16), (batch, 2, capacity, 16))
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@functools.partial(jax.jit, static_argnames="capacity")
def run(q, k, v, positions, capacity):
    def read(row, rows, start, size):
        return tuple(jax.lax.dynamic_slice_in_dim(x[row : row + rows], start, size, axis=2) for x in (k, v))

    return cached_attention(q, positions, read, capacity, SCALE)


def by_numpy(q, k, v, positions):
    o = np.zeros(q.shape)
    for row, t, head in np.ndindex(q.shape[:3]):
        seen = slice(0, positions[row][t] + 1)
        scores = k[row, head // 3, seen].astype(np.float64) @ q[row, t, head] * SCALE
        weights = np.exp(scores - scores.max())
        o[row, t, head] = weights @ v[row, head // 3, seen] / weights.sum()
    return o


@pytest.mark.parametrize(
    ("capacity", "positions"),
    [
        (384, [[0], [127], [128], [383]]),  # one query a row: a step of decoding, rows at edges of parts
        (256, [[120, 121, 122, 130], [0, 1, 2, 3]]),  # several: a prompt's chunk, across an edge
        (96, [[95], [4]]),  # parts smaller than usual
        (256, [[0], [10], [100], [127], [128], [200], [255], [3]]),  # rows in two groups
        (50, [[49], [7]]),
    ],
)
def test_it_equals_numpy(capacity, positions):
    q, k, v = case(capacity, positions)
    o = run(q, k, v, np.array(positions, np.int32), capacity)
    np.testing.assert_allclose(o, by_numpy(q, k, v, positions), atol=2e-6)


def test_a_row_is_the_same_bit_for_bit_however_far_the_others_are():
    positions = np.array([[5], [200]], np.int32)
    q, k, v = case(512, positions)
    near = run(q, k, v, positions, 512)
    far = run(q, k, v, positions + np.array([[0], [300]]), 512)
    np.testing.assert_array_equal(near[0], far[0])
    assert np.any(near[1] != far[1])


def test_what_lies_after_the_query_is_not_seen():
    positions = np.array([[3, 4], [9, 10], [128, 129]], np.int32)
    q, k, v = case(256, positions)
    late = (np.arange(256) > positions[:, 1:])[:, None, :, None]
    clean = run(q, k, v, positions, 256)
    for rest in (1e30, np.inf, np.nan):
        found = run(q, np.where(late, rest, k), np.where(late, -rest, v), positions, 256)
        np.testing.assert_array_equal(found, clean)


def test_scores_far_below_0_are_no_trouble():
    positions = np.array([[200], [30]], np.int32)
    q, k, v = case(256, positions)
    q, k = 20 + abs(q), -20 - abs(k)
    np.testing.assert_allclose(run(q, k, v, positions, 256), by_numpy(q, k, v, positions), atol=1e-3)


def test_bfloat16_keeps_its_dtype_and_sums_in_float32():
    positions = np.array([[200], [30]], np.int32)
    q, k, v = case(256, positions)
    o = run(*(jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)), positions, 256)
    assert o.dtype == jnp.bfloat16
    np.testing.assert_allclose(o.astype(np.float32), by_numpy(q, k, v, positions), atol=0.02)
