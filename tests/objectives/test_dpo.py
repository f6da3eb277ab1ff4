"""Direct preference optimisation: the loss against references, whose tokens count, and where it begins."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.objectives.dpo import DPO
from hcxjax.objectives.language_model import LanguageModel

LOGPROB = np.array([[-10.5, -9.0], [-3.0, -30.0], [-80.0, -81.0], [-7.25, -7.25]])
REFERENCE = np.array([[-11.0, -8.0], [-5.0, -28.0], [-20.0, -60.0], [-7.0, -7.5]])
TRL = {
    0.0: [0.4932489459974549, 0.26328246733803123, 11.700008293784766, 0.7709570477895321],
    0.1: [0.5382489459974549, 0.38328246733803123, 10.530008293784766, 0.7559570477895321],
}
"""label_smoothing → losses at beta 0.3 by the formulas of TRL's DPOTrainer, by torch in float64."""


@dataclasses.dataclass(frozen=True)
class Given(DPO):
    """Whose parameters are the log-probabilities themselves."""

    def logprobs(self, params, batch):
        return params


@pytest.fixture(scope="module")
def four(comparisons):
    return comparisons(4, 10, 50) | {"reference_BK": REFERENCE.astype(np.float32)}


@pytest.mark.parametrize("smoothing", TRL)
def test_the_loss_equals_a_reference(smoothing, tiny, four):
    objective = Given(tiny, beta=0.3, label_smoothing=smoothing)
    for row, expected in enumerate(TRL[smoothing]):
        alone = four | {"preferred_BKK": np.zeros((4, 2, 2), np.float32)}
        alone["preferred_BKK"][row, 0, 1] = 1
        total, weight, _ = objective.loss(jnp.array(LOGPROB), alone, jax.random.key(0))
        assert weight == 1
        assert float(total) == pytest.approx(expected, rel=1e-6)


def test_log_ratios_by_token(tiny, four):
    whole, by_token = (Given(tiny, beta=0.3, by_token=each).rewards(jnp.array(LOGPROB), four) for each in (False, True))
    np.testing.assert_allclose(whole, 0.3 * (LOGPROB - REFERENCE), rtol=1e-6)
    np.testing.assert_allclose(by_token * (four["end_BK"] - four["start_B"][:, None] + 1), whole, rtol=1e-6)


@pytest.mark.parametrize("by_token", [False, True])
def test_a_row_of_four_texts_is_the_mean_over_its_comparisons(tiny, comparisons, by_token):
    rng = np.random.default_rng(0)
    batch, given = comparisons(2, 10, 50, 4, texts=4), rng.normal(-9, 3, (2, 4))
    batch["reference_BK"] = rng.normal(-9, 3, (2, 4)).astype(np.float32)
    batch["start_B"][0] = 1  # the missing text then has no token at all
    losses = []
    for row, *pair in zip(*np.nonzero(batch["preferred_BKK"]), strict=True):
        tokens = (batch["end_BK"][row, pair] - batch["start_B"][row] + 1) if by_token else 1
        better, worse = 0.3 * (given[row, pair] - batch["reference_BK"][row, pair].astype(np.float64)) / tokens
        right, wrong = np.log1p(np.exp(worse - better)), np.log1p(np.exp(better - worse))
        losses.append(0.9 * right + 0.1 * wrong)
    assert len(losses) > 1
    objective = Given(tiny, beta=0.3, label_smoothing=0.1, by_token=by_token)
    total, count, _ = objective.loss(jnp.float32(given), batch, jax.random.key(0))
    assert float(count) == len(losses)
    assert float(total / count) == pytest.approx(np.mean(losses), rel=1e-6)


@functools.partial(jax.jit, static_argnums=0)
def summed(objective, params, batch):
    return objective.logprobs(params, batch)


@functools.partial(jax.jit, static_argnums=0)
def evaluated(objective, params, batch):
    return objective.loss(params, batch, None)


@functools.partial(jax.jit, static_argnums=0)
def scores(objective, params, batch):
    return objective.scores(params, batch)


def test_the_answer_s_tokens_count_with_what_ends_it_and_no_others(tiny, random_params, comparisons):
    params, batch = random_params(tiny), comparisons(5, 16, tiny.vocab_size, seed=2)
    batch["end_BK"][0, 0] = 15  # an answer that fills its row
    found = summed(DPO(tiny, loss_chunk=4), params, batch)
    for side in range(2):
        tokens, end = batch["tokens_BKT"][:, side], batch["end_BK"][:, side]
        here = (np.arange(16) <= end[:, None]).astype(np.int32)
        rows = {"tokens_BT": tokens, "targets_BT": np.roll(tokens, -1, 1), "segment_ids_BT": here}
        rows["positions_BT"] = np.tile(np.arange(16, dtype=np.int32), (5, 1))
        logprob_BT = np.asarray(scores(LanguageModel(tiny), params, rows).logprob_BT, np.float64)
        for row in range(4):
            expected = logprob_BT[row, batch["start_B"][row] - 1 : end[row]].sum()
            assert float(found[row, side]) == pytest.approx(expected, rel=1e-5)


def test_a_policy_that_is_its_reference_begins_at_log_2(tiny, random_params, comparisons):
    params, batch = random_params(tiny), comparisons(5, 16, tiny.vocab_size, seed=2)
    objective = DPO(tiny, loss_chunk=4, sources=("ko", "en", "code"))
    batch["reference_BK"] = summed(objective, params, batch)
    total, weight, metrics = evaluated(objective, params, batch)
    assert float(weight) == 4
    assert float(total) == pytest.approx(4 * math.log(2), abs=1e-5)
    assert metrics["reward/chosen"].sum == pytest.approx(0, abs=1e-5)
    assert {"accuracy", "margin", "loss/ko", "padding"} < metrics.keys()


@functools.partial(jax.jit, static_argnums=0)
def sloped(objective, params, batch):
    def mean(params):
        total, count, metrics = objective.loss(params, batch, None)
        return total / count, (count, metrics)

    return jax.value_and_grad(mean, has_aux=True)(params)


@pytest.mark.parametrize("by_token", [False, True])
def test_texts_that_are_read_once_learn_what_each_comparison_by_itself_does(
    by_token, tiny, random_params, comparisons, one_by_one
):
    objective = DPO(tiny, label_smoothing=0.1, by_token=by_token, loss_chunk=4, sources=("ko", "en", "code"))
    params, batch = random_params(tiny), comparisons(4, 16, tiny.vocab_size, 2, texts=4)
    batch["reference_BK"] = np.random.default_rng(0).normal(-30, 3, (4, 4)).astype(np.float32)
    batch["start_B"][0] = 1
    (loss, (count, metrics)), slope = sloped(objective, params, batch)
    (again, (pairs, measured)), other = sloped(objective, params, one_by_one(batch))
    assert float(count) == float(pairs) > 6
    assert float(loss) == pytest.approx(float(again), abs=1e-5)
    jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, atol=1e-5), slope, other)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(slope)) > 1e-2
    for name in metrics.keys() - {"padding"}:
        np.testing.assert_allclose(metrics[name], measured[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_flops_and_settings(tiny, comparisons):
    for count in (2, 4):
        batch = comparisons(3, 12, tiny.vocab_size, texts=count)
        assert DPO(tiny).flops(batch) == tiny.flops_per_token(12) * 36 * count
    with pytest.raises(ValueError, match=r"DPO\.beta is 0; it must be positive"):
        DPO(tiny, beta=0)
    with pytest.raises(ValueError, match=r"DPO\.label_smoothing is 0\.5; it must lie in \[0, 0\.5\)"):
        DPO(tiny, label_smoothing=0.5)
