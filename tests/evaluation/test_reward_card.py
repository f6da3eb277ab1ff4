"""The card that a reward model's run writes: whose answers it scores, when, and when it does not."""

import dataclasses
import logging
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.checkpoint import CheckpointFolder, KeepPolicy
from hcxjax.evaluation.answers import AnswerWriter
from hcxjax.evaluation.pair_accuracy import compiled_rewards
from hcxjax.evaluation.reward_card import CalibrateReward
from hcxjax.mesh import Layout
from hcxjax.models.scalar import score
from hcxjax.objectives.reward_card import FILE, RewardCard
from hcxjax.objectives.reward_model import PairwiseReward


@pytest.fixture(scope="module")
def params(tiny, random_params):
    head = {"weight": jnp.linspace(-1, 1, tiny.embed_dim), "bias": jnp.float32(0.1)}
    return {"decoder": random_params(tiny), "head": head}


@pytest.fixture(scope="module")
def held_out(comparisons, tiny):
    batches = {
        "chat": [comparisons(8, 16, tiny.vocab_size, seed) for seed in (0, 1)],
        "code": [comparisons(8, 16, 61, 2)],
    }
    checked = []
    return SimpleNamespace(load=lambda layout: batches, check_policy=checked.append, batches=batches, checked=checked)


@pytest.fixture
def calibrated(tiny, held_out, tmp_path):
    """(params, step, changes) → what the evaluator says; the folder is the test's own."""

    def run(params, step, **changes):
        evaluator = CalibrateReward(PairwiseReward(tiny), **({"held_out": held_out, "every": 10} | changes))
        layout = Layout()
        with layout.active():
            evaluator.start(layout, str(tmp_path))
            return evaluator.evaluate(params, step)

    return run


def alone(tiny, params, text):
    """The score of one text, unpadded in a row of 32 all the same."""
    tokens_BT = np.zeros((1, 32), np.int32)
    tokens_BT[0, : len(text)] = text
    here_BT = (np.arange(32)[None] < len(text)).astype(np.int32)
    end_B = jnp.array([len(text) - 1])
    return float(jax.jit(score, static_argnums=0)(tiny, params, tokens_BT, here_BT, np.arange(32)[None], end_B)[0])


def test_demonstrations_have_mean_0(calibrated, tiny, params, held_out, tmp_path):
    assert calibrated(params, 0) == {}
    assert not (tmp_path / FILE).exists()
    found = calibrated(params, 10, clip=3.0)
    card = RewardCard.read(str(tmp_path))
    card.check(params)
    assert (card.samples, card.count, card.clip, card.step) == ("demonstrations", 21, 3.0, 10)
    texts = {
        name: [
            rows["tokens_BKT"][row, 0, : rows["end_BK"][row, 0] + 1]
            for rows in batches
            for row in range(7)  # the last one fills up
        ]
        for name, batches in held_out.batches.items()
    }
    scores = {name: np.array([alone(tiny, params, text) for text in own]) for name, own in texts.items()}
    every = np.concatenate(list(scores.values()))
    assert (card.mean, card.std) == pytest.approx((every.mean(), every.std()), abs=1e-4)
    for name, own in scores.items():
        assert tuple(card.sources[name]) == pytest.approx((own.mean(), own.std(), len(own)), abs=1e-4)
        assert float(np.mean(card.normalised(own, name))) == pytest.approx(0, abs=0.05)
    assert found["eval/reward_card/count"] == 21
    assert found["eval/reward_card/accuracy"] == card.accuracy
    rewards = compiled_rewards(PairwiseReward(tiny), Layout())
    found = [rewards(params, rows) for batches in held_out.batches.values() for rows in batches]
    differences = np.concatenate([np.asarray(reward_BK[:7, 0] - reward_BK[:7, 1]) for reward_BK in found])
    assert card.accuracy == pytest.approx((differences > 0).mean())


def test_a_card_of_the_same_weights_stays_and_one_of_others_is_replaced(calibrated, params, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    calibrated(params, 10)
    card = RewardCard.read(str(tmp_path))
    dataclasses.replace(card, mean=card.mean + 7).write(str(tmp_path))
    assert calibrated(params, 20)["eval/reward_card/mean"] == pytest.approx(card.mean + 7)
    assert "the reward card of step 10 is of these weights and stays as it is" in caplog.text
    moved = params | {"head": params["head"] | {"bias": jnp.float32(1.1)}}
    found = calibrated(moved, 20)
    assert found["eval/reward_card/mean"] == pytest.approx(card.mean + 1, abs=1e-4)
    assert "the reward card of step 10 is replaced" in caplog.text
    RewardCard.read(str(tmp_path)).check(moved)


def test_scores_without_a_scale_are_told_and_do_not_end_the_run(calibrated, params, tmp_path, caplog):
    flat = params | {"head": {"weight": jnp.zeros_like(params["head"]["weight"]), "bias": jnp.float32(0)}}
    assert calibrated(flat, 10) == {}
    assert "no reward card is written" in caplog.text
    assert not (tmp_path / FILE).exists()


def test_a_policy_s_answers_are_scored_by_source(calibrated, tiny, params, held_out, tmp_path, monkeypatch):
    written, write = [], AnswerWriter.__call__

    def noted(self, policy):
        written.append((policy, write(self, policy)))
        return written[-1][1]

    monkeypatch.setattr(AnswerWriter, "__call__", noted)
    folder = tmp_path / "sft"
    checkpoints = CheckpointFolder(folder / "checkpoints", KeepPolicy())
    checkpoints.save(3, {"state": {"params": params["decoder"]}}, None)
    checkpoints.close()
    prompts = [(1, 2, 3), (4, 5), (6, 7, 8, 9), (10,), (11, 12)]
    asked = SimpleNamespace(tokens=prompts, sources=["ko", "en", "ko", "ko", "en"], stop_ids=tuple(range(20, 36)))
    reader = SimpleNamespace(load=lambda split: {"train": asked}[split])
    policy = {"policy": str(folder), "prompts": reader, "new_tokens": 8, "temperature": 1.0}
    calibrated(params, 10, count=2, **policy)
    card = RewardCard.read(str(tmp_path))
    assert card.samples == f"{folder}@3"
    assert {name: scale.count for name, scale in card.sources.items()} == {"en": 2, "ko": 2}
    assert held_out.checked == [str(folder)]

    ((policy_params, said),) = written
    texts = [[*prompts[at], *answer.tokens] for at, answer in zip((1, 4, 0, 2), said, strict=True)]
    assert all(map(np.array_equal, jax.tree.leaves(policy_params), jax.tree.leaves(params["decoder"])))
    assert any(answer.finish == "stop" for answer in said)
    assert all(answer.tokens for answer in said)
    scores = np.array([alone(tiny, params, text) for text in texts])
    assert (card.mean, card.std) == pytest.approx((scores.mean(), scores.std()), abs=1e-4)
    assert card.sources["en"].mean == pytest.approx(scores[:2].mean(), abs=1e-4)


def test_a_source_of_one_answer_has_no_scale_of_its_own(calibrated, held_out, params, tmp_path, caplog):
    few = SimpleNamespace(load=lambda layout: {"chat": held_out.batches["chat"]}, check_policy=print)
    calibrated(params, 10, held_out=few, count=1)
    assert "no reward card is written" in caplog.text, "one answer has no deviation at all"
    both = held_out.batches["chat"][0], {name: rows[:1] for name, rows in held_out.batches["code"][0].items()}
    one = {"chat": [both[0]], "code": [{name: np.repeat(rows, 8, axis=0) for name, rows in both[1].items()}]}
    calibrated(params, 10, held_out=SimpleNamespace(load=lambda layout: one))
    assert "scores of code are all alike" in caplog.text
    assert list(RewardCard.read(str(tmp_path)).sources) == ["chat"]


def test_a_policy_that_cannot_answer_is_told_before_the_run(tiny, calibrated, params, tmp_path):
    reader = SimpleNamespace(load=lambda split: SimpleNamespace(tokens=[(1, 2, 3)], sources=["ko"], stop_ids=(5,)))
    with pytest.raises(ValueError, match=rf"CARD_POLICY\): {tmp_path}/none has no checkpoint"):
        calibrated(params, 0, policy=f"{tmp_path}/none", prompts=reader)
    checkpoints = CheckpointFolder(tmp_path / "sft" / "checkpoints", KeepPolicy())
    checkpoints.save(3, {"state": {"params": params["decoder"]}}, None)
    checkpoints.close()
    other = {"policy": f"{tmp_path}/sft", "prompts": reader}
    with pytest.raises(ValueError, match=r"sft have other sizes than CalibrateReward\.policy_model"):
        calibrated(params, 0, policy_model=dataclasses.replace(tiny, mlp_dim=48), **other)
    with pytest.raises(ValueError, match=r"the longest prompt has 3 tokens and an answer up to 30 \(new_tokens\)"):
        calibrated(params, 0, new_tokens=30, **other)


def test_a_policy_needs_prompts(calibrated, params):
    with pytest.raises(
        ValueError, match=r"CalibrateReward\.policy is 'runs/sft', but CalibrateReward\.prompts is None"
    ):
        calibrated(params, 10, policy="runs/sft")
