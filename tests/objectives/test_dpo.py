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

CHOSEN, REJECTED = [-10.5, -3.0, -80.0, -7.25], [-9.0, -30.0, -81.0, -7.25]
REFERENCE = {"chosen_reference_B": [-11.0, -5.0, -20.0, -7.0], "rejected_reference_B": [-8.0, -28.0, -60.0, -7.5]}
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
    batch = comparisons(4, 10, 50)
    return batch | {name: np.array(value, np.float32) for name, value in REFERENCE.items()}


@pytest.mark.parametrize("smoothing", TRL)
def test_the_loss_equals_a_reference(smoothing, tiny, four):
    objective = Given(tiny, beta=0.3, label_smoothing=smoothing)
    for row, expected in enumerate(TRL[smoothing]):
        alone = four | {"weight_B": np.eye(4, dtype=np.float32)[row]}
        total, weight, _ = objective.loss((jnp.array(CHOSEN), jnp.array(REJECTED)), alone, jax.random.key(0))
        assert weight == 1
        assert float(total) == pytest.approx(expected, rel=1e-6)


def test_log_ratios_by_token(tiny, four):
    params = (jnp.array(CHOSEN), jnp.array(REJECTED))
    whole, by_token = (Given(tiny, beta=0.3, by_token=each).rewards(params, four) for each in (False, True))
    np.testing.assert_allclose(whole[0], 0.3 * (np.array(CHOSEN) - REFERENCE["chosen_reference_B"]), rtol=1e-6)
    for side, name in enumerate(("chosen", "rejected")):
        tokens = four[f"{name}_end_B"] - four["start_B"] + 1
        np.testing.assert_allclose(by_token[side] * tokens, whole[side], rtol=1e-6)


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
    batch["chosen_end_B"][0] = 15  # an answer that fills its row
    found = summed(DPO(tiny, loss_chunk=4), params, batch)
    for side, name in enumerate(("chosen", "rejected")):
        tokens, end = batch[f"{name}_tokens_BT"], batch[f"{name}_end_B"]
        here = (np.arange(16) <= end[:, None]).astype(np.int32)
        rows = {"tokens_BT": tokens, "targets_BT": np.roll(tokens, -1, 1), "segment_ids_BT": here}
        rows["positions_BT"] = np.tile(np.arange(16, dtype=np.int32), (5, 1))
        logprob_BT = np.asarray(scores(LanguageModel(tiny), params, rows).logprob_BT, np.float64)
        for row in range(4):
            expected = logprob_BT[row, batch["start_B"][row] - 1 : end[row]].sum()
            assert float(found[side][row]) == pytest.approx(expected, rel=1e-5)


def test_a_policy_that_is_its_reference_begins_at_log_2(tiny, random_params, comparisons):
    params, batch = random_params(tiny), comparisons(5, 16, tiny.vocab_size, seed=2)
    objective = DPO(tiny, loss_chunk=4, sources=("ko", "en", "code"))
    chosen_B, rejected_B = summed(objective, params, batch)
    batch |= {"chosen_reference_B": chosen_B, "rejected_reference_B": rejected_B}
    total, weight, metrics = evaluated(objective, params, batch)
    assert float(weight) == 4
    assert float(total) == pytest.approx(4 * math.log(2), abs=1e-5)
    assert metrics["reward/chosen"].sum == pytest.approx(0, abs=1e-5)
    assert {"accuracy", "margin", "loss/ko", "padding"} < metrics.keys()


def test_flops_and_settings(tiny, comparisons):
    assert DPO(tiny).flops(comparisons(3, 12, tiny.vocab_size)) == tiny.flops_per_token(12) * 72
    with pytest.raises(ValueError, match=r"DPO\.beta is 0; it must be positive"):
        DPO(tiny, beta=0)
    with pytest.raises(ValueError, match=r"DPO\.label_smoothing is 0\.5; it must lie in \[0, 0\.5\)"):
        DPO(tiny, label_smoothing=0.5)
