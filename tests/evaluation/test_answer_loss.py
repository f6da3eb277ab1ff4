"""The mean over learnt tokens: not over rows, batches or sources."""

import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.evaluation.answer_loss import AnswerLoss
from hcxjax.mesh import Layout
from hcxjax.models.likelihood import TokenScores


class Scale:
    """A target costs a hundredth of its id, in nats."""

    def scores(self, params, batch):
        cost_BT = -params * batch["targets_BT"] / 100
        return TokenScores(cost_BT, *[jnp.zeros_like(cost_BT)] * (len(TokenScores._fields) - 1))


class Held:
    def __init__(self, sources):
        self.sources = sources

    def load(self, layout):
        return self.sources


def batch(rng, length, share):
    targets_BT = rng.integers(1, 100, (8, length)).astype(np.int32)
    weights_BT = (rng.random((8, length)) < share).astype(np.float32)
    return {"tokens_BT": targets_BT, "targets_BT": targets_BT, "weights_BT": weights_BT}


def test_every_learnt_token_weighs_the_same():
    rng = np.random.default_rng(0)
    sources = {"ko": [batch(rng, 4, 0.9), batch(rng, 16, 0.1)], "en": [batch(rng, 4, 0.2)]}
    measured = AnswerLoss(Scale(), Held(sources), every=1)
    layout = Layout()
    with layout.active():
        measured.start(layout, "")
        results = measured.evaluate(jnp.float32(2.0), 0)

    def mean(batches):
        learnt = np.concatenate([b["targets_BT"][b["weights_BT"] > 0] for b in batches])
        return 2 * learnt.mean() / 100

    assert results == {
        "eval/sft/ko/loss": pytest.approx(mean(sources["ko"])),
        "eval/sft/en/loss": pytest.approx(mean(sources["en"])),
        "eval/sft/loss": pytest.approx(mean(sources["ko"] + sources["en"])),
    }
