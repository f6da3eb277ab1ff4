"""Rollouts in training: what is dealt, in turn or ahead, and that a resumed run is the same run."""

import dataclasses
import json

import numpy as np
import pytest

from hcxjax.data.rollouts.lessons import Lessons, packed_minibatch
from hcxjax.mesh import Layout
from hcxjax.objectives.lora import LoRA
from hcxjax.objectives.ppo import PPO
from hcxjax.objectives.returns import AdaptiveKL
from hcxjax.optim import AdamW, Linear, SpikeGuard
from hcxjax.tracking import JsonLines
from hcxjax.train import Experiment
from tests.data.rollouts.parts import LAYOUT, MODEL, first_params, rollouts, write_weights

STEPS = 14  # three rollouts of four minibatches, and half of a fourth


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    policy = first_params(PPO(MODEL))["policy"]
    return write_weights(tmp_path_factory.mktemp("reference"), policy)


def train(folder, source, steps=STEPS, save_every=STEPS, layout=LAYOUT, **changes):
    """The metrics by step of a run; its folder keeps checkpoints."""
    Experiment(
        run_dir=str(folder),
        steps=steps,
        seed=0,
        objective=source.objective,
        source=source,
        optimizer=AdamW(Linear(1e-2, STEPS, hold=4), weight_decay=0.0, b2=0.999, epsilon=1e-5),
        layout=layout,
        save_every=save_every,
        spikes=SpikeGuard(loss=False),
        trackers=(JsonLines(),),
        **changes,
    ).run()
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines}


def run(folder, reference, steps=STEPS, save_every=STEPS, layout=LAYOUT, **changes):
    """`train` with rollouts of these settings, the policy beginning at the reference."""
    source = rollouts(reference, **changes)
    return train(folder, source, steps, save_every, layout, init_from={"policy": reference}, fresh=("value",))


def learnt(metrics):
    """What must repeat: everything but times and speeds."""
    untimed = ("train/", "objective/", "policy/", "value/", "sampler")
    return {step: {k: v for k, v in line.items() if k.startswith(untimed)} for step, line in metrics.items()}


@pytest.fixture(scope="module")
def in_turn(tmp_path_factory, reference):
    return run(tmp_path_factory.mktemp("in_turn"), reference)


def test_before_the_first_update_of_every_rollout_the_ratio_is_1(in_turn):
    firsts = [line for line in in_turn.values() if "objective/kl" in line]
    assert [line["step"] for line in firsts] == [1, 5, 9, 13]
    for line in firsts:
        assert abs(line["train/policy/ratio_max"] - 1) <= 1e-5
        assert line["train/policy/approxkl"] <= 1e-9
        assert line["train/policy/clipfrac"] == 0
        assert line["sampler_trainer_logp_diff"] <= 1e-4
    assert max(line["train/policy/approxkl"] for line in in_turn.values()) > 1e-5, "it does learn"


def test_at_update_0_the_policy_is_the_reference(in_turn):
    assert abs(in_turn[1]["objective/kl"]) <= 1e-5
    assert abs(in_turn[13]["objective/kl"]) > 1e-3


def test_all_metrics_of_a_rollout_are_told(in_turn):
    told = set(in_turn[1])
    for group, names in {
        "objective": "score rlhf_reward kl kl_k3 entropy beta",
        "train/policy": "approxkl clipfrac ratio_mean ratio_max",
        "train/loss": "policy value",
        "train/value": "clipfrac",
        "value": "explained_variance",
        "rollout": "length stop_rate seq_rep_4 staleness queue_wait tokens_per_s",
        "time": "generate score train",
    }.items():
        assert {f"{group}/{name}" for name in names.split()} <= told
    assert in_turn[1]["objective/entropy"] >= 0


def test_a_lag_of_0_is_the_same_run_bit_for_bit(tmp_path, reference, in_turn):
    assert learnt(run(tmp_path, reference, lag=0)) == learnt(in_turn)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, marks=SLOW),
        pytest.param({"lag": 2}, marks=SLOW),
        {"lag": 2, "packed": 1},
        pytest.param({"adaptive": AdaptiveKL(0.1, 20)}, marks=SLOW),
    ],
)
def test_a_run_that_goes_on_is_the_same_run_bit_for_bit(tmp_path, reference, in_turn, changes, monkeypatch):
    packed_into = set()

    def packed(*given):
        batch = packed_minibatch(*given)
        packed_into.add(len(batch["tokens_BT"]))
        return batch

    monkeypatch.setattr("hcxjax.data.rollouts.source.packed_minibatch", packed)
    whole = run(tmp_path / "whole", reference, **changes)
    run(tmp_path / "cut", reference, steps=6, save_every=6, **changes)  # in the middle of the second rollout
    resumed = run(tmp_path / "cut", reference, **changes)
    assert learnt(resumed) == learnt(whole)
    if "lag" in changes:
        assert [line["rollout/staleness"] for line in whole.values() if "rollout/staleness" in line] == [0, 1, 2, 2]
    if "packed" in changes:
        firsts = [[metrics[step]["train/loss"] for step in range(1, 5)] for metrics in (whole, in_turn)]
        np.testing.assert_allclose(*firsts, rtol=1e-4, err_msg="the first rollout, in rows of its own and shared ones")
        assert min(packed_into) < 4, "some of four episodes share a row"
    if "adaptive" in changes:
        assert len({line["objective/beta"] for line in whole.values() if "objective/beta" in line}) > 1


@pytest.mark.parametrize("changes", [pytest.param({}, marks=SLOW), {"lag": 0}])
def test_engine_and_reference_on_devices_of_their_own_are_the_same_run(tmp_path, reference, in_turn, changes):
    apart = {"engine_layout": Layout(devices=(2, 3)), "reference_layout": Layout(devices=(5, 6))}
    assert learnt(run(tmp_path, reference, **apart, **changes)) == learnt(in_turn)


def test_permutations_differ_between_epochs_and_updates(reference):
    deal = rollouts(reference).deal
    orders = [
        np.concatenate([deal.rows(update, hand) for hand in hands]).tolist()
        for update in (0, 1)
        for hands in ((0, 1), (2, 3))
    ]
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_arrival_order_takes_what_is_finished_and_says_that_it_does_not_repeat(tmp_path, reference, caplog):
    metrics = run(tmp_path, reference, steps=10, save_every=5, lag=1, order="arrival")
    assert "NOT REPEATABLE" in caplog.text
    assert max(metrics) == 10
    stale = [line["rollout/staleness"] for line in metrics.values() if "rollout/staleness" in line]
    assert len(stale) == 3 and max(stale) <= 2
    more = run(tmp_path, reference, steps=14, lag=1, order="arrival")
    assert max(more) == 14


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episodes": 9}, r"Rollouts\.episodes is 9; it must be a multiple of minibatches, 2"),
        ({"rows": 3}, r"Rollouts\.episodes is 8; it must be a multiple of rows, 3"),
        ({"order": "arrival"}, r"Rollouts\.order is 'arrival'; .* together with a lag"),
        ({"new_tokens": 0}, r"Rollouts\.new_tokens is 0"),
        ({"packed": 0}, r"Rollouts\.packed is 0"),
        ({"packed": 5}, r"Rollouts\.packed is 5; it must be at most a minibatch's episodes, 4"),
    ],
)
def test_settings_that_cannot_be(reference, changes, message):
    with pytest.raises(ValueError, match=message):
        rollouts(reference, **changes)


def test_an_episode_longer_than_the_context_is_refused(reference):
    source = rollouts(reference, new_tokens=13)
    with pytest.raises(ValueError, match=r"up to 17 tokens .*the models' context is 16"):
        source.start(LAYOUT, None)


def test_a_minibatch_that_does_not_divide_is_refused(reference):
    source = rollouts(reference, accumulate=3)
    with pytest.raises(ValueError, match=r"a minibatch has 4 episodes .* a multiple of 3 \(microbatches 3 x .* 1\)"):
        source.start(LAYOUT, None)


def test_a_run_goes_on_with_the_same_reference_and_order_only(tmp_path, reference):
    """Another reference is another divergence; other epochs would deal prompts twice, or never."""
    started = rollouts(reference)
    started.start(LAYOUT, None)
    state = started.get_state()
    other = write_weights(tmp_path / "other", first_params(PPO(MODEL), seed=5)["policy"])
    for changes, differs in (
        ({"reference": other}, r"the reference's weights: name the old checkpoint, FOLDER@STEP"),
        ({"epochs": 1}, "EPISODES, EPOCHS, MINIBATCHES or SEED"),
        ({"seed": 1}, "EPISODES, EPOCHS, MINIBATCHES or SEED"),
    ):
        changed = dataclasses.replace(rollouts(reference), **changes)
        changed.start(LAYOUT, None)
        with pytest.raises(ValueError, match=f"what differs is {differs}"):
            changed.set_state(state)


def test_without_adaptive_kl_the_coefficient_is_what_is_set_now(reference):
    started, changed = rollouts(reference), rollouts(reference, lessons=Lessons(beta=0.5))
    for source in (started, changed):
        source.start(LAYOUT, None)
    changed.set_state(started.get_state())
    assert changed.get_state()["next_beta"] == 0.5


def test_an_answer_from_policies_gone_by_is_warned_of(reference, caplog):
    source = rollouts(reference)
    source.start(LAYOUT, None)
    caplog.clear()
    source._warn({"objective/kl": -0.9, "sampler_trainer_logp_diff": 0.0})
    assert not caplog.records
    source._warn({"objective/kl": -1.1, "sampler_trainer_logp_diff": 0.25})
    assert "not drawn from the policy as it is trained (sampler_trainer_logp_diff 0.25)" in caplog.text


def test_what_is_the_reference_must_not_be_trained(reference):
    lora = LoRA(PPO(MODEL), rank=2, alpha=4.0, also=("policy/norm",))
    with pytest.raises(ValueError, match=r"LoRA\.also is \('policy/norm',\) and Rollouts\.reference is None"):
        rollouts(None, objective=lora)
    assert rollouts(reference, objective=lora).reference == reference


@SLOW
def test_an_adapter_s_reference_is_its_base_with_the_adapter_off(tmp_path, reference):
    lora = LoRA(PPO(MODEL, temperature=0.7), rank=2, alpha=4.0, also=("value/head",))
    value = write_weights(tmp_path / "value", first_params(PPO(MODEL))["value"])
    source = rollouts(None, objective=lora)
    origins = {"base/policy": reference, "base/value": value}
    metrics = train(tmp_path / "run", source, steps=6, init_from=origins, fresh=("adapter",), trainable=lora.trainable)
    assert abs(metrics[1]["objective/kl"]) <= 1e-5
    assert abs(metrics[5]["objective/kl"]) > 1e-6, "the policy moves away from its base"
    saved = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert saved == {"6"}
