"""Runs that go on from weights that were there before, as users start them: from an imported model, from a run."""

import json
import math
import shutil

import pytest

from hcxjax.main import main
from hcxjax.models.config import DecoderConfig
from hcxjax.world import World
from tests.runs import TINY, checkpoints, losses

pytest.importorskip("tokenizers")

SMALL = DecoderConfig(
    vocab_size=264,
    num_layers=2,
    embed_dim=32,
    mlp_dim=48,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    max_length=512,
    rope_theta=1000.0,
    init_std=0.5,
)


@pytest.fixture(scope="module")
def seed(tmp_path_factory):
    """A model folder as tools/import_hf.py leaves it: SEED's specials, no padding among them."""
    from tools.import_hf import import_model
    from tools.random_checkpoint import write_checkpoint

    folder = tmp_path_factory.mktemp("seed")
    write_checkpoint(folder / "source", SMALL, dtype="float32")
    import_model(folder / "source", folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder of JSON lines of each kind of text."""
    folder = tmp_path_factory.mktemp("texts")
    for language in ("ko", "en", "code"):
        lines = [json.dumps({"text": text}) for text in World().documents(language, count=40)]
        (folder / f"{language}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def continued(model, texts, data, run, *bindings) -> list[str]:
    sources = [f"{kind}=jsonl:{texts}/{name}.jsonl" for kind, name in zip(KINDS, ("ko", "en", "code"), strict=True)]
    tiny = ["BATCH=8", "LENGTH=32", "WARMUP=1", "SAVE_EVERY=2", "DecoderConfig.dtype=float32", "Corpus.cleaning=None"]
    tiny += [
        "Corpus.duplicates=None",
        "Corpus.validation_share=0.2",
        "Experiment.trackers=(@JsonLines(),)",
        "Experiment.evaluators=()",
        "Experiment.watch=None",
    ]
    given = [*sources, *tiny, f"RUN_DIR={run}", f"DATA_DIR={data}", *bindings]
    files = ["--gin_file=gin/runs/continue_seed.gin", f"--gin_file={model}/model.gin"]
    return [*files, *(f"--gin.{binding}" for binding in given)]


KINDS = ("KOREAN", "ENGLISH", "CODE")


def test_an_imported_model_is_trained_on(seed, texts, tmp_path):
    run, model = tmp_path / "run", tmp_path / "model"
    shutil.copytree(seed, model)
    here = [f"INIT_FROM={model}", f"Tokenizer.path={model}/tokenizer/tokenizer.json"]
    assert main([*continued(seed, texts, run, run, "STEPS=2", *here)]) == 0
    assert losses(run)[1] > 1.3 * math.log(SMALL.vocab_size), "drawn weights would know nothing, these are all wrong"
    shutil.rmtree(model)  # weights and tokenizer are the run's own by now
    assert main([*continued(seed, texts, run, run, "STEPS=3", *here)]) == 0
    assert list(losses(run)) == [1, 2, 3]
    assert checkpoints(run) == [2, 3]


def test_the_order_of_files_and_another_tokenizer_are_told(seed, texts, tmp_path, capsys):
    command = continued(seed, texts, tmp_path, tmp_path / "run", "STEPS=2")
    assert main([command[1], command[0], *command[2:]]) == 1
    assert "Experiment.init_from is ''; it must name a folder" in capsys.readouterr().err
    other = tmp_path / "tokenizer.json"
    other.write_text((seed / "tokenizer" / "tokenizer.json").read_text() + "\n")
    assert main([*command, f"--gin.Tokenizer.path={other}"]) == 1
    assert f"set Tokenizer.path to {seed}/tokenizer/tokenizer.json" in capsys.readouterr().err
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory):
    """Few dialogues, which a small model can learn by heart; a lot of text that it is not to learn."""
    path = tmp_path_factory.mktemp("dialogues") / "chat.jsonl"
    talk = [{"role": "user", "content": "Which number?"}, {"role": "assistant", "content": "seven seven seven"}]
    records = [{"messages": talk}] * 20
    records += [{"prompt": f"say it again {number}", "completion": "seven seven"} for number in range(30)]
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return path


def tuned(model, dialogues, run, *bindings) -> list[str]:
    tiny = ["BATCH_TOKENS=1024", "LENGTH=128", "LEARNING_RATE=0.003", "WARMUP=2", "SAVE_EVERY=6", "EVAL_EVERY=100"]
    tiny += ["ACCUMULATE=1", "DecoderConfig.dtype=float32", "Experiment.trackers=(@JsonLines(),)"]
    tiny += ["LanguageModel.loss_chunk=None", "Dialogues.validation_share=0.2", "KeepPolicy.period=6"]
    given = [f"CONVERSATIONS=jsonl:{dialogues}", *tiny, f"RUN_DIR={run}", *bindings]
    files = ["--gin_file=gin/runs/sft_seed.gin", f"--gin_file={model}/model.gin"]
    return [*files, *(f"--gin.{binding}" for binding in given)]


def test_an_imported_model_is_tuned_on_conversations(seed, dialogues, tmp_path):
    """The loss on answers falls, on those held out too; killed in the middle it goes on as if nothing had been."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(tuned(seed, dialogues, whole, "STEPS=20")) == 0
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    measured = [line["eval/sft/loss"] for line in lines if "eval/sft/loss" in line]
    assert measured[0] > math.log(SMALL.vocab_size)
    assert measured[-1] < measured[0] / 3
    assert measured[-1] == pytest.approx(losses(whole)[20], rel=0.5)
    shutil.copytree(whole, parts)
    for step in (12, 18, 20):
        shutil.rmtree(parts / "checkpoints" / str(step))
    assert main(tuned(seed, dialogues, parts, "STEPS=20")) == 0
    assert losses(parts) == losses(whole)


def test_a_run_is_tuned_from_another_run(whole, tmp_path, capsys):
    """The quickstart's second half, at the size of tests/tiny.gin; its tokenizer is SentencePiece."""
    sizes = [
        line.replace(" ", "").replace("'", "") for line in TINY.read_text().splitlines() if "DecoderConfig." in line
    ]
    given = [*sizes, "VOCAB_SIZE=512", "LENGTH=256", "DecoderConfig.max_length=256", "BATCH_TOKENS=2048", "STEPS=3"]
    given += ["DIALOGUES=30", "Conversations.buckets=(256,)", "DecoderConfig.remat=none", "Experiment.watch=None"]
    given += ["Experiment.evaluators=()", "Experiment.trackers=(@JsonLines(),)", "WARMUP=1"]
    tokenizer = f"Tokenizer.path={whole}/tokenizer/tokenizer.model"
    given += [f"RUN_DIR={tmp_path}/run", f"INIT_FROM={whole}@8"]
    command = ["--gin_file=gin/runs/quickstart_sft.gin", *(f"--gin.{binding}" for binding in given)]
    assert main([*command, f"--gin.{tokenizer}"]) == 0
    assert "parameters start from step 8 of" in capsys.readouterr().err
    assert list(losses(tmp_path / "run")) == [1, 2, 3]
    smaller = [*command, f"--gin.{tokenizer}", "--gin.DecoderConfig.mlp_dim=48", f"--gin.RUN_DIR={tmp_path}/smaller"]
    assert main(smaller) == 1
    message = capsys.readouterr().err
    assert "layers/mlp/down/weight has shape (2, 64, 32) in checkpoint 8" in message
    assert "DecoderConfig.*" in message
