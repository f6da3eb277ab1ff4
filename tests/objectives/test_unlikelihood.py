import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcxjax.objectives import unlikelihood as module

B, T = 4, 14

repeated_ngrams = jax.jit(module.repeated_ngrams, static_argnums=2)
sequence_repetition = jax.jit(module.sequence_repetition, static_argnums=2)
unlikelihood = jax.jit(module.unlikelihood)


@jax.jit
def slope(logprob_BT):
    return jax.grad(lambda x_BT: module.unlikelihood(x_BT).sum())(logprob_BT)


def whole_ngrams(mask_T, n):
    return [at for at in range(len(mask_T) - n + 1) if all(mask_T[at : at + n])]


def looped(tokens_T, mask_T, n):
    """(repeated_T, share) by reading the row once and remembering every n-gram."""
    seen, repeated_T = set(), [False] * len(tokens_T)
    places = whole_ngrams(mask_T, n)
    for at in places:
        gram = tuple(tokens_T[at : at + n])
        if gram in seen:
            repeated_T[at : at + n] = [True] * n
        seen.add(gram)
    return repeated_T, 1 - len(seen) / len(places) if places else 0.0


@st.composite
def answers(draw):
    """Few different tokens, so that they repeat; rows begin and end anywhere, some have holes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tokens_BT = rng.integers(0, draw(st.integers(1, 4)), size=(B, T)).astype(np.int32)
    start_B1, stop_B1 = np.sort(rng.integers(0, T + 1, size=(2, B, 1)), axis=0)
    columns_T = np.arange(T)
    mask_BT = (columns_T >= start_B1) & (columns_T < stop_B1) & (rng.random((B, T)) < draw(st.sampled_from([1.0, 0.9])))
    return tokens_BT, mask_BT


@given(answers(), st.sampled_from([1, 2, 4, 20]))
@settings(max_examples=60, deadline=None)
def test_repetition_equals_a_loop_that_remembers(drawn, n):
    tokens_BT, mask_BT = drawn
    expected = [looped(*row, n) for row in zip(tokens_BT.tolist(), mask_BT.tolist(), strict=True)]
    np.testing.assert_array_equal(repeated_ngrams(tokens_BT, mask_BT, n), [repeated_T for repeated_T, _ in expected])
    share_B = sequence_repetition(tokens_BT, mask_BT, n)
    assert share_B.dtype == jnp.float32
    np.testing.assert_allclose(share_B, [share for _, share in expected], atol=1e-6)


@pytest.mark.parametrize(
    ("text", "marked", "share"),
    [
        ("abcdXabcdY", "-----####-", 1 / 7),
        ("abcdXabcd", "-----####", 1 / 6),  # the row's last 4-gram counts
        ("abcdabcd", "----####", 1 / 5),
        ("aaaaa", "-####", 1 / 2),  # overlapping
        ("abababab", "--######", 3 / 5),
        ("abcXabcY", "--------", 0),  # three are not four
        ("abc", "---", 0),
        ("abcdZabcdWabcd", "-----####-####", 2 / 11),
    ],
)
def test_what_is_marked(text, marked, share):
    tokens_BT = np.frombuffer(text.ljust(14, "~").encode(), np.uint8).astype(np.int32)[None]
    mask_BT = (np.arange(14) < len(text))[None]
    found = repeated_ngrams(tokens_BT, mask_BT, 4)[0, : len(text)]
    assert "".join("-#"[int(x)] for x in found) == marked
    assert float(sequence_repetition(tokens_BT, mask_BT, 4)[0]) == pytest.approx(share, abs=1e-6)


def test_ngrams_that_lie_partly_outside_the_answer_do_not_count():
    """The prompt's 'bcd' and padding that looks like the answer going on."""
    tokens_BT = np.array([[1, 2, 3, 4, 9, 1, 2, 3, 4, 9, 1, 2, 3, 4]], np.int32)
    columns_T = np.arange(14)
    assert not repeated_ngrams(tokens_BT, ((columns_T >= 1) & (columns_T < 9))[None], 4).any()
    assert not repeated_ngrams(tokens_BT, ((columns_T >= 5) & (columns_T < 13))[None], 4).any()
    np.testing.assert_array_equal(
        repeated_ngrams(tokens_BT, ((columns_T >= 5) & (columns_T < 14))[None], 4)[0], columns_T >= 10
    )


def test_ngrams_have_tokens():
    with pytest.raises(ValueError, match="n is 0; an n-gram has at least 1 token"):
        module.repeated_ngrams(jnp.zeros((1, 3), jnp.int32), jnp.ones((1, 3), bool), 0)


LOGPROBS = np.concatenate([-np.geomspace(1e-8, 80, 200), [-0.5, -np.log(2), 0.0]]).astype(np.float32)[None]


def log_rest(logprob_BT):
    """log(1 − p) in float64."""
    logprob_BT = np.float64(logprob_BT)
    with np.errstate(divide="ignore"):
        return np.where(logprob_BT < -1, np.log1p(-np.exp(logprob_BT)), np.log(-np.expm1(logprob_BT)))


def test_unlikelihood_equals_float64():
    loss_BT = unlikelihood(LOGPROBS)
    assert loss_BT.dtype == jnp.float32
    expected_BT = np.minimum(-log_rest(LOGPROBS), -np.log(1e-5))
    np.testing.assert_allclose(loss_BT, expected_BT, rtol=1e-5, atol=0)
    assert float(loss_BT.max()) == pytest.approx(-np.log(1e-5), rel=1e-6)


def test_unlikelihood_slope_equals_finite_differences_up_to_its_cap():
    logprob_BT = LOGPROBS[LOGPROBS < -1e-6][None]
    low_BT, high_BT = (np.float64(logprob_BT) * factor for factor in (1 + 1e-6, 1 - 1e-6))
    expected_BT = (log_rest(low_BT) - log_rest(high_BT)) / (high_BT - low_BT)
    assert (expected_BT > 20).any()
    assert (expected_BT < 1e-6).any()
    np.testing.assert_allclose(slope(logprob_BT), np.minimum(expected_BT, 20), rtol=1e-4, atol=1e-12)


def test_certain_tokens_are_still_pushed_down():
    """A clamp of 1 − p alone has slope 0 here, where repetition is worst."""
    np.testing.assert_array_equal(slope(jnp.array([[0.0, -1e-9, -1e-6, 1e-7]])), np.full((1, 4), 20.0))


def test_impossible_tokens_and_padding_of_any_size_stay_finite():
    logprob_BT = jnp.array([[-jnp.inf, -1e6, 1e6, -200.0]])
    np.testing.assert_array_equal(unlikelihood(logprob_BT)[0, [0, 1, 3]], np.zeros(3))
    assert np.isfinite(unlikelihood(logprob_BT)).all()
    np.testing.assert_array_equal(slope(logprob_BT), [[0, 0, 20, 0]])


@functools.partial(jax.jit, static_argnums=2)
def loss_of(logits_BTV, tokens_BT, n):
    logprob_BT = jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), tokens_BT[..., None], axis=-1)[..., 0]
    repeated_BT = module.repeated_ngrams(tokens_BT, jnp.ones(tokens_BT.shape, bool), n)
    return jnp.sum(jnp.where(repeated_BT, module.unlikelihood(logprob_BT), 0)) / tokens_BT.size


def test_the_gradient_through_a_softmax_equals_finite_differences():
    rng = np.random.default_rng(0)
    tokens_BT = np.array([[1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 3, 3, 3, 3]], np.int32)
    logits_BTV = rng.normal(size=(1, 14, 5)).astype(np.float32)
    found_BTV = jax.jit(jax.grad(loss_of), static_argnums=2)(logits_BTV, tokens_BT, 4)

    def plain(logits_BTV):
        p_BTV = np.exp(logits_BTV) / np.exp(logits_BTV).sum(-1, keepdims=True)
        repeated_T, _ = looped(tokens_BT[0].tolist(), [True] * 14, 4)
        return -sum(np.log1p(-p_BTV[0, t, tokens_BT[0, t]]) for t in range(14) if repeated_T[t]) / 14

    for place in np.ndindex(logits_BTV.shape):
        step_BTV = np.zeros(logits_BTV.shape)
        step_BTV[place] = 1e-6
        expected = (plain(logits_BTV + step_BTV) - plain(logits_BTV - step_BTV)) / 2e-6
        assert float(found_BTV[place]) == pytest.approx(expected, abs=1e-5)
    assert float(loss_of(logits_BTV, tokens_BT, 4)) == pytest.approx(plain(np.float64(logits_BTV)), abs=1e-6)


def test_without_repetition_the_loss_and_its_gradient_are_nothing():
    tokens_BT = np.arange(14, dtype=np.int32)[None] % 5 + np.array([[0] * 4 + [5] * 5 + [10] * 5], np.int32)
    logits_BTV = np.random.default_rng(1).normal(size=(1, 14, 15)).astype(np.float32)
    assert float(loss_of(logits_BTV, tokens_BT, 4)) == 0
    assert not np.asarray(jax.jit(jax.grad(loss_of), static_argnums=2)(logits_BTV, tokens_BT, 4)).any()
