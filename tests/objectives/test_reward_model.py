"""The reward model's loss against references, over whole and divided batches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.models.scalar import scalars
from hcxjax.objectives.reward_model import PairwiseReward

CHOSEN = [0.7, -1.6, 3.25, -40.0, 0.1, 2.0]
REJECTED = [-0.3, -1.1, 3.25, 60.0, -0.2, -5.0]
MARGIN = [0.5, 2.0, 0.0, 1.0, 3.0, 0.25]
TRL = {
    (0.0, 0.0): [0.31326168751822286, 0.9740769841801067, 0.6931471805599453, 100.0, 0.5543552444685271, 0.0009114664],
    (1.0, 0.0): [0.4740769841801067, 2.5788897342925496, 0.6931471805599453, 101.0, 2.765043561776591, 0.0011701946],
    (1.0, 0.01): [0.4756769841801067, 2.65178973429255, 1.1156471805599453, 105.0, 2.765143561776591, 0.0911701946],
}
"""(margin_scale, centering) → losses by the formulas of TRL's RewardTrainer, by torch in float64."""


@dataclasses.dataclass(frozen=True)
class Given(PairwiseReward):
    """Whose parameters are the scores themselves."""

    def rewards(self, params, batch):
        return params


@pytest.mark.parametrize("weights", TRL)
def test_the_loss_equals_a_reference(weights, tiny, comparisons):
    batch = comparisons(6, 10, tiny.vocab_size) | {"margin_B": np.array(MARGIN, np.float32)}
    scores = (jnp.array(CHOSEN), jnp.array(REJECTED))
    for row, expected in enumerate(TRL[weights]):
        alone = batch | {"weight_B": np.eye(6, dtype=np.float32)[row]}
        total, weight, _ = Given(tiny, *weights).loss(scores, alone, jax.random.key(0))
        assert weight == 1
        assert float(total) == pytest.approx(expected, rel=1e-6)


def test_no_difference_is_too_large_for_a_gradient(tiny, comparisons):
    batch = comparisons(4, 10, tiny.vocab_size)
    scores = (jnp.array([1e4, -1e4, 0, 0]), jnp.array([-1e4, 1e4, 0, 0]))
    slope, _ = jax.grad(lambda scores: Given(tiny).loss(scores, batch, jax.random.key(0))[0])(scores)
    np.testing.assert_allclose(slope, [0, -1, -0.5, 0], atol=1e-6)


@functools.partial(jax.jit, static_argnums=0)
def evaluated(objective, params, batch):
    return objective.loss(params, batch, None)


@pytest.fixture(scope="module")
def params(tiny, random_params):
    rng = np.random.default_rng(5)
    head = {"weight": jnp.asarray(rng.normal(size=tiny.embed_dim), jnp.float32), "bias": jnp.float32(0.7)}
    return {"decoder": random_params(tiny), "head": head}


def test_a_batch_s_loss_is_that_of_scores_at_each_answer_s_last_token(tiny, params, comparisons):
    objective = PairwiseReward(tiny, margin_scale=0.5, centering=0.01, sources=("ko", "en", "code"))
    batch = comparisons(6, 16, tiny.vocab_size, seed=2)
    scores = {}
    for name in ("chosen", "rejected"):
        tokens, end = batch[f"{name}_tokens_BT"], batch[f"{name}_end_B"]
        here = (np.arange(16) <= end[:, None]).astype(np.int32)
        rows = {"tokens_BT": tokens, "segment_ids_BT": here, "positions_BT": np.tile(np.arange(16), (6, 1))}
        scores[name] = np.asarray(jax.jit(scalars, static_argnums=0)(tiny, params, rows), np.float64)[np.arange(6), end]
    difference, both, weight = scores["chosen"] - scores["rejected"], sum(scores.values()), batch["weight_B"]
    losses = np.logaddexp(0, -(difference - 0.5 * batch["margin_B"]))
    total, count, metrics = evaluated(objective, params, batch)
    assert float(count) == 5
    assert float(total) == pytest.approx((weight * (losses + 0.01 * both**2)).sum(), rel=1e-5)
    expected = {"loss": losses, "accuracy": difference > 0, "margin": difference, "reward": both / 2}
    for name, values in expected.items():
        np.testing.assert_allclose(metrics[name], ((weight * values).sum(), 5), rtol=1e-4, err_msg=name)
    assert {"loss/en", "accuracy/ko", "share/code", "padding"} < metrics.keys()

    parts = [{name: value[rows] for name, value in batch.items()} for rows in (slice(0, 3), slice(3, 6))]
    sums = [evaluated(objective, params, part)[:2] for part in parts]
    np.testing.assert_allclose(np.sum(sums, axis=0), (total, count), rtol=1e-5)

    swapped = {name.replace("chosen", "?").replace("rejected", "chosen").replace("?", "rejected") for name in batch}
    assert swapped == batch.keys()
    other = batch | {
        f"{one}_{what}": batch[f"{two}_{what}"]
        for one, two in (("chosen", "rejected"), ("rejected", "chosen"))
        for what in ("tokens_BT", "end_B")
    }
    _, _, turned = evaluated(objective, params, other)
    assert float(turned["margin"].sum) == pytest.approx(-float(metrics["margin"].sum), rel=1e-5)


def test_flops_are_those_of_both_texts_without_logits(tiny, comparisons):
    batch = comparisons(3, 12, tiny.vocab_size)
    logits = 6 * tiny.vocab_size * tiny.embed_dim
    assert PairwiseReward(tiny).flops(batch) == (tiny.flops_per_token(12) - logits) * 72


def test_settings_that_cannot_be_are_refused(tiny):
    for name in ("margin_scale", "centering"):
        with pytest.raises(ValueError, match=rf"PairwiseReward\.{name} is -1; it must not be negative"):
            PairwiseReward(tiny, **{name: -1})
