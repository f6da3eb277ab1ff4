import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.inference.sampling import Sampling, keep_top, sample

draw = jax.jit(sample, static_argnums=2)
keep = jax.jit(keep_top, static_argnums=(1, 2))


def logits(rows, vocab, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, vocab)).astype(np.float32) * 2


def kept_by_numpy(logits_V, top_k, top_p):
    """Ids that are kept, by walking down the sorted list."""
    order = sorted(range(len(logits_V)), key=lambda token: -logits_V[token])
    if top_k:
        order = order[:top_k]
    chances = np.exp(logits_V[order].astype(np.float64))
    chances /= chances.sum()
    kept, reached = set(), 0.0
    for token, chance in zip(order, chances, strict=True):
        kept.add(token)
        reached += chance
        if reached >= top_p:
            break
    return kept


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (1, 1.0), (5, 1.0), (0, 0.9), (0, 1e-6), (7, 0.6), (50, 0.5)])
def test_top_k_and_top_p_equal_numpy(top_k, top_p):
    logits_BV = logits(40, 23)
    kept_BV = np.asarray(keep(logits_BV, top_k, top_p))
    for before_V, after_V in zip(logits_BV, kept_BV, strict=True):
        kept = kept_by_numpy(before_V, top_k, top_p)
        assert set(np.flatnonzero(np.isfinite(after_V))) == kept
        assert all(after_V[token] == before_V[token] for token in kept)


def test_temperature_zero_takes_the_most_likely():
    logits_BV = logits(20, 23)
    drawn_B = draw(logits_BV, np.zeros(20, np.int32), Sampling(temperature=0))
    np.testing.assert_array_equal(drawn_B, logits_BV.argmax(-1))


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0.7, seed=3), Sampling(temperature=1.5, top_k=4, top_p=0.9, seed=4)]
)
def test_draws_follow_the_softmax(sampling):
    logits_V, count = np.array([0.3, -1.0, 1.2, 0.0, -0.4, 0.9], np.float32), 6000
    drawn = np.asarray(draw(np.tile(logits_V, (count, 1)), np.full(count, 5, np.int32), sampling))
    kept = sorted(kept_by_numpy(logits_V / sampling.temperature, sampling.top_k, sampling.top_p))
    assert set(drawn) <= set(kept)
    chances = np.exp(logits_V[kept].astype(np.float64) / sampling.temperature)
    expected = count * chances / chances.sum()
    seen = np.array([(drawn == token).sum() for token in kept])
    # Chi-square with at most 5 degrees of freedom is above 20.5 once in a thousand; the seed is fixed.
    assert ((seen - expected) ** 2 / expected).sum() < 20.5


def test_draws_along_a_row_follow_the_softmax():
    logits_V, positions = np.array([0.3, -1.0, 1.2, 0.0], np.float32), np.arange(4000, dtype=np.int32)

    @jax.jit
    def along(positions):
        return jax.vmap(lambda at: sample(jnp.asarray(logits_V)[None], at[None], Sampling(seed=1))[0])(positions)

    seen = np.bincount(np.asarray(along(positions)), minlength=4)
    expected = 4000 * np.exp(logits_V) / np.exp(logits_V).sum()
    assert ((seen - expected) ** 2 / expected).sum() < 16.3


def test_a_draw_depends_on_seed_row_and_position_alone():
    logits_BV, positions_B = np.zeros((32, 97), np.float32), np.arange(32, dtype=np.int32)
    run = functools.partial(draw, logits_BV, positions_B)
    drawn_B = np.asarray(run(Sampling()))
    np.testing.assert_array_equal(run(Sampling()), drawn_B)
    assert np.any(np.asarray(run(Sampling(seed=1))) != drawn_B)
    assert np.any(np.asarray(draw(logits_BV, positions_B + 1, Sampling())) != drawn_B)
    others_BV = logits(32, 97)
    others_BV[3] = logits_BV[3]
    assert draw(others_BV, positions_B, Sampling())[3] == drawn_B[3]
    np.testing.assert_array_equal(draw(logits_BV[:4], positions_B[:4], Sampling()), drawn_B[:4])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", float("nan")),
    ],
)
def test_mistakes_name_the_field(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        Sampling(**{field: value})
