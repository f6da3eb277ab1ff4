import functools

import jax
import numpy as np
import pytest

from hcxjax.objectives.language_model import LanguageModel
from hcxjax.protocols import Mean


@functools.partial(jax.jit, static_argnums=0)
def evaluated(objective, params, batch):
    return objective.loss(params, batch, None)


@functools.partial(jax.jit, static_argnums=0)
def scores(objective, params, batch):
    return objective.scores(params, batch)


SOURCES = ("ko", "en", "code")


def test_loss_and_metrics_equal_numpy(tiny, random_params, packed):
    objective = LanguageModel(tiny, z_loss=0.01, loss_chunk=4, sources=SOURCES)
    params, batch = random_params(tiny), packed(6, 12, tiny.vocab_size, 1)
    batch["source_B"] = np.array([0, 2, 0, 2, 2, 0], np.int32)  # no row of the second source
    total, weight, metrics = evaluated(objective, params, batch)
    found = scores(objective, params, batch)
    w_BT, nll_BT, z_BT = batch["weights_BT"], -np.asarray(found.logprob_BT), np.asarray(found.normaliser_BT) ** 2
    assert float(weight) == w_BT.sum() > 1
    assert float(total) == pytest.approx((w_BT * (nll_BT + 0.01 * z_BT)).sum(), rel=1e-5)

    expected = {
        "loss": ((w_BT * nll_BT).sum(), w_BT.sum()),
        "z_loss": (0.01 * (w_BT * z_BT).sum(), w_BT.sum()),
        "padding": ((batch["segment_ids_BT"] == 0).sum(), w_BT.size),
    }
    for number, name in enumerate(sorted(SOURCES)):
        rows = batch["source_B"] == number
        expected[f"loss/{name}"] = ((w_BT * nll_BT)[rows].sum(), w_BT[rows].sum())
        expected[f"share/{name}"] = (w_BT[rows].sum(), w_BT.sum())
    assert metrics.keys() == expected.keys()
    for name, metric in metrics.items():
        assert isinstance(metric, Mean)
        np.testing.assert_allclose(metric, expected[name], rtol=1e-5, err_msg=name)
    assert metrics["loss/en"] == (0, 0)
    assert metrics["padding"].sum > 0


def test_loss_is_a_sum_that_grows_with_rows_and_weights(tiny, random_params, packed):
    objective = LanguageModel(tiny, z_loss=0.01, loss_chunk=4, sources=SOURCES)
    params, batch = random_params(tiny), packed(6, 12, tiny.vocab_size, 1)
    total, weight, _ = evaluated(objective, params, batch)
    heavier, _, _ = evaluated(objective, params, batch | {"weights_BT": 3 * batch["weights_BT"]})
    assert float(heavier) == pytest.approx(3 * float(total), rel=1e-6)
    half = {name: np.concatenate([value[:3], value[:3]]) for name, value in batch.items()}
    other = {name: np.concatenate([value[3:], value[3:]]) for name, value in batch.items()}
    sums = [evaluated(objective, params, part) for part in (half, other)]
    assert sum(float(part[0]) for part in sums) == pytest.approx(2 * float(total), rel=1e-5)
    assert sum(float(part[1]) for part in sums) == 2 * float(weight)


def test_targets_of_weight_zero_are_not_learnt(tiny, random_params, packed):
    """Prompts of supervised fine-tuning: read, not predicted."""
    objective = LanguageModel(tiny, z_loss=0.01, loss_chunk=4, sources=SOURCES)
    params, batch = random_params(tiny), packed(6, 12, tiny.vocab_size, 1)
    elsewhere = np.where(batch["weights_BT"] == 0, (batch["targets_BT"] + 7) % tiny.vocab_size, batch["targets_BT"])
    one, other = (evaluated(objective, params, batch | {"targets_BT": x}) for x in (batch["targets_BT"], elsewhere))
    assert np.any(elsewhere != batch["targets_BT"])
    assert one[0] == other[0]


def test_init_is_boxed_with_logical_axes_and_its_own_for_every_seed(tiny):
    objective = LanguageModel(tiny)
    boxed = jax.eval_shape(objective.init, jax.random.key(0))
    assert boxed["embed"].names == ("vocab", "embed")
    assert boxed["layers"]["attention"]["query"]["weight"].names == ("layers", "embed", "heads", "head_dim")
    assert boxed["layers"]["mlp"]["down"]["weight"].names == ("layers", "mlp", "embed")


def test_flops_of_a_batch(tiny, packed):
    batch = packed(3, 12, tiny.vocab_size)
    assert LanguageModel(tiny).flops(batch) == tiny.flops_per_token(12) * 36
