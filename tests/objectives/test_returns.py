"""Against plain loops in float64; the numbers are those of the alignment checklist (5, 10 to 15)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from hcxjax.objectives import returns
from hcxjax.objectives.returns import AdaptiveKL

B, T = 6, 9
LEAKS = (1e6, -1e6, np.inf, np.nan)
"""What padding holds in these tests."""

gae = jax.jit(returns.gae)
kl_terms = jax.jit(returns.kl_terms)
penalised = jax.jit(returns.penalised)
token_rewards = jax.jit(returns.token_rewards)
up_to_stop = jax.jit(returns.up_to_stop, static_argnums=2)
whitened = jax.jit(returns.whitened)


@st.composite
def ragged(draw):
    """(rng, mask_BT): each row a prompt, an answer that may be empty, padding."""
    mask_BT = np.zeros((B, T), bool)
    for row in range(B):
        start = draw(st.integers(0, T))
        mask_BT[row, start : draw(st.integers(start, T))] = True
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1))), mask_BT


def spoilt(rng, mask_BT, scale=1.0):
    """Float32 noise inside the mask, 1e6, infinities and NaN outside."""
    x_BT = rng.normal(scale=scale, size=mask_BT.shape).astype(np.float32)
    return np.where(mask_BT, x_BT, rng.choice(LEAKS, size=mask_BT.shape)).astype(np.float32)


def close(found, expected, tolerance=1e-5):
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=tolerance, atol=tolerance)


# 5: the response mask


@pytest.mark.parametrize(
    ("answer", "stops", "kept"),
    [
        ([9, 3, 4, 5], (9,), 1),  # the stop comes at once
        ([3, 4, 9, 5], (9,), 3),
        ([3, 4, 5, 9], (9,), 4),
        ([3, 4, 5, 6], (9,), 4),  # never
        ([3, 9, 8, 9], (8, 9), 2),  # several stops: the first that comes
        ([3, 8, 9, 9], (9, 8, 7), 2),
        ([9, 9, 9, 9], (9,), 1),
        ([3, 4, 9, 5], (), 4),  # no token stops
    ],
)
def test_answers_end_with_their_first_stop_token(answer, stops, kept):
    """A stop in the prompt does not end the answer, and padding is none of it."""
    targets_BT = np.array([[9, 8, *answer, 9, 0]], np.int32)
    answer_BT = np.array([[0, 0, 1, 1, 1, 1, 0, 0]], bool)
    mask_BT = up_to_stop(targets_BT, answer_BT, stops)
    assert mask_BT.dtype == bool
    np.testing.assert_array_equal(mask_BT[0], [2 <= t < 2 + kept for t in range(8)])
    assert int(returns.last_place(mask_BT)[0]) == 2 + kept - 1


def test_rows_stop_each_for_itself_and_an_empty_answer_stays_empty():
    targets_BT = np.array([[1, 9, 1, 1], [1, 1, 1, 1], [9, 1, 9, 1]], np.int32)
    answer_BT = np.array([[1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 1, 1]], bool)
    mask_BT = up_to_stop(targets_BT, answer_BT, (9,))
    np.testing.assert_array_equal(mask_BT, np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0]], bool))
    place_B = returns.last_place(mask_BT)
    assert place_B.dtype == jnp.int32
    np.testing.assert_array_equal(place_B, [1, 0, 2])


# 10: answers without a stop token


def test_the_penalty_lowers_scores_of_answers_that_did_not_stop_and_no_others():
    score_B = np.array([0.5, 0.5, -2.0, -2.0], np.float32)
    found_B = penalised(score_B, np.array([True, False, True, False]), 1.25)
    np.testing.assert_array_equal(found_B, np.float32([0.5, -0.75, -2.0, -3.25]))
    np.testing.assert_array_equal(penalised(score_B, np.zeros(4, bool), 0.0), score_B)


# 11: rewards of tokens


@given(ragged())
@settings(max_examples=30, deadline=None)
def test_token_rewards_equal_a_loop_and_add_up(drawn):
    rng, mask_BT = drawn
    logprob_BT, reference_BT = spoilt(rng, mask_BT), spoilt(rng, mask_BT)
    score_B = rng.normal(scale=3, size=B).astype(np.float32)
    reward_BT = token_rewards(logprob_BT, reference_BT, mask_BT, score_B, 0.04)
    expected_BT = np.zeros((B, T))
    for row, t in zip(*np.nonzero(mask_BT), strict=True):
        expected_BT[row, t] = -0.04 * (float(logprob_BT[row, t]) - float(reference_BT[row, t]))
        if not mask_BT[row, t + 1 :].any():
            expected_BT[row, t] += score_B[row]
    close(reward_BT, expected_BT)

    one_BT, other_BT = (np.where(mask_BT, x_BT, 0).astype(np.float64) for x_BT in (logprob_BT, reference_BT))
    kl_B = (one_BT - other_BT).sum(1)
    answered_B = mask_BT.any(1)
    close(reward_BT.sum(1), (score_B - 0.04 * kl_B) * answered_B)


def test_scores_keep_their_fractions():
    """Rewards made like token ids would be 0 and −1."""
    nothing_BT, mask_BT = np.zeros((2, 3), np.float32), np.array([[1, 1, 0], [1, 1, 1]], bool)
    for dtype in (np.float32, jnp.bfloat16):
        reward_BT = token_rewards(nothing_BT, nothing_BT, mask_BT, jnp.asarray([0.7, -1.6], dtype), 0.04)
        close(reward_BT, [[0, 0.7, 0], [0, 0, -1.6]], 4e-3 if dtype == jnp.bfloat16 else 1e-6)


# 12: estimators of the divergence


def test_estimators_of_the_divergence():
    rng = np.random.default_rng(0)
    p_V, q_V = (np.exp(x_V) / np.exp(x_V).sum() for x_V in rng.normal(size=(2, 5)))
    true = float((p_V * np.log(p_V / q_V)).sum())
    terms = kl_terms(np.float32(np.log(p_V))[None], np.float32(np.log(q_V))[None], np.ones((1, 5), bool))
    means = [float((p_V * np.asarray(term_BT)[0]).sum()) for term_BT in terms]  # exact expectations
    d_V = np.log(p_V / q_V)
    for term_BT, expected_V in zip(terms, (d_V, d_V**2 / 2, q_V / p_V - 1 + d_V), strict=True):
        close(term_BT[0], expected_V)
    assert means[0] == pytest.approx(true, abs=1e-6)
    assert means[2] == pytest.approx(true, abs=1e-6)
    assert abs(means[1] - true) > 0.02  # the one that is biased
    assert (np.asarray(terms[0]) < 0).any()
    assert (np.asarray(terms[1:]) >= 0).all()


def test_estimators_leave_padding_out():
    mask_BT = np.array([[1, 0, 0, 0, 0]], bool)
    one_BT, other_BT = np.float32([[-1, *LEAKS]]), np.float32([[-2, *reversed(LEAKS)]])
    # Not compiled: XLA makes a selection of a product with a mask, which would hide that NaN · 0 is NaN.
    for term_BT, expected in zip(returns.kl_terms(one_BT, other_BT, mask_BT), (1, 0.5, np.exp(-1)), strict=True):
        close(term_BT, [[expected, 0, 0, 0, 0]])


# 13: a coefficient that follows the divergence


@pytest.mark.parametrize(
    ("kl", "beta"),
    [
        (6.0, 0.1),  # on target
        (6.6, 0.1 * (1 + 0.1 * 64 / 1000)),
        (5.4, 0.1 * (1 - 0.1 * 64 / 1000)),
        (7.2, 0.1 * (1 + 0.2 * 64 / 1000)),
        (60.0, 0.1 * (1 + 0.2 * 64 / 1000)),  # far off counts as much as a fifth off
        (0.0, 0.1 * (1 - 0.2 * 64 / 1000)),
        (-3.0, 0.1 * (1 - 0.2 * 64 / 1000)),  # an estimate may be negative
        (float("inf"), 0.1 * (1 + 0.2 * 64 / 1000)),
    ],
)
def test_the_coefficient_follows_its_target(kl, beta):
    assert AdaptiveKL(target=6.0, horizon=1000).following(0.1, kl, 64) == pytest.approx(beta, rel=1e-12)


def test_numbers_that_a_coefficient_cannot_follow():
    with pytest.raises(ValueError, match=r"AdaptiveKL\.target is 0; it must be positive"):
        AdaptiveKL(target=0, horizon=100)
    with pytest.raises(ValueError, match=r"AdaptiveKL\.horizon is nan; it must be positive"):
        AdaptiveKL(target=1, horizon=float("nan"))
    with pytest.raises(ValueError, match=r"AdaptiveKL\.horizon is '100'; it must be a number"):
        AdaptiveKL(target=1, horizon="100")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"AdaptiveKL\.horizon is 100; with 500 episodes a rollout .* above 100"):
        AdaptiveKL(target=1, horizon=100).following(0.1, 1.0, 500)
    with pytest.raises(ValueError, match="divergence of the rollout is NaN"):
        AdaptiveKL(target=1, horizon=100).following(0.1, float("nan"), 64)


# 14: advantages and returns


def looped_gae(reward_BT, value_BT, mask_BT, discount, decay):
    """Each row as if only its masked tokens were there."""
    advantage_BT, return_BT = np.zeros((2, B, T))
    for row in range(B):
        columns = np.flatnonzero(mask_BT[row])
        for at, t in enumerate(columns):
            weight, total = 1.0, 0.0
            for later, u in enumerate(columns[at:], at):
                after = value_BT[row, columns[later + 1]] if later + 1 < len(columns) else 0.0
                total += weight * (reward_BT[row, u] + discount * float(after) - value_BT[row, u])
                weight *= discount * decay
            advantage_BT[row, t], return_BT[row, t] = total, total + value_BT[row, t]
    return advantage_BT, return_BT


@given(ragged(), st.sampled_from([(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.99, 0.0), (0.0, 0.95)]))
@settings(max_examples=40, deadline=None)
def test_gae_equals_a_loop_on_ragged_rows(drawn, factors):
    rng, mask_BT = drawn
    reward_BT, value_BT = spoilt(rng, mask_BT), spoilt(rng, mask_BT)
    found = gae(reward_BT, value_BT, mask_BT, *factors)
    for x_BT, expected_BT in zip(found, looped_gae(reward_BT, value_BT, mask_BT, *factors), strict=True):
        close(x_BT, expected_BT)


def test_gae_passes_over_masked_places_inside_a_row():
    """What a tool or a user said between two parts of an answer."""
    rng = np.random.default_rng(3)
    mask_BT = rng.random((B, T)) < 0.6
    reward_BT, value_BT = spoilt(rng, mask_BT), spoilt(rng, mask_BT)
    found = gae(reward_BT, value_BT, mask_BT, 0.9, 0.8)
    for x_BT, expected_BT in zip(found, looped_gae(reward_BT, value_BT, mask_BT, 0.9, 0.8), strict=True):
        close(x_BT, expected_BT)


def test_padding_leaks_without_a_compiler_neither():
    rng = np.random.default_rng(6)
    mask_BT = rng.random((B, T)) < 0.5
    reward_BT, value_BT = spoilt(rng, mask_BT), spoilt(rng, mask_BT)
    found = returns.gae(reward_BT, value_BT, mask_BT, 1.0, 0.95)
    for x_BT, expected_BT in zip(found, looped_gae(reward_BT, value_BT, mask_BT, 1.0, 0.95), strict=True):
        close(x_BT, expected_BT)
    close(returns.whitened(reward_BT, mask_BT), whitened(reward_BT, mask_BT), 1e-6)


def test_with_decay_1_the_return_is_what_is_still_to_come():
    rng = np.random.default_rng(4)
    mask_BT = np.ones((B, T), bool)
    reward_BT, value_BT = spoilt(rng, mask_BT), spoilt(rng, mask_BT)
    _, return_BT = gae(reward_BT, value_BT, mask_BT, 1.0, 1.0)
    close(return_BT, np.cumsum(reward_BT[:, ::-1], axis=1, dtype=np.float64)[:, ::-1])


# 15: whitening


@given(ragged(), st.sampled_from([1e-2, 1.0, 1e3]), st.sampled_from([-50.0, 0.0, 3.0]))
@settings(max_examples=30, deadline=None)
def test_whitening_equals_numpy_over_all_valid_tokens(drawn, scale, shift):
    rng, mask_BT = drawn
    x_BT = spoilt(rng, mask_BT, scale) + np.float32(shift * scale)
    found_BT = whitened(x_BT, mask_BT)
    valid = x_BT[mask_BT].astype(np.float64)
    expected_BT = np.zeros((B, T))
    if valid.size:
        expected_BT[mask_BT] = (valid - valid.mean()) / np.sqrt(valid.var() + 1e-8)
    # Float32 holds x to 6e-8 of its size: the shift takes digits before the function has a say.
    close(found_BT, expected_BT, 1e-6 if shift == 0 else 2e-5)


def test_whitening_of_equal_advantages_is_nothing():
    x_BT = np.full((B, T), 0.25, np.float32)
    close(whitened(x_BT, np.ones((B, T), bool)), np.zeros((B, T)))


@functools.partial(jax.jit, static_argnums=0)
def learnt(beta, logprob_BT, reference_BT, value_BT, mask_BT, score_B):
    reward_BT = returns.token_rewards(logprob_BT, reference_BT, mask_BT, score_B, beta)
    advantage_BT, return_BT = returns.gae(reward_BT, value_BT, mask_BT, 1.0, 0.95)
    return returns.whitened(advantage_BT, mask_BT), return_BT


def test_one_two_four_and_eight_devices_agree():
    """Rows lie apart; the mean and the variance are nevertheless those of all."""
    rng = np.random.default_rng(5)
    rows, length = 16, 40
    mask_BT = np.arange(length) < rng.integers(1, length + 1, size=(rows, 1))
    arrays = [*(spoilt(rng, mask_BT) for _ in range(3)), mask_BT, rng.normal(size=rows).astype(np.float32)]
    arrays[-1][:4] += 10  # the first device's rows differ from the rest
    results = []
    for count in (1, 2, 4, 8):
        mesh = jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])
        placed = jax.device_put(arrays, NamedSharding(mesh, PartitionSpec("data")))
        found = learnt(0.04, *placed)
        assert len(found[0].sharding.device_set) == count
        results.append(jax.device_get(found))
    for advantage_BT, return_BT in results[1:]:
        np.testing.assert_allclose(advantage_BT, results[0][0], rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(return_BT, results[0][1])
