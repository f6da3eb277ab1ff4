"""Adapters through every stage of alignment, as users start them: each stage goes on from the last one, merged."""

import json
import shutil

import numpy as np
import pytest

from hcxjax.checkpoint import stored_leaves
from hcxjax.main import main
from hcxjax.objectives.reward_card import RewardCard
from tests.runs import TINY, checkpoints, losses
from tools import merge_adapter
from tools.opening import open_model

pytestmark = pytest.mark.slow
pytest.importorskip("tokenizers")

SIZES = [line.replace(" ", "").replace("'", "") for line in TINY.read_text().splitlines() if "DecoderConfig." in line]
COMMON = ["VOCAB_SIZE=512", *SIZES, "DecoderConfig.max_length=512", "PROMPTS=20", "SAVE_EVERY=2", "EVAL_EVERY=100"]
COMMON += ["LORA_RANK=2", "LORA_ALPHA=4", "Experiment.trackers=(@JsonLines(),)", "KeepPolicy.period=2"]
PAIRS = [
    "LENGTH=256",
    "WARMUP=1",
    "BATCH_TOKENS=8192",
    "Comparisons.buckets=(256,)",
    "Preferences.validation_share=0.3",
]
PAIRS += ["PairAccuracy.learnt=10", "HeldOutComparisons.buckets=(256,)", "LEARNING_RATE=0.01"]
PLAYED = ["PROMPT_LENGTH=192", "NEW_TOKENS=16", "EPISODES=8", "EPOCHS=2", "LEARNING_RATE=0.01"]
PLAYED += ["EngineSettings.slots=8", "Experiment.evaluators=()", "Experiment.watch=None"]


@pytest.fixture(scope="module")
def run(whole, tmp_path_factory):
    """(run file, adapter, name, bindings) → the folder of what main has trained."""
    top = tmp_path_factory.mktemp("chain")

    def train(file, adapter, name, *bindings):
        given = [*COMMON, f"RUN_DIR={top / name}", f"DATA_DIR={top / 'data'}", *bindings]
        given += [f"Tokenizer.path={whole}/tokenizer/tokenizer.model"]
        files = [f"--gin_file=gin/runs/{file}.gin", f"--gin_file=gin/adapters/{adapter}.gin"]
        assert main([*files, *(f"--gin.{binding}" for binding in given)]) == 0
        return top / name

    return train


def merged(run, *arguments):
    out = run.with_name(f"{run.name}_merged")
    assert merge_adapter.main([str(run), str(out), *arguments]) == 0
    return out


def stored(run):
    return {name: leaf.read(()) for name, leaf in stored_leaves(run / "checkpoints")[1].items()}


def told(run, name):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


@pytest.fixture(scope="module")
def reward(whole, run):
    """A reward model that was trained as an adapter with a whole head, merged."""
    card = [f"INIT_FROM={whole}", f"CARD_POLICY={whole}", "CalibrateReward.new_tokens=8", "CalibrateReward.count=4"]
    return merged(run("quickstart_reward", "lora_reward_model", "reward", "STEPS=4", *PAIRS, *card))


def test_a_reward_model_s_card_belongs_to_what_is_merged(reward):
    RewardCard.read(str(reward))
    assert {path.name for path in reward.iterdir()} == {"checkpoints", "tokenizer", "reward_card.json"}


def test_ppo_trains_two_adapters_and_its_policy_is_taken_out(whole, run, reward):
    given = ["STEPS=6", f"POLICY={whole}", f"REWARD={reward}", *PLAYED]
    tuned = run("quickstart_ppo", "lora_ppo", "ppo", *given)
    params = [name for name in stored(tuned) if name.startswith("state/params/")]
    assert len(params) == 2 * 2 * 7
    assert told(tuned, "train/policy/approxkl")[0] < 1e-9
    assert abs(told(tuned, "objective/kl")[0]) < 1e-3, "the policy begins as the reference"
    assert told(tuned, "sampler_trainer_logp_diff")[0] < 1e-4
    assert told(tuned, "sampler_trainer_logp_diff")[-1] < 1e-4, "what writes is what trains, merged"
    again = shutil.copytree(tuned, tuned.with_name("again"))
    for step in checkpoints(again):
        if step > 2:
            shutil.rmtree(again / "checkpoints" / str(step))
    run("quickstart_ppo", "lora_ppo", "again", *given)
    assert losses(again) == losses(tuned)
    ours, theirs = stored(again), stored(tuned)
    for name in params:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert open_model(merged(tuned, "--part", "policy")).step == 6


def test_dpo_trains_an_adapter_against_the_weights_below_it(whole, run):
    given = ["STEPS=4", *PAIRS, f"INIT_FROM={whole}", "Experiment.evaluators=(@PairAccuracy(),)"]
    tuned = run("quickstart_dpo", "lora_dpo", "dpo", *given)
    assert told(tuned, "train/margin")[0] == pytest.approx(0, abs=1e-4), "the policy begins as the reference"
    assert told(tuned, "train/margin")[-1] > 1e-3
