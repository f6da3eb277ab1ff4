"""The card of a reward model: what it makes of scores, whose weights it is of, and what is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.mesh import Layout
from hcxjax.models.scalar import init_scalar
from hcxjax.objectives.reward_card import FILE, RewardCard, Scale, fingerprint


@pytest.fixture(scope="module")
def params(tiny, random_params):
    head = {"weight": jnp.linspace(-1, 1, tiny.embed_dim), "bias": jnp.float32(0.1)}
    return {"decoder": random_params(tiny), "head": head}


@pytest.fixture
def card(params):
    sources = {"ko": Scale(-2.0, 0.5, 30), "en": Scale(4.0, 4.0, 10)}
    return RewardCard(-0.5, 2.0, 3.0, 40, "runs/sft@200", 0.75, sources, fingerprint(params), 60)


def test_a_card_is_read_as_it_was_written(card, tmp_path):
    card.write(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    read = RewardCard.read(str(tmp_path))
    assert read == card
    assert read.folder == str(tmp_path)
    assert json.loads((tmp_path / FILE).read_text())["samples"] == "runs/sft@200"


def test_scores_are_normalised_by_source_and_clipped(card):
    score_B = np.array([-0.5, 0.7, -1.6, 100.0, -100.0])
    np.testing.assert_allclose(card.normalised(score_B), [0, 0.6, -0.55, 3, -3], rtol=1e-6)
    np.testing.assert_allclose(card.normalised(score_B, "ko"), [3, 3, 0.8, 3, -3], rtol=1e-6)
    np.testing.assert_allclose(card.normalised(score_B, "en"), [-1.125, -0.825, -1.4, 3, -3], rtol=1e-6)
    assert card.normalised(np.array([1, 2])).dtype == jnp.float32
    with pytest.raises(ValueError, match=r"knows no source 'de'; it knows ko, en"):
        card.normalised(score_B, "de")


def test_a_card_of_other_weights_is_refused(card, params, tmp_path):
    card.write(str(tmp_path))
    read = RewardCard.read(str(tmp_path))
    read.check(params)
    moved = params["head"]["bias"] + 1e-6
    for other in (
        params | {"head": params["head"] | {"bias": moved}},
        params | {"decoder": params["decoder"] | {"norm": {"weight": params["decoder"]["norm"]["weight"] * 1.0001}}},
    ):
        with pytest.raises(ValueError, match=rf"{tmp_path}/{FILE} does not belong to the weights.*{tmp_path}@60"):
            read.check(other)


def test_weights_have_one_fingerprint_on_any_mesh(tiny, params):
    layout = Layout(data=1, fsdp=4, tensor=2)
    with layout.active():
        boxed = jax.eval_shape(lambda: init_scalar(tiny, jax.random.key(0)))
        spread = jax.device_put(params, layout.param_shardings(boxed))
    assert fingerprint(spread) == fingerprint(jax.device_get(params)) == fingerprint(params)


def test_cards_that_cannot_be_are_refused(card, tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} has no {FILE}.*CalibrateReward"):
        RewardCard.read(str(tmp_path))
    for text in ("{", "[]", '{"format": 2}', '{"format": 1, "mean": 0}'):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(ValueError, match=f"{tmp_path}/{FILE} cannot be read"):
            RewardCard.read(str(tmp_path))
    for changes, message in (
        ({"std": 0.0}, "scores of all samples have mean -0.5 and std 0.0"),
        ({"mean": float("nan")}, "scores of all samples have mean nan"),
        ({"sources": {"ko": Scale(0.0, 0.0, 1)}}, "scores of ko have mean 0.0 and std 0.0"),
        ({"clip": 0.0}, r"RewardCard\.clip is 0\.0; it must be positive"),
        ({"count": 0}, r"RewardCard\.count is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(card, **changes)
