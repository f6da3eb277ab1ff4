"""What was imported comes out bit by bit; what was trained here is read and continued by transformers."""

import collections
import dataclasses
import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from hcxjax.convert.config import read_config
from hcxjax.convert.model import load
from hcxjax.convert.safetensors_folder import SafetensorsFolder
from hcxjax.mesh import Layout
from hcxjax.models.decoder import Decoder, apply
from hcxjax.text.templates import HCXJAX, Message
from hcxjax.text.vocabulary import Vocabulary
from tests.runs import ROOT
from tests.tools.test_import_hf import MEASURE, SHAPE, deep, grown
from tools import export_hf, import_hf
from tools.opening import open_model
from tools.random_checkpoint import write_checkpoint


def tensors(folder):
    files = SafetensorsFolder(folder)
    assert files.problems == []
    return {name: (stored.dtype, stored.shape, files.read(name).tobytes()) for name, stored in files.tensors.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_an_import_comes_out_bit_by_bit(tmp_path, dtype, tied):
    config = dataclasses.replace(SHAPE, tie_embeddings=tied, vocab_size=24000)
    if tied:
        plain = dict.fromkeys(("embedding_multiplier", "residual_multiplier", "logits_multiplier"), 1.0)
        config = dataclasses.replace(config, **plain, post_norms=False, attention_multiplier=None)
    write_checkpoint(tmp_path / "one", config, dtype=dtype)
    write_checkpoint(tmp_path / "many", config, dtype=dtype, max_shard_mb=1)
    original = tensors(tmp_path / "one")
    assert len(SafetensorsFolder(tmp_path / "many").files) > 1
    for source, shard in (("one", "1"), ("many", "1000")):
        assert import_hf.main([str(tmp_path / source), str(tmp_path / f"{source}-in")]) == 0
        arguments = [str(tmp_path / f"{source}-in"), str(tmp_path / f"{source}-out"), "--max_shard_mb", shard]
        assert export_hf.main(arguments) == 0
        assert tensors(tmp_path / f"{source}-out") == original
    written, given = (read_config(tmp_path / folder) for folder in ("one-out", "one"))
    assert written == given
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        assert (tmp_path / "one-out" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_dtypes_of_single_tensors_are_kept(tmp_path, capsys):
    from safetensors.numpy import save_file

    write_checkpoint(tmp_path / "source", SHAPE)
    mixed = load_file(tmp_path / "source" / "model.safetensors")
    mixed["model.norm.weight"] = mixed["model.norm.weight"].astype(np.float32) + 1e-6
    save_file(mixed, tmp_path / "source" / "model.safetensors")
    import_hf.import_model(tmp_path / "source", tmp_path / "in")
    export_hf.export_model(tmp_path / "in", tmp_path / "out")
    assert tensors(tmp_path / "out") == tensors(tmp_path / "source")
    assert export_hf.main([str(tmp_path / "in"), str(tmp_path / "half"), "--dtype", "float16"]) == 0
    assert capsys.readouterr().err == ""
    assert {dtype for dtype, _, _ in tensors(tmp_path / "half").values()} == {"F16"}
    assert read_config(tmp_path / "half")["dtype"] == "float16"


@pytest.fixture(scope="module")
def exported(whole, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "run"
    assert export_hf.main([str(whole), str(out)]) == 0
    return out


def test_a_run_is_written_whole(whole, exported):
    names = sorted(path.name for path in exported.iterdir())
    assert names == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    trained = open_model(whole)
    model, vocabulary = trained.model, trained.vocabulary
    config, read = load(exported, Layout())
    assert dataclasses.replace(config, dtype=model.dtype, remat=model.remat, init_std=model.init_std) == model
    jax.tree.map(np.testing.assert_array_equal, read, trained.params)
    written = read_config(exported)
    assert written["model_type"] == "llama"
    ends = [vocabulary.end_of_turn, vocabulary.end_of_text]
    assert (written["bos_token_id"], written["eos_token_id"]) == (vocabulary.end_of_text, ends)
    assert json.loads((exported / "generation_config.json").read_text())["eos_token_id"] == ends


def test_a_step_and_a_dtype(whole, tmp_path):
    assert export_hf.main([str(whole), str(tmp_path / "early"), "--step", "4", "--dtype", "bfloat16"]) == 0
    early = tensors(tmp_path / "early")
    assert {dtype for dtype, _, _ in early.values()} == {"BF16"}
    export_hf.export_model(whole, tmp_path / "late", dtype="bfloat16")
    late = tensors(tmp_path / "late")
    assert late.keys() == early.keys()
    assert late != early


def test_transformers_goes_on_as_we_do(whole, exported):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", minversion="5.0")
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    model = transformers.AutoModelForCausalLM.from_pretrained(exported).eval()
    assert model.dtype == torch.float32
    model.generation_config.eos_token_id = None
    vocabulary = Vocabulary(str(exported / "tokenizer.json"))
    config, params = load(exported, Layout())
    config = dataclasses.replace(config, dtype="float32")
    prompt = tokenizer("<|endoftext|>토요일에 def add(a,  b):\n", return_tensors="pt")
    with torch.no_grad():
        written = model.generate(**prompt, do_sample=False, max_new_tokens=60)
    start, tokens_BT = prompt["input_ids"].shape[1], jnp.asarray(written.numpy(), jnp.int32)
    positions_BT = jnp.arange(tokens_BT.shape[1])[None]
    logits_BTV = apply(config, params, Decoder.__call__, tokens_BT, jnp.ones_like(tokens_BT), positions_BT)
    ours = np.asarray(logits_BTV)[0, start - 1 : -1].argmax(-1).tolist()
    assert ours == written[0, start:].tolist()
    assert tokenizer.decode(written[0, start:]) == vocabulary.decode(ours, specials=True)
    messages = [{"role": "user", "content": "안녕?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ids == HCXJAX.tokens([Message("user", "안녕?")], vocabulary)


def test_the_tokenizer_of_a_run_that_started_from_an_import(tmp_path):
    """A run keeps the tokenizer.json alone; what lay beside it comes from where it was imported."""
    write_checkpoint(tmp_path / "source", SHAPE)
    import_hf.import_model(tmp_path / "source", tmp_path / "model")
    kept = tmp_path / "run" / "tokenizer.model"
    kept.parent.mkdir()
    original = tmp_path / "model" / "tokenizer" / "tokenizer.json"
    shutil.copyfile(original, kept)
    vocabulary = Vocabulary(str(kept))
    (tmp_path / "out").mkdir()
    ids = export_hf.tokenizer_writer(vocabulary, str(original))(tmp_path / "out")
    assert ids["eos_token_id"] == [256, 262, 263]
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "source" / name).read_bytes()
    # The import is gone: the tokenizer still is whole, and says its specials.
    (tmp_path / "alone").mkdir()
    export_hf.tokenizer_writer(vocabulary, str(tmp_path / "gone" / "tokenizer.json"))(tmp_path / "alone")
    assert (tmp_path / "alone" / "tokenizer.json").read_bytes() == original.read_bytes()
    settings = json.loads((tmp_path / "alone" / "tokenizer_config.json").read_text())
    assert "<|im_start|>" in settings["chat_template"]
    # Another tokenizer lies there now: its files are not this run's.
    original.write_text(original.read_text() + "\n")
    (original.parent / "tokenizer_config.json").write_text("{}")
    (tmp_path / "changed").mkdir()
    export_hf.tokenizer_writer(vocabulary, str(original))(tmp_path / "changed")
    assert (tmp_path / "changed" / "tokenizer_config.json").read_text() != "{}"


def test_mistakes_are_one_line_and_leave_nothing(whole, exported, tmp_path, capsys, monkeypatch):
    def refused(*arguments):
        assert export_hf.main([str(argument) for argument in arguments]) == 1
        said = capsys.readouterr().err
        assert said.startswith("export_hf: ")
        assert said.count("\n") == 1
        return said

    assert "neither config.gin nor import.json" in refused(tmp_path, tmp_path / "out")
    assert "no checkpoint of step 3" in refused(whole, tmp_path / "out", "--step", 3)
    assert "exists; name another folder" in refused(whole, exported)
    assert "--max_shard_mb is 0" in refused(whole, tmp_path / "out", "--max_shard_mb", 0)
    copied = tmp_path / "run"
    shutil.copytree(whole, copied)
    largest = max((path for path in copied.rglob("checkpoints/16/**/d/*") if path.is_file()), key=os.path.getsize)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    assert "checkpoint 16" in refused(copied, tmp_path / "out")
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 5, 5))
    assert "5 are free" in refused(whole, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_error_while_writing_leaves_nothing(whole, tmp_path, monkeypatch):
    def fails(folder, tensors, size, wrote):
        (folder / "half").touch()
        raise OSError("no space left")

    monkeypatch.setattr(export_hf, "write_tensors", fails)
    assert export_hf.main([str(whole), str(tmp_path / "out")]) == 1
    assert list(tmp_path.iterdir()) == []


def exporting(tmp_path, change: str) -> int:
    import_hf.import_model(tmp_path / "source", tmp_path / "model")
    code = f"import sys; from tools import export_hf\n{MEASURE.format(change=change)}\n"
    code += "sys.exit(export_hf.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(tmp_path / "model"), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert tensors(tmp_path / "out") == tensors(tmp_path / "source")
    return grown(done)


def test_memory_does_not_hold_the_model(tmp_path, monkeypatch):
    """41M parameters: 164 MB to read, 82 MB to write."""
    monkeypatch.setattr("hcxjax.convert.model.BLOCK_BYTES", 1 << 20)
    write_checkpoint(tmp_path / "source", deep(12))
    assert exporting(tmp_path, "model.BLOCK_BYTES = 1 << 20") < 80


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path):
    """151M parameters: 605 MB to read, 303 MB to write."""
    write_checkpoint(tmp_path / "source", deep(46))
    assert exporting(tmp_path, "") < 200


def test_a_width_that_transformers_refuses_is_told(tmp_path, capsys):
    write_checkpoint(tmp_path / "source", dataclasses.replace(SHAPE, num_heads=5, num_kv_heads=1))
    import_hf.import_model(tmp_path / "source", tmp_path / "in")
    assert export_hf.main([str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert "hidden_size (24) be a multiple of num_attention_heads (5)" in capsys.readouterr().err
    assert tensors(tmp_path / "out") == tensors(tmp_path / "source")
