"""Against float64 and finite differences; the numbers are those of the alignment checklist (3, 16 and 17)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.objectives import clipping

policy_loss = jax.jit(clipping.policy_loss, static_argnums=(3, 4))
value_loss = jax.jit(clipping.value_loss, static_argnums=3)


@functools.partial(jax.jit, static_argnums=(3, 4))
def policy_slope(logprob_BT, old_BT, advantage_BT, clip, dual_clip=None):
    return jax.grad(lambda x_BT: clipping.policy_loss(x_BT, old_BT, advantage_BT, clip, dual_clip).sum())(logprob_BT)


@functools.partial(jax.jit, static_argnums=3)
def value_slope(value_BT, old_BT, return_BT, clip):
    return jax.grad(lambda x_BT: clipping.value_loss(x_BT, old_BT, return_BT, clip).sum())(value_BT)


def drawn(seed=0, shape=(8, 16)):
    """Three arrays, float32: differences up to several times the clip ranges, of either sign."""
    rng = np.random.default_rng(seed)
    old_BT, advantage_BT = rng.normal(size=(2, *shape)).astype(np.float32)
    return (old_BT + rng.normal(scale=0.4, size=shape)).astype(np.float32), old_BT, advantage_BT


def plain_policy_loss(logprob_BT, old_BT, advantage_BT, clip, dual_clip=None):
    """Float64, one token at a time, in the words of the paper: the smaller of two surrogates, negated."""
    loss_BT = np.zeros(logprob_BT.shape)
    for place in np.ndindex(logprob_BT.shape):
        ratio = np.exp(np.clip(float(logprob_BT[place]) - float(old_BT[place]), -20, 20))
        advantage = float(advantage_BT[place])
        objective = min(ratio * advantage, min(max(ratio, 1 - clip), 1 + clip) * advantage)
        if dual_clip and advantage < 0:
            objective = max(objective, dual_clip * advantage)
        loss_BT[place] = -objective
    return loss_BT


def plain_value_loss(value_BT, old_BT, return_BT, clip):
    value_BT, old_BT, return_BT = (np.float64(x_BT) for x_BT in (value_BT, old_BT, return_BT))
    near_BT = old_BT + np.clip(value_BT - old_BT, -clip, clip)
    return 0.5 * np.maximum((value_BT - return_BT) ** 2, (near_BT - return_BT) ** 2)


def finite_difference(loss, x_BT, step=1e-6):
    x_BT = np.float64(x_BT)
    return (loss(x_BT + step) - loss(x_BT - step)) / (2 * step)


# 3: before the first step


def test_at_the_old_policy_the_ratio_is_one_and_the_loss_vanishes():
    _, old_BT, advantage_BT = drawn()
    white_BT = (advantage_BT - advantage_BT.mean()) / advantage_BT.std()
    loss_BT = policy_loss(old_BT, old_BT, white_BT, 0.2)
    np.testing.assert_array_equal(loss_BT, -white_BT)  # the ratio is exactly 1
    assert abs(float(loss_BT.mean())) <= 1e-5
    np.testing.assert_array_equal(policy_slope(old_BT, old_BT, white_BT, 0.2), -white_BT)


# 16: the policy's loss


@pytest.mark.parametrize("dual_clip", [None, 1.3])
def test_policy_loss_equals_the_paper(dual_clip):
    arrays = drawn()
    found_BT, expected_BT = policy_loss(*arrays, 0.2, dual_clip), plain_policy_loss(*arrays, 0.2, dual_clip)
    assert found_BT.dtype == jnp.float32
    np.testing.assert_allclose(found_BT, expected_BT, rtol=1e-6, atol=1e-6)
    ratio_BT = np.exp(arrays[0] - arrays[1])
    for side in (ratio_BT > 1.3, ratio_BT < 0.8, (ratio_BT > 0.8) & (ratio_BT < 1.2)):
        for sign in (arrays[2] > 0, arrays[2] < 0):
            assert (side & sign).any()  # every branch was taken


@pytest.mark.parametrize("dual_clip", [None, 1.3])
def test_policy_slope_equals_finite_differences(dual_clip):
    logprob_BT, old_BT, advantage_BT = drawn(1)
    expected_BT = finite_difference(
        lambda x_BT: plain_policy_loss(x_BT, old_BT, advantage_BT, 0.2, dual_clip), logprob_BT
    )
    found_BT = policy_slope(logprob_BT, old_BT, advantage_BT, 0.2, dual_clip)
    np.testing.assert_allclose(found_BT, expected_BT, rtol=1e-5, atol=1e-5)
    gone_BT = (np.exp(logprob_BT - old_BT) > 1.2) & (advantage_BT > 0)
    assert gone_BT.any()
    assert not np.asarray(found_BT)[gone_BT].any()  # nothing to gain beyond the clip


def test_policy_loss_of_one_token_by_hand():
    old_BT = jnp.zeros((1, 4))
    logprob_BT = jnp.log(jnp.array([[1.5, 1.5, 0.5, 0.5]]))
    advantage_BT = jnp.array([[2.0, -2.0, 2.0, -2.0]])
    np.testing.assert_allclose(policy_loss(logprob_BT, old_BT, advantage_BT, 0.2), [[-2.4, 3.0, -1.0, 1.6]], rtol=1e-6)
    np.testing.assert_allclose(
        policy_loss(logprob_BT, old_BT, advantage_BT, 0.2, 1.25), [[-2.4, 2.5, -1.0, 1.6]], rtol=1e-6
    )


def test_ratios_beyond_float32_stay_finite_and_padding_of_any_size_too():
    logprob_BT = jnp.array([[0.0, -500.0, 1e6, -1e6, 1e6]])
    old_BT = jnp.array([[-500.0, 0.0, -1e6, 1e6, 1e6]])
    advantage_BT = jnp.array([[-1.0, -1.0, -1e6, 1e6, 1e6]])
    loss_BT = policy_loss(logprob_BT, old_BT, advantage_BT, 0.2)
    np.testing.assert_allclose(loss_BT[0, 0], np.exp(20), rtol=1e-5)
    assert np.isfinite(loss_BT).all()
    assert np.isfinite(policy_slope(logprob_BT, old_BT, advantage_BT, 0.2)).all()


def test_sums_over_sums_are_equal_under_any_microbatching():
    """Rows of uneven length: means of means would not be."""
    logprob_BT, old_BT, advantage_BT = drawn(2)
    mask_BT = np.arange(16) < np.random.default_rng(0).integers(1, 17, size=(8, 1))

    def sums(rows):
        loss_BT = policy_loss(logprob_BT[rows], old_BT[rows], advantage_BT[rows], 0.2)
        return float(np.where(mask_BT[rows], loss_BT, 0).sum()), mask_BT[rows].sum()

    total, count = sums(slice(0, 8))
    for parts in (2, 4, 8):
        pieces = [sums(slice(at, at + 8 // parts)) for at in range(0, 8, 8 // parts)]
        assert sum(piece[0] for piece in pieces) / sum(piece[1] for piece in pieces) == pytest.approx(
            total / count, rel=1e-6
        )
        assert np.mean([piece[0] / piece[1] for piece in pieces]) != pytest.approx(total / count, rel=1e-3)


# 17: the value's loss


def test_value_loss_equals_the_reference_and_its_slope_finite_differences():
    value_BT, old_BT, return_BT = drawn(3)
    found_BT = value_loss(value_BT, old_BT, return_BT, 0.2)
    assert found_BT.dtype == jnp.float32
    np.testing.assert_allclose(found_BT, plain_value_loss(value_BT, old_BT, return_BT, 0.2), rtol=1e-6, atol=1e-6)
    expected_BT = finite_difference(lambda x_BT: plain_value_loss(x_BT, old_BT, return_BT, 0.2), value_BT)
    np.testing.assert_allclose(value_slope(value_BT, old_BT, return_BT, 0.2), expected_BT, rtol=1e-5, atol=1e-5)
    far_BT = abs(value_BT - old_BT) > 0.2
    assert far_BT.any()
    assert not far_BT.all()


def test_value_loss_of_one_token_by_hand():
    """0.5 is clipped to 0.2: towards a return of 1 the clipped error counts, and away from it the true one."""
    value_BT, old_BT = jnp.full((1, 2), 0.5), jnp.zeros((1, 2))
    loss_BT = value_loss(value_BT, old_BT, jnp.array([[1.0, -1.0]]), 0.2)
    np.testing.assert_allclose(loss_BT, [[0.8**2 / 2, 1.5**2 / 2]], rtol=1e-6)
    np.testing.assert_allclose(value_slope(value_BT, old_BT, jnp.array([[1.0, -1.0]]), 0.2), [[0, 1.5]], rtol=1e-6)
