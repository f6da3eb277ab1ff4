import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hcxjax.optim import AdamW, Cosine, Linear, SpikeGuard, SpikeStatistics, WarmupStableDecay


@pytest.mark.parametrize(("warmup", "final"), [(0, 0.1), (5, 0.0), (20, 0.3)])
def test_cosine(warmup, final):
    rates = Cosine(2.0, steps=20, warmup=warmup, final_share=final)(np.arange(25))
    for step, rate in enumerate(rates):
        if step < warmup:
            exact = 2.0 * (step + 1) / warmup
        else:
            done = min(1, (step - warmup) / max(1, 20 - warmup))
            exact = 2.0 * (final + (1 - final) * (1 + math.cos(math.pi * done)) / 2)
        assert float(rate) == pytest.approx(exact, rel=1e-5, abs=1e-6), step


@pytest.mark.parametrize(("warmup", "share", "final"), [(0, 0.1, 0.0), (5, 0.25, 0.2), (4, 0.8, 0.0)])
def test_warmup_stable_decay(warmup, share, final):
    rates = WarmupStableDecay(2.0, steps=20, warmup=warmup, decay_share=share, final_share=final)(np.arange(25))
    decay = round(20 * share)
    for step, rate in enumerate(rates):
        if step < warmup:
            exact = 2.0 * (step + 1) / warmup
        else:
            left = min(1, max(0, 20 - step) / decay)
            exact = 2.0 * (final + (1 - final) * left)
        assert float(rate) == pytest.approx(exact, rel=1e-5, abs=1e-6), step


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Cosine(0.0, 10), r"Cosine\.peak is 0\.0"),
        (lambda: Cosine(1.0, 0), r"Cosine\.steps is 0; it must be a whole number of at least 1"),
        (lambda: Cosine(1.0, 10, warmup=11), r"Cosine\.warmup is 11; it must lie between 0 and steps, 10"),
        (lambda: WarmupStableDecay(-1.0, 10), r"WarmupStableDecay\.peak is -1\.0"),
        (lambda: WarmupStableDecay(1.0, 10, decay_share=1.5), r"WarmupStableDecay\.decay_share is 1\.5"),
        (lambda: AdamW(Cosine(1.0, 10), clip_norm=0.0), r"AdamW\.clip_norm is 0\.0"),
    ],
)
def test_mistakes_name_the_field(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def weights(rng, scale):
    shapes = {
        "embed": (5, 3),
        "layers": {"mlp_norm": {"weight": (2, 3)}, "mlp": {"up": {"weight": (2, 3, 4)}}},
        "norm": {"weight": (3,)},
    }
    return jax.tree.map(lambda shape: scale * rng.normal(size=shape), shapes, is_leaf=lambda x: isinstance(x, tuple))


def test_adamw_equals_float64_numpy_over_three_steps():
    rng, schedule = np.random.default_rng(0), Cosine(0.01, steps=5, warmup=2)
    params, scales = weights(rng, 1.0), (0.1, 30.0, 0.2)  # the second gradient is clipped
    gradients = [weights(rng, scale) for scale in scales]
    optimizer = AdamW(schedule, b1=0.9, b2=0.95, weight_decay=0.3, clip_norm=2.0)
    transformation = optimizer.transformation()
    ours = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    state, update = transformation.init(ours), jax.jit(transformation.update)

    paths, theirs = zip(*jax.tree_util.tree_flatten_with_path(params)[0], strict=True)
    theirs, m, v = list(theirs), [0.0] * len(paths), [0.0] * len(paths)
    norms = []
    for step, gradient in enumerate(gradients):
        changes, state = update(jax.tree.map(np.float32, gradient), state, ours)
        ours = optax.apply_updates(ours, changes)
        leaves = jax.tree.leaves(gradient)
        norms.append(math.sqrt(sum(float((leaf**2).sum()) for leaf in leaves)))
        rate = float(schedule(step))
        assert float(optimizer.learning_rate(step)) == rate
        for i, (path, g) in enumerate(zip(paths, leaves, strict=True)):
            g = g * min(1.0, 2.0 / norms[-1])
            m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.95 * v[i] + 0.05 * g**2
            mean, square = m[i] / (1 - 0.9 ** (step + 1)), v[i] / (1 - 0.95 ** (step + 1))
            decay = 0.0 if "norm" in str(path) else 0.3
            theirs[i] = theirs[i] - rate * (mean / (np.sqrt(square) + 1e-8) + decay * theirs[i])
        for path, one, other in zip(paths, jax.tree.leaves(ours), theirs, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6, err_msg=f"{step} {path}")
    assert norms[0] < 2 < norms[1]


def judge_all(guard, losses, norms):
    """Every verdict and the last statistics."""
    judge, statistics, verdicts = jax.jit(guard.judge), SpikeStatistics.empty(), []
    for loss, norm in zip(losses, norms, strict=True):
        skip, statistics = judge(statistics, jnp.float32(loss), jnp.float32(norm))
        verdicts.append(bool(skip))
    return verdicts, statistics


def test_spike_statistics_are_mean_and_variance_of_the_logarithms():
    rng = np.random.default_rng(1)
    losses, norms = np.exp(rng.normal(size=(2, 12)) * 0.1)
    verdicts, statistics = judge_all(SpikeGuard(memory=100), losses, norms)
    assert not any(verdicts)
    logs = np.log([losses, norms])
    np.testing.assert_allclose(statistics.mean_M, logs.mean(1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(statistics.variance_M, logs.var(1), rtol=1e-4)
    assert statistics.count == 12


def test_spike_statistics_forget_beyond_their_memory():
    losses = [1.0] * 10 + [math.e] * 40
    _, statistics = judge_all(SpikeGuard(memory=4, warmup=100), losses, losses)
    mean, variance = 0.0, 0.0
    for step, loss in enumerate(losses):
        weight, excess = 1 / min(step + 1, 4), math.log(loss) - mean
        mean, variance = mean + weight * excess, (1 - weight) * (variance + weight * excess**2)
    np.testing.assert_allclose(statistics.mean_M, [mean] * 2, rtol=1e-5)
    np.testing.assert_allclose(statistics.variance_M, [variance] * 2, rtol=1e-4, atol=1e-6)
    assert mean > 0.99


@pytest.mark.parametrize(
    ("loss", "norm", "skipped"),
    [
        (1.9, 1.0, False),  # many deviations, but not the least factor
        (2.1, 1.0, True),
        (1.0, 2.1, True),
        (0.01, 0.01, False),  # falling is no spike
        (math.nan, 1.0, True),
        (1.0, math.inf, True),
    ],
)
def test_a_spike_is_skipped_and_leaves_the_statistics(loss, norm, skipped):
    guard, calm = SpikeGuard(warmup=5), [1.0, 1.01] * 3
    _, before = judge_all(guard, calm, calm)
    verdicts, after = judge_all(guard, [*calm, loss], [*calm, norm])
    assert verdicts == [False] * 6 + [skipped]
    unchanged = all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))
    assert unchanged == skipped


def test_the_guard_waits_for_its_warmup_and_for_deviations():
    spikes = [1.0, 1.0, 50.0]
    assert judge_all(SpikeGuard(warmup=3), spikes, spikes)[0] == [False] * 3
    assert judge_all(SpikeGuard(warmup=2), spikes, spikes)[0] == [False, False, True]
    noisy = [1.0, 4.0] * 5 + [9.0]  # over twice the mean of the logarithm, but within six deviations
    assert not any(judge_all(SpikeGuard(warmup=5), noisy, noisy)[0])
    assert judge_all(SpikeGuard(warmup=5, deviations=1.0), noisy, noisy)[0][-1]
    nothing = [0.0] * 4
    assert not any(judge_all(SpikeGuard(warmup=2), nothing, nothing)[0])


def test_linear_holds_its_rate_over_the_updates_of_a_rollout():
    schedule = Linear(3e-6, steps=8, hold=4)
    np.testing.assert_allclose([float(schedule(step)) for step in range(8)], [3e-6] * 4 + [1.5e-6] * 4, rtol=1e-6)
    np.testing.assert_allclose(float(Linear(2.0, steps=10, final_share=0.1)(10)), 0.2, rtol=1e-6)
    with pytest.raises(ValueError, match=r"Linear\.hold is 0"):
        Linear(1e-3, steps=8, hold=0)


def test_the_guard_may_leave_the_loss_out():
    guard, statistics = SpikeGuard(loss=False, warmup=0, memory=4), SpikeStatistics.empty()
    for loss in (1.0, -0.5, -1e-9, 50.0):
        skip, statistics = guard.judge(statistics, jnp.float32(loss), jnp.float32(1.0))
        assert not skip
    assert guard.judge(statistics, jnp.float32(0.1), jnp.float32(9.0))[0], "the norm still counts"
    assert guard.judge(statistics, jnp.float32(jnp.nan), jnp.float32(1.0))[0]
