"""Runs that go on from weights that were there before, as users start them: from an imported model, from a run."""

import json
import math
import shutil

import pytest

from hcxjax.main import main
from hcxjax.models.config import DecoderConfig
from hcxjax.world import World
from tests.runs import checkpoints, losses

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
