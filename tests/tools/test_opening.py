"""What the tools open: runs, imported models, Hugging Face folders."""

import argparse
import dataclasses
import json
import shutil
import types

import jax
import numpy as np
import pytest

from hcxjax.checkpoint import CheckpointError
from hcxjax.main import configure
from hcxjax.models.config import DecoderConfig
from hcxjax.text.templates import HCXJAX, LLAMA3, SEED, THINK
from tools import opening
from tools.opening import open_model

pytest.importorskip("tokenizers")
TINY = DecoderConfig(300, 2, 32, 48, 2, 1, 16, 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """As Hugging Face lays a model out."""
    from tools.random_checkpoint import write_checkpoint

    path = tmp_path_factory.mktemp("opening") / "tiny"
    write_checkpoint(path, TINY, dtype="float32")
    return path


@pytest.fixture(scope="module")
def imported(folder):
    from tools.import_hf import import_model

    out = folder.with_name("imported")
    import_model(folder, out)
    return out


def test_a_run(whole):
    opened = open_model(whole)
    assert (opened.step, opened.name, opened.template) == (16, "run", HCXJAX)
    assert opened.params["embed"].shape == (opened.model.vocab_size, opened.model.embed_dim)
    older = open_model(str(whole), step=8)
    assert older.step == 8
    assert not np.array_equal(older.params["embed"], opened.params["embed"])


def test_a_folder_and_what_was_imported_of_it_are_the_same_model(folder, imported):
    one, other = open_model(folder), open_model(imported)
    assert (one.model, one.step, one.template) == (other.model, 0, SEED)
    assert other.template is SEED
    assert one.vocabulary.fingerprint == other.vocabulary.fingerprint
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


def test_params_are_laid_out_over_the_devices_that_are_here(folder, imported):
    for opened in (open_model(folder), open_model(imported)):
        assert opened.params["embed"].sharding.mesh.devices.size == jax.device_count()


def test_the_architecture_of_the_reasoning_model_means_its_template(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "think")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "hyperclovax", "use_post_norm": False}))
    assert open_model(copy).template is THINK


def test_a_run_over_conversations_may_name_its_template(whole, monkeypatch):
    def named(files, bindings):
        experiment, text = configure(files, bindings)
        experiment.source.dialogues = types.SimpleNamespace(template="think")
        return experiment, text

    monkeypatch.setattr(opening, "configure", named)
    assert open_model(whole).template is THINK


def test_a_source_without_a_vocabulary_is_refused(whole, monkeypatch):
    def stripped(files, bindings):
        experiment, text = configure(files, bindings)
        return dataclasses.replace(experiment, source=object()), text

    monkeypatch.setattr(opening, "configure", stripped)
    with pytest.raises(ValueError, match="its source, object, keeps no vocabulary"):
        open_model(whole)


@pytest.fixture
def llama(folder, tmp_path):
    """A copy with a tokenizer of Llama 3's names; `write(file, …)` changes fields of a file."""
    copy = shutil.copytree(folder, tmp_path / "llama")
    tokenizer = (copy / "tokenizer.json").read_text()
    names = {"endoftext": "begin_of_text", "im_start": "start_header_id", "im_end": "end_header_id"}
    for seed, llama3 in (names | {"stop": "end_of_text", "endofturn": "eot_id"}).items():
        tokenizer = tokenizer.replace(f"<|{seed}|>", f"<|{llama3}|>")
    (copy / "tokenizer.json").write_text(tokenizer)
    for name in ("config.json", "generation_config.json"):
        write(copy / name, bos_token_id=None, eos_token_id=None)
    return copy


def write(file, **fields) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_our_documents_begin_and_end_with_the_end_of_text(whole, folder):
    for opened in (open_model(whole), open_model(folder)):
        assert opened.text_ids == ((opened.vocabulary.end_of_text,), (opened.vocabulary.end_of_text,))


def test_another_checkpoint_says_what_begins_and_ends_a_text(llama):
    from tools.import_hf import import_model

    write(llama / "config.json", bos_token_id=5, eos_token_id=6)
    assert open_model(llama).text_ids == ((5,), (6,))
    write(llama / "generation_config.json", eos_token_id=[7, 8])
    assert open_model(llama).template is LLAMA3
    imported = llama.with_name("imported")
    import_model(llama, imported)
    for path in (llama, imported):
        assert open_model(path).text_ids == ((5,), (7, 8))
    inner = json.loads((llama / "config.json").read_text()) | {"bos_token_id": 9}
    (llama / "config.json").write_text(json.dumps({"text_config": inner}))
    assert open_model(llama).begin == (9,)


def test_a_model_that_says_neither_can_still_talk(llama):
    opened = open_model(llama)
    assert (opened.template, opened.begin, opened.ends) == (LLAMA3, (), ())
    with pytest.raises(ValueError, match=r"has no <\|endoftext\|>, and no bos_token_id or eos_token_id is in"):
        opened.text_ids  # noqa: B018
    write(llama / "config.json", eos_token_id=5)
    assert open_model(llama).text_ids == ((), (5,))


@pytest.mark.parametrize("wrong", ["x", 300, -1, True, [1, None], 1.0])
def test_ids_that_there_are_not_are_named(llama, wrong):
    write(llama / "generation_config.json", eos_token_id=wrong)
    with pytest.raises(ValueError, match=r"generation_config\.json: eos_token_id is .* it must be an id below 300"):
        open_model(llama)
    (llama / "generation_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"generation_config\.json is no JSON"):
        open_model(llama)


def test_a_vocabulary_without_the_marks_has_no_template(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "plain")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).write_text((copy / name).read_text().replace("<|im_end|>", "<|im_fin|>"))
    assert open_model(copy).template is None


def test_what_is_computed_in(folder):
    assert TINY.dtype == "bfloat16"
    assert open_model(folder).model.dtype == ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    assert open_model(folder, dtype="bfloat16").model.dtype == "bfloat16"


def test_folders_that_are_no_model(folder, imported, tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.gin, and no config\.json with weights"):
        open_model(tmp_path)
    with pytest.raises(ValueError, match="--step is 3"):
        open_model(folder, step=3)
    with pytest.raises(ValueError, match=r"no checkpoint of step 3; it has steps \[0\]"):
        open_model(imported, step=3)
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        open_model(copy)


def test_a_damaged_model_is_not_opened(imported, tmp_path):
    copy = shutil.copytree(imported, tmp_path / "copy")
    largest = max((copy / "checkpoints").rglob("*"), key=lambda file: file.stat().st_size if file.is_file() else 0)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        open_model(copy)


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    opening.add_model_arguments(parser)
    opening.add_template_arguments(parser)
    opening.add_sampling_arguments(parser)
    return parser.parse_args(["--model", "x", *arguments])


def test_the_context_is_the_model_s_unless_less_is_asked_for(folder):
    opened = open_model(folder)
    assert opening.context_of(options(), opened) == 64
    assert opening.context_of(options("--context", "32"), opened) == 32
    for wrong in ("0", "65"):
        with pytest.raises(ValueError, match=f"--context is {wrong}; it must be 1 to 64"):
            opening.context_of(options("--context", wrong), opened)


def test_a_template_that_is_named_counts(folder):
    opened = open_model(folder)
    assert opening.template_of(options(), opened) is SEED
    assert opening.template_of(options("--template", "think"), opened) is THINK


def test_every_setting_of_sampling_has_its_flag():
    given = options("--top_k", "3", "--top_p", "0.5", "--min_p", "0.1", "--repetition_penalty", "1.2", "--seed", "7")
    sampling = opening.sampling_of(given)
    assert (sampling.top_k, sampling.top_p, sampling.min_p, sampling.seed) == (3, 0.5, 0.1, 7)
    assert sampling.repetition_penalty == 1.2


@pytest.mark.parametrize(
    ("int8", "weights", "cache"),
    [(None, "float32", None), ("weights", "int8", None), ("cache", "float32", "int8"), ("both", "int8", "int8")],
)
def test_int8_rounds_what_it_names(folder, int8, weights, cache):
    given = options("--model", str(folder), *(["--int8", int8] if int8 else []))
    opened = opening.open_named(given)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(opened.params["layers"]["mlp"]["gate"])} - {"float32"} == (
        {"int8"} if weights == "int8" else set()
    )
    assert opening.settings_of(given, opened, slots=3).cache_dtype == cache


def test_weights_are_kept_in_the_compute_dtype(folder):
    opened = opening.open_named(options("--model", str(folder), "--dtype", "bfloat16"))
    assert opened.params["embed"].dtype == opened.params["layers"]["mlp"]["up"]["weight"].dtype == "bfloat16"
    assert opened.params["norm"]["weight"].dtype == "float32"
