import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.inference.sampling import Draws, Sampling, filtered, sample

keep = jax.jit(filtered)
drawn = jax.jit(sample)


def logits(rows, vocab, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, vocab)).astype(np.float32) * 2


def asked(samplings, streams=None):
    """Draws of many rows."""
    streams = range(len(samplings)) if streams is None else streams
    rows = [Draws.of(sampling, stream) for sampling, stream in zip(samplings, streams, strict=True)]
    return Draws(*(np.concatenate(column) for column in zip(*rows, strict=True)))


def draw(logits_BV, samplings, positions=7, seen=None, running=None, streams=None):
    rows = len(logits_BV)
    samplings = [samplings] * rows if isinstance(samplings, Sampling) else samplings
    seen = np.zeros(logits_BV.shape, bool) if seen is None else seen
    running = np.ones(rows, bool) if running is None else running
    positions = np.full(rows, positions, np.int32) if np.isscalar(positions) else positions
    return np.asarray(drawn(logits_BV, seen, positions, running, asked(samplings, streams)))


def kept_by_numpy(logits_V, sampling):
    """Ids that are kept, by walking down the sorted list."""
    order = sorted(range(len(logits_V)), key=lambda token: -logits_V[token])
    order = order[: sampling.top_k or None]
    chances = np.exp(logits_V[order].astype(np.float64))
    chances /= chances.sum()
    kept, reached = set(), 0.0
    for token, chance in zip(order, chances, strict=True):
        kept.add(token)
        reached += chance
        if reached >= sampling.top_p:
            break
    best = max(logits_V)
    return {token for token in kept if np.exp(np.float64(logits_V[token]) - best) >= sampling.min_p}


FILTERS = [
    Sampling(),
    Sampling(top_k=1),
    Sampling(top_k=5),
    Sampling(top_k=50),
    Sampling(top_p=0.9),
    Sampling(top_p=1e-6),
    Sampling(top_p=1e-40),
    Sampling(top_k=7, top_p=0.6),
    Sampling(top_k=50, top_p=0.5),
    Sampling(min_p=0.1),
    Sampling(min_p=1.0),
    Sampling(top_k=9, top_p=0.95, min_p=0.02),
]


def test_filters_equal_numpy_each_row_by_its_own():
    rows = [sampling for sampling in FILTERS for _ in range(12)]
    logits_BV = logits(len(rows), 23)
    kept_BV = np.asarray(keep(logits_BV, asked(rows)))
    for sampling, before_V, after_V in zip(rows, logits_BV, kept_BV, strict=True):
        kept = kept_by_numpy(before_V, sampling)
        assert set(np.flatnonzero(np.isfinite(after_V))) == kept, sampling
        assert all(after_V[token] == before_V[token] for token in kept)


def test_equal_logits_stay_or_go_together():
    logits_V = np.array([1.0, 3.0, 3.0, -0.0, 0.0, 3.0], np.float32)
    kept = np.isfinite(
        keep(np.tile(logits_V, (3, 1)), asked([Sampling(top_k=1), Sampling(top_k=4), Sampling(top_p=0.1)]))
    )
    np.testing.assert_array_equal(kept[0], logits_V == 3)
    np.testing.assert_array_equal(kept[1], logits_V >= 1)
    np.testing.assert_array_equal(kept[2], logits_V == 3)


def test_the_next_smaller_float_is_another_logit():
    above = np.float32(1.5)
    for kept in (above, -above, np.float32(1e-38)):
        logits_BV = np.array([[np.nextafter(kept, np.float32(-np.inf)), kept, kept - 1]], np.float32)
        assert np.isfinite(keep(logits_BV, asked([Sampling(top_k=1)]))).tolist() == [[False, True, False]]
        assert np.isfinite(keep(logits_BV, asked([Sampling(top_k=2)]))).tolist() == [[True, True, False]]


def test_temperature_zero_takes_the_most_likely():
    logits_BV = logits(20, 23)
    np.testing.assert_array_equal(draw(logits_BV, Sampling(temperature=0, top_k=3)), logits_BV.argmax(-1))


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7, seed=3),
        Sampling(temperature=1.5, top_k=4, top_p=0.9, seed=4),
        Sampling(temperature=1.2, min_p=0.2, seed=5),
    ],
)
def test_draws_follow_the_softmax(sampling):
    logits_V, count = np.array([0.3, -1.0, 1.2, 0.0, -0.4, 0.9], np.float32), 6000
    found = draw(np.tile(logits_V, (count, 1)), sampling)
    kept = sorted(kept_by_numpy(logits_V / sampling.temperature, sampling))
    assert set(found) <= set(kept)
    chances = np.exp(logits_V[kept].astype(np.float64) / sampling.temperature)
    expected = count * chances / chances.sum()
    seen = np.array([(found == token).sum() for token in kept])
    # Chi-square with at most 5 degrees of freedom is above 20.5 once in a thousand; the seed is fixed.
    assert ((seen - expected) ** 2 / expected).sum() < 20.5


def test_draws_along_a_row_follow_the_softmax():
    logits_V, count = np.array([0.3, -1.0, 1.2, 0.0], np.float32), 4000
    found = draw(np.tile(logits_V, (count, 1)), Sampling(seed=1), np.arange(count, dtype=np.int32), streams=[0] * count)
    seen = np.bincount(found, minlength=4)
    expected = count * np.exp(logits_V) / np.exp(logits_V).sum()
    assert ((seen - expected) ** 2 / expected).sum() < 16.3


def test_a_draw_depends_on_seed_stream_and_position_alone():
    logits_BV, positions = np.zeros((32, 97), np.float32), np.arange(32, dtype=np.int32)
    run = functools.partial(draw, logits_BV, positions=positions)
    found = run(Sampling())
    np.testing.assert_array_equal(run(Sampling()), found)
    assert np.any(run(Sampling(seed=1)) != found)
    assert np.any(run(Sampling(seed=2**32 - 1)) != found)
    assert np.any(run(Sampling(), streams=range(1, 33)) != found)
    assert np.any(draw(logits_BV, Sampling(), positions + 1) != found)
    back = draw(logits_BV, Sampling(), positions[::-1], streams=range(31, -1, -1))
    np.testing.assert_array_equal(back[::-1], found)


def test_rows_do_not_see_each_other_s_settings():
    logits_BV = logits(len(FILTERS), 61)
    mixed = [*FILTERS[:-2], Sampling(temperature=0), Sampling(repetition_penalty=2.0)]
    seen = np.random.default_rng(0).random(logits_BV.shape) < 0.3
    together = draw(logits_BV, mixed, seen=seen)
    for row, sampling in enumerate(mixed):
        alone = draw(logits_BV[row : row + 1], sampling, seen=seen[row : row + 1], streams=[row])
        assert alone[0] == together[row], sampling


def test_what_only_free_rows_ask_for_changes_nothing():
    logits_BV, rows = logits(4, 23), [Sampling(temperature=0), *[Sampling(top_k=2, repetition_penalty=3.0)] * 3]
    running = np.array([True, False, False, False])
    seen = np.ones(logits_BV.shape, bool)
    assert draw(logits_BV, rows, running=running, seen=seen)[0] == logits_BV[0].argmax()


def test_repetition_penalty_divides_what_is_positive_and_multiplies_what_is_negative():
    logits_BV = np.array([[2.0, 1.5, -1.0], [2.0, 0.5, -1.0], [-1.0, -1.2, -3.0]], np.float32)
    seen = np.array([[True, False, True], [True, True, False], [True, False, False]])
    found = draw(logits_BV, Sampling(temperature=0, repetition_penalty=1.5), seen=seen)
    np.testing.assert_array_equal(found, [1, 0, 1])  # 1.33 1.5 -1.5 | 1.33 0.33 -1 | -1.5 -1.2 -3
    np.testing.assert_array_equal(draw(logits_BV, Sampling(temperature=0), seen=seen), [0, 0, 0])


def test_filters_equal_transformers():
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    logits_BV = logits(40, 200)
    for sampling in FILTERS[1:]:
        theirs = torch.from_numpy(logits_BV.copy())
        if sampling.top_k:
            theirs = process.TopKLogitsWarper(sampling.top_k)(None, theirs)
        if sampling.top_p < 1:
            theirs = process.TopPLogitsWarper(sampling.top_p)(None, theirs)
        if sampling.min_p:
            theirs = process.MinPLogitsWarper(sampling.min_p)(None, theirs)
        ours = np.asarray(keep(logits_BV, asked([sampling] * 40)))
        np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(theirs.numpy()), err_msg=str(sampling))


def test_bfloat16_logits_are_no_trouble():
    found = keep(jnp.asarray(logits(4, 23), jnp.bfloat16).astype(jnp.float32), asked([Sampling(top_k=3)] * 4))
    assert np.isfinite(found).sum(-1).min() >= 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("inf")),
        ("top_k", 2**31),
        ("seed", -1),
        ("seed", 2**32),
    ],
)
def test_mistakes_name_the_field(field, value):
    with pytest.raises(ValueError, match=rf"{field} is {value!r}"):
        Sampling(**{field: value})
