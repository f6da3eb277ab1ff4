"""A Hugging Face checkpoint becomes a model folder, whole or not at all, in little memory."""

import hashlib
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hcxjax.checkpoint import read
from hcxjax.convert.model import abstract_params, load
from hcxjax.main import configure
from hcxjax.mesh import Layout, unbox
from hcxjax.models.config import DecoderConfig, RopeScaling
from tests.runs import ROOT, TINY
from tools import import_hf
from tools.random_checkpoint import write_checkpoint

SHAPE = DecoderConfig(
    vocab_size=280,
    num_layers=3,
    embed_dim=24,
    mlp_dim=40,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_length=128,
    rope_theta=1000.0,
    rope_scaling=RopeScaling("llama3", 2.0, original_length=64),
    norm_epsilon=2e-5,
    post_norms=True,
    embedding_multiplier=3.0,
    residual_multiplier=0.7,
    logits_multiplier=0.5,
    attention_multiplier=0.11,
    tie_embeddings=False,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hugging_face") / "source"
    write_checkpoint(folder, SHAPE)
    return folder


@pytest.fixture(scope="module")
def imported(source):
    out = source.parent / "imported"
    assert import_hf.main([str(source), str(out)]) == 0
    return out


def params_of(folder):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    template = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), unbox(abstract_params(SHAPE))
    )
    step, tree = read(folder / "checkpoints", {"state": {"params": template}})
    assert step == 0
    return tree["state"]["params"]


def test_its_weights_are_a_checkpoint(source, imported):
    _, expected = load(source, Layout())
    jax.tree.map(np.testing.assert_array_equal, params_of(imported), expected)


def test_its_gin_file_is_the_model(imported, tmp_path):
    experiment, _ = configure([str(TINY), str(imported / "model.gin")], [f"RUN_DIR={tmp_path}"])
    assert experiment.init_from == str(imported)
    described = {name: getattr(experiment.objective.model, name) for name in SHAPE.__dataclass_fields__}
    left_to_the_run = (
        "dtype",
        "matmuls",
        "attention",
        "attention_tile",
        "context",
        "remat",
        "offload",
        "scan_unroll",
        "init_std",
    )
    for name, value in described.items():
        assert name in left_to_the_run or value == getattr(SHAPE, name), name
    assert experiment.source.corpus.tokenizer.path == f"{imported}/tokenizer/tokenizer.json"


def test_the_rest_of_it_is_copied_and_accounted_for(source, imported):
    assert (imported / "config.json").read_bytes() == (source / "config.json").read_bytes()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        assert (imported / "tokenizer" / name).read_bytes() == (source / name).read_bytes()
    card = json.loads((imported / "import.json").read_text())
    assert (card["source"], card["prefix"]) == (str(source), "model.")
    assert card["dtypes"]["model.layers.2.post_norm1.weight"] == "BF16"
    assert len(card["dtypes"]) == 3 + 3 * 11
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert card["sha256"][name] == hashlib.sha256((source / name).read_bytes()).hexdigest()


def run(*arguments: str, program: str = "", **options) -> subprocess.CompletedProcess:
    """The tool in a process of its own, after `program`."""
    code = f"import sys; from tools import import_hf\n{program}\nsys.exit(import_hf.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300, **options)


KILL = """
import os, signal
from hcxjax.convert.model import HuggingFaceModel
read = HuggingFaceModel.read
def dies(self, weight, index):
    if weight.path == "layers/mlp/down/weight":
        os.kill(os.getpid(), signal.SIGKILL)
    return read(self, weight, index)
HuggingFaceModel.read = dies
"""


def test_a_killed_import_is_finished_by_the_same_command(source, imported, tmp_path):
    out = tmp_path / "model"
    assert run(source, out, program=KILL).returncode == -9
    assert [path.name for path in tmp_path.iterdir()] == ["model.unfinished"]
    assert not (tmp_path / "model.unfinished" / "import.json").exists()
    assert import_hf.main([str(source), str(out)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    jax.tree.map(np.testing.assert_array_equal, params_of(out), params_of(imported))


def test_code_of_a_checkpoint_is_not_run(source, tmp_path, capsys):
    folder, ran = tmp_path / "source", tmp_path / "ran"
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "modeling_own.py").write_text(f"open({str(ran)!r}, 'w')")
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoModelForCausalLM": "modeling_own.Model"}, "flux": 3}
    (folder / "config.json").write_text(json.dumps(config))
    assert import_hf.main([str(folder), str(tmp_path / "model")]) == 0
    said = capsys.readouterr().err
    assert "auto_map); none of it was read or run" in said
    assert "fields that are not known here and were left alone: flux" in said
    assert not ran.exists()
    assert not (tmp_path / "model" / "modeling_own.py").exists()


def break_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")


def only_pickles(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (break_tensor, "1 missing: model.norm.weight"),
        (only_pickles, "only pickle files (pytorch_model.bin)"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{}"), "model_type is None"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(source, tmp_path, capsys, harm, message):
    folder = tmp_path / "source"
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    harm(folder)
    assert import_hf.main([str(folder), str(tmp_path / "model")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("import_hf: ")
    assert message in said
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_folder_that_exists_is_refused(source, imported, capsys):
    before = (imported / "import.json").stat().st_mtime_ns
    assert import_hf.main([str(source), str(imported)]) == 1
    assert "exists; name another folder" in capsys.readouterr().err
    assert (imported / "import.json").stat().st_mtime_ns == before


def test_a_tokenizer_that_is_not_there_or_cannot_be_used_is_told(source, tmp_path, capsys):
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((source / name).read_bytes())
    assert import_hf.main([str(folder), str(tmp_path / "one")]) == 0
    assert "there is no tokenizer.json" in capsys.readouterr().err
    assert "Tokenizer.path" not in (tmp_path / "one" / "model.gin").read_text()
    (folder / "tokenizer.json").write_text("{}")
    assert import_hf.main([str(folder), str(tmp_path / "two")]) == 0
    assert "the tokenizer was copied, but cannot be used here" in capsys.readouterr().err


MEASURE = """
import atexit, hcxjax.convert.model as model
{change}
# Not getrusage: its peak is inherited from the process that started this one.
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024
before = peak()
atexit.register(lambda: print("grew", peak() - before))
"""


def grown(done: subprocess.CompletedProcess) -> int:
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return int(done.stdout.split("grew ")[1])


def deep(layers: int) -> DecoderConfig:
    """3,278,848 parameters a layer, nearly all in three weights."""
    return DecoderConfig(
        vocab_size=8192,
        num_layers=layers,
        embed_dim=256,
        mlp_dim=4096,
        num_heads=2,
        num_kv_heads=1,
        head_dim=64,
        max_length=128,
    )


def test_memory_does_not_hold_the_model(tmp_path):
    """41M parameters: 82 MB to read, 164 MB to write, 50 MB of it in one stacked weight; in parts of 4 MB."""
    write_checkpoint(tmp_path / "source", deep(12))
    program = MEASURE.format(change="model.BLOCK_BYTES = 1 << 20")
    assert grown(run(tmp_path / "source", tmp_path / "model", program=program)) < 80


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path):
    """151M parameters: 303 MB to read, 605 MB to write."""
    write_checkpoint(tmp_path / "source", deep(46))
    assert grown(run(tmp_path / "source", tmp_path / "model", program=MEASURE.format(change=""))) < 200


def test_help(capsys):
    with pytest.raises(SystemExit) as ended:
        import_hf.main(["--help"])
    assert ended.value.code == 0
    assert "python -m tools.import_hf" in capsys.readouterr().out
