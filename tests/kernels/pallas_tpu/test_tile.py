import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.kernels.pallas_tpu.tile import column, dot, folded, masked, rotated, spread
from hcxjax.kernels.rotary import rotate


def test_columns_and_lanes():
    x = np.arange(24.0).reshape(2, 12)
    np.testing.assert_array_equal(column(x[:1], 4), np.repeat(x[0], 4).reshape(12, 4))
    np.testing.assert_array_equal(spread(column(x[:1], 4), 8), np.repeat(x[0], 8).reshape(12, 8))
    np.testing.assert_array_equal(spread(column(x[:1], 4), 3), np.repeat(x[0], 3).reshape(12, 3))
    np.testing.assert_array_equal(folded(x, 4), x.reshape(2, 3, 4).sum(1))


def test_dot_is_in_float32():
    x = jnp.full((2, 3), 1 + 2**-7, jnp.bfloat16)
    assert dot(x, x, axes=(1, 1)).dtype == jnp.float32
    np.testing.assert_allclose(dot(x, x, axes=(1, 1)), np.full((2, 2), 3 * (1 + 2**-7) ** 2), rtol=1e-7)


def test_rotation_is_the_models_and_back():
    rng = np.random.default_rng(0)
    x, turns = rng.normal(size=(5, 8)).astype(np.float32), rng.normal(size=(5, 4)).astype(np.float32)
    turned = rotated(x, jnp.cos(turns), jnp.sin(turns))
    expected = rotate(x[None, :, None], (jnp.cos(turns)[None], jnp.sin(turns)[None]))[0, :, 0]
    np.testing.assert_allclose(turned, expected, atol=1e-6)
    np.testing.assert_allclose(rotated(turned, jnp.cos(turns), -jnp.sin(turns)), x, atol=1e-6)


@pytest.mark.parametrize("offset", [-8, -3, 0, 5, 40])
def test_masks_either_way_round(offset):
    q_segments, kv_segments = np.array([[1, 1, 1, 2, 2, 0, 0, 3]]), np.array([[1, 2, 2, -1, 3, 3]])
    allowed = (kv_segments == q_segments.T) & (np.arange(6) <= np.arange(8)[:, None] + offset)
    s = jax.random.normal(jax.random.key(0), (8, 6))
    down = masked(s, column(q_segments, 6), kv_segments, jnp.int32(offset), queries_down=True)
    across = masked(s.T, column(kv_segments, 8), q_segments, jnp.int32(offset), queries_down=False)
    np.testing.assert_array_equal(down, np.where(allowed, s, -np.inf))
    np.testing.assert_array_equal(across, down.T)
