"""Runs over comparisons as users start them: a reward model with its card, DPO; killed, resumed, and refused."""

import json
import math
import re
import shutil

import jax
import numpy as np
import pytest

from hcxjax.checkpoint import CheckpointFolder, KeepPolicy
from hcxjax.main import configure, main
from hcxjax.mesh import Layout
from hcxjax.objectives.reward_card import FILE, RewardCard
from hcxjax.warm_start import read_frozen
from tests.runs import TINY, checkpoints, losses


@pytest.fixture
def command(whole, tmp_path):
    """(run file, RUN_DIR, bindings) → arguments of main, at the size of tests/tiny.gin; data is shared."""
    sizes = [
        line.replace(" ", "").replace("'", "") for line in TINY.read_text().splitlines() if "DecoderConfig." in line
    ]
    given = [
        *sizes,
        "VOCAB_SIZE=512",
        "LENGTH=256",
        "DecoderConfig.max_length=512",
        "DecoderConfig.remat=none",
        "PROMPTS=12",
        "WARMUP=1",
    ]
    given += ["BATCH_TOKENS=4096", "Experiment.trackers=(@JsonLines(),)", "SAVE_EVERY=2", "EVAL_EVERY=100"]
    given += [f"INIT_FROM={whole}@8", f"Tokenizer.path={whole}/tokenizer/tokenizer.model", "Comparisons.buckets=(256,)"]
    given += [f"DATA_DIR={tmp_path}/data", "KeepPolicy.period=2", "Preferences.validation_share=0.3"]
    given += ["PairAccuracy.learnt=10", "Layout.devices=(0,1)", "HeldOutComparisons.buckets=(256,)"]

    def of(run, folder, *bindings):
        return [
            f"--gin_file=gin/runs/{run}.gin",
            *(f"--gin.{binding}" for binding in (*given, f"RUN_DIR={folder}", *bindings)),
        ]

    return of


def told(run, name):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def test_a_reward_model_is_trained_killed_and_resumed_and_leaves_its_card(command, whole, tmp_path, capsys):
    run, again = tmp_path / "run", tmp_path / "again"
    card = [f"CARD_POLICY={whole}@8", "NEW_TOKENS=8", "CalibrateReward.count=4"]
    card += ["BATCH_TOKENS=8192"]
    assert main(command("quickstart_reward", run, "STEPS=4", *card)) == 0
    said = capsys.readouterr().err
    assert (found := re.search(r"(\d+) comparisons of 24 prompts in 3 batches an epoch", said))
    assert "these start anew: head/bias, head/weight" in said
    assert "a second epoch begins at update 4" in said
    assert list(losses(run)) == [1, 2, 3, 4]
    weights = told(run, "train/weight")
    assert weights[1] + weights[2] + weights[3] == int(found[1]) > 4 * 24, "of four answers, but for equal ones, six"
    accuracy = told(run, "eval/preference/accuracy")
    assert list(accuracy) == [0, 4]
    assert set(told(run, "eval/preference/ko/floor/bigrams")) == {0, 4}
    made = RewardCard.read(str(run))
    assert (made.samples, made.count, made.step) == (f"{whole}@8", 8, 4)
    assert set(made.sources) == {"en", "ko"}
    assert made.accuracy == accuracy[4]

    experiment, _ = configure(["gin/runs/quickstart_reward.gin"], [text[6:] for text in command("x", run)[1:]])
    params = read_frozen(experiment.objective.init, str(run), Layout())
    made.check(params)
    with pytest.raises(ValueError, match=rf"does not belong to the weights.*{run}@4"):
        made.check(read_frozen(experiment.objective.init, f"{run}@2", Layout()))

    shutil.copytree(run, again)
    (again / FILE).unlink()
    shutil.rmtree(again / "checkpoints" / "4")
    assert main(command("quickstart_reward", again, "STEPS=4", *card)) == 0
    assert "going on from step 2" in capsys.readouterr().err
    assert losses(again) == losses(run)
    assert RewardCard.read(str(again)) == made
    same = read_frozen(experiment.objective.init, str(again), Layout())
    assert all(map(np.array_equal, jax.tree.leaves(params), jax.tree.leaves(same)))
    assert checkpoints(again) == [2, 4]


@pytest.mark.slow
def test_dpo_begins_at_its_reference(command, whole, tmp_path):
    run = tmp_path / "run"
    evaluators = "Experiment.evaluators=(@PairAccuracy(),)"
    assert main(command("quickstart_dpo", run, "STEPS=3", "BETA=0.5", evaluators)) == 0
    found = losses(run)
    assert found[1] == pytest.approx(math.log(2), abs=1e-4)
    assert found[3] != found[1]
    assert told(run, "train/margin")[1] == pytest.approx(0, abs=1e-4)
    assert told(run, "eval/preference/loss")[0] == pytest.approx(math.log(2), abs=1e-4)
    stored = CheckpointFolder(run / "checkpoints", KeepPolicy(), read_only=True).stored(3)
    assert set(stored["state"]["params"]) == {"embed", "layers", "norm"}


def test_weights_of_another_vocabulary_and_batches_too_small_are_refused(command, whole, tmp_path, capsys):
    model = tmp_path / "other.model"
    model.write_bytes((whole / "tokenizer" / "tokenizer.model").read_bytes() + b"\x1a\x00")
    assert main(command("quickstart_reward", tmp_path / "run", "STEPS=2", f"Tokenizer.path={model}")) == 1
    assert f"the weights in {whole} were trained with another tokenizer than" in capsys.readouterr().err
    parted = ["STEPS=2", "BATCH_TOKENS=2048", "Preferences.answers=6", "Comparisons.texts=2"]
    assert main(command("quickstart_reward", tmp_path / "small", *parted)) == 1
    assert "rows of 2 texts, which must not be parted" in capsys.readouterr().err
