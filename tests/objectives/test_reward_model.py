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
    batch, scores = comparisons(6, 10, tiny.vocab_size), jnp.stack([jnp.array(CHOSEN), jnp.array(REJECTED)], 1)
    batch["margin_BKK"][:, 0, 1] = MARGIN
    for row, expected in enumerate(TRL[weights]):
        alone = batch | {"preferred_BKK": np.zeros((6, 2, 2), np.float32)}
        alone["preferred_BKK"][row, 0, 1] = 1
        total, weight, _ = Given(tiny, *weights).loss(scores, alone, jax.random.key(0))
        assert weight == 1
        assert float(total) == pytest.approx(expected, rel=1e-6)


def test_no_difference_is_too_large_for_a_gradient(tiny, comparisons):
    batch = comparisons(4, 10, tiny.vocab_size)
    scores = jnp.array([[1e4, -1e4], [-1e4, 1e4], [0, 0], [0, 0]])
    slope = jax.grad(lambda scores: Given(tiny).loss(scores, batch, jax.random.key(0))[0])(scores)
    np.testing.assert_allclose(slope, [[0, 0], [-1, 1], [-0.5, 0.5], [0, 0]], atol=1e-6)


def test_a_row_of_four_texts_is_the_mean_over_its_comparisons(tiny, comparisons):
    batch, scores = comparisons(2, 10, tiny.vocab_size, 4, texts=4), np.random.default_rng(0).normal(0, 2, (2, 4))
    losses = []
    for row, better, worse in zip(*np.nonzero(batch["preferred_BKK"]), strict=True):
        one, two, margin = scores[row, better], scores[row, worse], np.float64(batch["margin_BKK"][row, better, worse])
        losses.append(np.log1p(np.exp(-(one - two - 0.5 * margin))) + 0.01 * (one + two) ** 2)
    assert len(losses) > 1
    total, count, _ = Given(tiny, 0.5, 0.01).loss(jnp.float32(scores), batch, jax.random.key(0))
    assert float(count) == len(losses)
    assert float(total / count) == pytest.approx(np.mean(losses), rel=1e-6)


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
    for place, name in enumerate(("chosen", "rejected")):
        tokens, end = batch["tokens_BKT"][:, place], batch["end_BK"][:, place]
        here = (np.arange(16) <= end[:, None]).astype(np.int32)
        rows = {"tokens_BT": tokens, "segment_ids_BT": here, "positions_BT": np.tile(np.arange(16), (6, 1))}
        scores[name] = np.asarray(jax.jit(scalars, static_argnums=0)(tiny, params, rows), np.float64)[np.arange(6), end]
    difference, both, weight = scores["chosen"] - scores["rejected"], sum(scores.values()), np.arange(6) < 5
    losses = np.logaddexp(0, -(difference - 0.5 * batch["margin_BKK"][:, 0, 1]))
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

    other = batch | {name: batch[name][:, ::-1] for name in ("tokens_BKT", "end_BK")}
    _, _, turned = evaluated(objective, params, other)
    assert float(turned["margin"].sum) == pytest.approx(-float(metrics["margin"].sum), rel=1e-5)


@functools.partial(jax.jit, static_argnums=0)
def sloped(objective, params, batch):
    def mean(params):
        total, count, metrics = objective.loss(params, batch, None)
        return total / count, (count, metrics)

    return jax.value_and_grad(mean, has_aux=True)(params)


def test_texts_that_are_read_once_learn_what_each_comparison_by_itself_does(tiny, params, comparisons, one_by_one):
    objective = PairwiseReward(tiny, margin_scale=0.5, centering=0.01, sources=("ko", "en", "code"))
    batch = comparisons(4, 16, tiny.vocab_size, 2, texts=4)
    (loss, (count, metrics)), slope = sloped(objective, params, batch)
    (again, (pairs, measured)), other = sloped(objective, params, one_by_one(batch))
    assert float(count) == float(pairs) > 6
    assert float(loss) == pytest.approx(float(again), abs=1e-5)
    jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, atol=1e-5), slope, other)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(slope)) > 1e-2
    for name in metrics.keys() - {"padding"}:
        np.testing.assert_allclose(metrics[name], measured[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_flops_are_those_of_every_text_without_logits(tiny, comparisons):
    logits = 6 * tiny.vocab_size * tiny.embed_dim
    for count in (2, 4):
        batch = comparisons(3, 12, tiny.vocab_size, texts=count)
        assert PairwiseReward(tiny).flops(batch) == (tiny.flops_per_token(12) - logits) * 36 * count


def test_settings_that_cannot_be_are_refused(tiny):
    for name in ("margin_scale", "centering"):
        with pytest.raises(ValueError, match=rf"PairwiseReward\.{name} is -1; it must not be negative"):
            PairwiseReward(tiny, **{name: -1})
