"""An adapter, end to end: tuned by main from a tiny run, killed and resumed, opened, exported, merged, gone on from."""

import json
import shutil

import jax
import numpy as np
import pytest

from hcxjax.checkpoint import CheckpointFolder, KeepPolicy, stored_leaves
from hcxjax.convert.model import load
from hcxjax.main import main
from hcxjax.mesh import Layout, unbox
from hcxjax.models.config import MATRICES
from hcxjax.objectives.lora import LoRA
from hcxjax.objectives.ppo import PPO
from hcxjax.objectives.reward_model import PairwiseReward
from hcxjax.partition import by_path, fingerprint, nested, split
from hcxjax.warm_start import read_frozen
from tests.runs import TINY, checkpoints, losses
from tests.test_train import experiment
from tools import export_hf, merge_adapter
from tools.opening import open_model

pytest.importorskip("tokenizers")

SIZES = [line.replace(" ", "").replace("'", "") for line in TINY.read_text().splitlines() if "DecoderConfig." in line]
SMALL = ["LENGTH=256", "BATCH_TOKENS=2048", "DIALOGUES=20", "Conversations.buckets=(256,)"]
SMALL += ["Dialogues.validation_share=0.2", "DecoderConfig.max_length=256"]
QUIET = ["Experiment.watch=None", "Experiment.trackers=(@JsonLines(),)", "WARMUP=1", "SAVE_EVERY=2", "EVAL_EVERY=2"]
ADAPTER = ["LORA_RANK=2", "LORA_ALPHA=4", "LEARNING_RATE=0.03"]


def tune(base, run, *bindings) -> int:
    """The quickstart's second half at the size of tests/tiny.gin, as an adapter."""
    files = ["gin/runs/quickstart_sft.gin", "gin/adapters/lora.gin"]
    given = ["VOCAB_SIZE=512", *SIZES, *SMALL, *QUIET, *ADAPTER, f"RUN_DIR={run}", f"INIT_FROM={base}"]
    given += [f"Tokenizer.path={base}/tokenizer/tokenizer.model", f"DATA_DIR={run.parent / 'data'}", *bindings]
    return main([*(f"--gin_file={file}" for file in files), *(f"--gin.{binding}" for binding in given)])


@pytest.fixture(scope="module")
def base(whole, tmp_path_factory):
    """A run to begin from, which tests may change."""
    return shutil.copytree(whole, tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory):
    run = tmp_path_factory.mktemp("tuned") / "run"
    assert tune(base, run, "STEPS=4") == 0
    return run


@pytest.fixture(scope="module")
def merged(tuned):
    out = tuned.parent / "merged"
    assert merge_adapter.main([str(tuned), str(out)]) == 0
    return out


def stored(run, step=None):
    return {name: leaf.read(()) for name, leaf in stored_leaves(run / "checkpoints", step)[1].items()}


def measured(run) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["eval/sft/loss"] for line in lines if "eval/sft/loss" in line}


def size(folder) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_checkpoints_hold_the_adapter_and_its_optimizer_alone(base, tuned):
    assert checkpoints(tuned)[-1] == 4
    leaves = stored(tuned)
    params = [name for name in leaves if name.startswith("state/params/")]
    assert len(params) == 2 * len(MATRICES)
    assert all(name.startswith("state/params/adapter/layers/") for name in params)
    moments = [name for name in leaves if "/mu/" in name or "/nu/" in name]
    assert len(moments) == 2 * len(params)
    assert not any("frozen" in name for name in leaves if name != "progress/frozen")
    numbers = sum(leaf.size for name, leaf in leaves.items() if name.startswith("state/"))
    whole = sum(leaf.size for name, leaf in stored(base).items() if name.startswith("state/"))
    assert numbers < 0.15 * whole
    # Of files this small most is orbax's own, and that differs from time to time.
    assert size(tuned / "checkpoints" / "4") < size(base / "checkpoints" / "16")


def test_it_learns_and_is_measured_with_its_adapter(tuned):
    assert list(measured(tuned)) == [0, 2, 4]
    assert measured(tuned)[4] < measured(tuned)[0] - 0.01


@pytest.mark.slow
def test_killed_and_resumed_it_is_the_same_bit_for_bit(base, tuned, tmp_path):
    run = shutil.copytree(tuned, tmp_path / "run")
    shutil.copytree(tuned.parent / "data", tmp_path / "data")
    shutil.rmtree(run / "checkpoints" / "4")
    assert tune(base, run, "STEPS=4") == 0
    assert losses(run) == losses(tuned)
    ours, theirs = stored(run), stored(tuned)
    assert ours.keys() == theirs.keys()
    for name, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[name], err_msg=name)


def test_it_opens_with_its_adapter_merged(base, tuned, merged):
    opened, before, whole = open_model(tuned), open_model(base), open_model(merged)
    assert (opened.step, whole.step, opened.model.max_length) == (4, 4, 256)
    ours, theirs, folder = (by_path(model.params) for model in (opened, before, whole))
    leaves = stored(tuned)
    assert ours.keys() == theirs.keys() == folder.keys()
    for name, leaf in ours.items():
        a, b = (leaves.get(f"state/params/adapter/{name}/{thin}") for thin in ("a", "b"))
        expected = np.asarray(theirs[name], np.float64)
        if a is not None:
            layers, rank = a.shape[0], a.shape[-1]
            change = a.reshape(layers, -1, rank).astype(np.float64) @ b.reshape(layers, rank, -1)
            assert np.abs(change).max() > 1e-3
            expected = expected + 2.0 * change.reshape(expected.shape)
        np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(folder[name], leaf, rtol=1e-6, atol=1e-6, err_msg=name)
    assert open_model(tuned, step=2).step == 2


@pytest.mark.slow
def test_it_is_exported_merged(tuned, merged, tmp_path):
    assert export_hf.main([str(tuned), str(tmp_path / "run")]) == 0
    assert export_hf.main([str(merged), str(tmp_path / "model")]) == 0
    for name in ("run", "model"):
        _, params = load(tmp_path / name, Layout())
        whole = open_model(merged).params
        jax.tree.map(np.testing.assert_array_equal, params, whole)


@pytest.mark.slow
def test_the_next_stage_starts_from_the_model_that_was_made(tuned, merged, tmp_path, capsys):
    """As its own model.gin says; what held-out answers lose before the first update is what they lost at the end."""
    names = {path.name for path in merged.iterdir()}
    assert names == {"checkpoints", "config.json", "import.json", "model.gin", "tokenizer"}
    files = ["gin/runs/quickstart_sft.gin", f"{merged}/model.gin"]
    given = [*SMALL, *QUIET, "STEPS=1", f"RUN_DIR={tmp_path / 'next'}", f"DATA_DIR={tuned.parent / 'data'}"]
    given += ["DecoderConfig.dtype=float32", "Experiment.evaluators=(@AnswerLoss(),)"]
    assert main([*(f"--gin_file={file}" for file in files), *(f"--gin.{binding}" for binding in given)]) == 0
    assert f"parameters start from step 4 of {merged}" in capsys.readouterr().err
    assert measured(tmp_path / "next")[0] == pytest.approx(measured(tuned)[4], rel=1e-5)


def refused(capsys, *arguments) -> str:
    assert merge_adapter.main([str(argument) for argument in arguments]) == 1
    *_, message = capsys.readouterr().err.splitlines()
    assert message.startswith("merge_adapter: ")
    return message


def test_mistakes_are_named(base, tuned, merged, tmp_path, capsys):
    out = tmp_path / "out"
    assert "trained no adapter (LoRA)" in refused(capsys, base, out)
    assert "has no config.gin" in refused(capsys, tmp_path, out)
    assert "exists; name another folder" in refused(capsys, tuned, merged)
    assert "no checkpoint of step 3" in refused(capsys, tuned, out, "--step", 3)
    assert "--part is 'policy', but the parameters of" in refused(capsys, tuned, out, "--part", "policy")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def written(monkeypatch, tmp_path):
    """(LoRA, origins) → (the folder of a run that trained it, what its merged parameters are by path)."""

    def write(lora, init_from):
        rng, run = np.random.default_rng(0), tmp_path / "run"
        shapes = unbox(jax.eval_shape(lora.init, jax.random.key(0)))
        params = jax.tree.map(lambda leaf: np.asarray(rng.normal(size=leaf.shape), np.float32), shapes)
        trained, frozen = split(params, lora.trainable)
        for prefix, folder in init_from.items():
            below = {name.removeprefix(f"{prefix}/"): leaf for name, leaf in by_path(params).items() if prefix in name}
            save(folder, {"state": {"params": nested(below)}})
        progress = {"frozen": np.asarray(fingerprint(frozen), np.int64)}
        save(run, {"state": {"params": trained}, "progress": progress})
        fresh = ("adapter", *(prefix for prefix in lora.trainable if prefix != "adapter"))
        fields = {"objective": lora, "init_from": {prefix: str(f) for prefix, f in init_from.items()}, "fresh": fresh}
        monkeypatch.setattr(merge_adapter, "_experiment", lambda run: experiment(run, **fields))
        monkeypatch.setattr(merge_adapter, "_write_tokenizer", lambda *_: ({}, "tokenizer.model"))
        (run / "config.gin").touch()
        return run, by_path(lora.merged(params))

    return write


def save(folder, tree) -> None:
    checkpoint = CheckpointFolder(folder / "checkpoints", KeepPolicy())
    checkpoint.save(7, tree)
    checkpoint.close()


@pytest.mark.slow
def test_a_reward_model_is_merged_with_the_head_that_it_trained(tiny, written, tmp_path):
    lora = LoRA(PairwiseReward(tiny), 2, 3.0, also=("head",))
    run, expected = written(lora, {"base/decoder": tmp_path / "sft"})
    (run / "reward_card.json").write_text("{}")
    assert merge_adapter.merge(run, tmp_path / "reward") == tiny.parameters + tiny.embed_dim + 1
    assert {path.name for path in (tmp_path / "reward").iterdir()} == {"checkpoints", "reward_card.json"}
    found = by_path(read_frozen(PairwiseReward(tiny).init, str(tmp_path / "reward"), Layout()))
    assert expected.keys() == found.keys()
    for name, leaf in found.items():
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_a_policy_is_taken_out_of_what_was_trained_with_it(tiny, written, tmp_path):
    lora = LoRA(PPO(tiny), 2, 3.0)
    run, expected = written(lora, {"base/policy": tmp_path / "sft", "base/value": tmp_path / "reward"})
    assert merge_adapter.merge(run, tmp_path / "model", part="/policy/") == tiny.parameters
    assert {path.name for path in (tmp_path / "model").iterdir()} >= {"checkpoints", "config.json", "model.gin"}
    leaves = stored(tmp_path / "model")
    for name, leaf in leaves.items():
        there = expected[f"policy/{name.removeprefix('state/params/')}"]
        np.testing.assert_allclose(leaf, there, rtol=1e-5, atol=1e-5, err_msg=name)
    assert len(leaves) == len([name for name in expected if name.startswith("policy/")])


def test_over_another_base_nothing_opens(base, tuned, tmp_path, capsys):
    """The run that it began from has trained on; this test changes the base, so it stands last."""
    newer = base / "checkpoints" / "20"
    shutil.copytree(base / "checkpoints" / "12", newer)
    message = refused(capsys, tuned, tmp_path / "out")
    assert f"the weights in {base} (Experiment.init_from, INIT_FROM) are not those" in message
    with pytest.raises(ValueError, match="are not those that the run began with"):
        open_model(tuned)
    shutil.rmtree(newer)
    shutil.rmtree(base / "checkpoints")
    assert "has no checkpoint to start from" in refused(capsys, tuned, tmp_path / "out")
