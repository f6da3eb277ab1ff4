"""Every tensor of a checkpoint is accounted for, and lands where a device wants it."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hcxjax.convert.model import HuggingFaceModel, load
from hcxjax.convert.names import weights
from hcxjax.mesh import Layout

SINGLE = "model.safetensors"


def rewrite(folder, change):
    """The checkpoint with its tensors changed by `change`, a function of the dictionary."""
    tensors = load_file(folder / SINGLE)
    tensors = change(tensors) or tensors
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / SINGLE)


def configure(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def flat(params):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def same(one, other):
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_are_read_as_they_are(small, checkpoint, dtype):
    folder = checkpoint(small, dtype)
    tensors = load_file(folder / SINGLE)
    _, params = load(folder, Layout())
    expected = tensors["model.layers.1.mlp.down_proj.weight"].astype(np.float32).T
    assert np.asarray(params["layers"]["mlp"]["down"]["weight"][1]).tobytes() == expected.tobytes()
    assert params["embed"].dtype == np.float32
    np.testing.assert_array_equal(params["embed"], tensors["model.embed_tokens.weight"].astype(np.float32))
    assert set(HuggingFaceModel(folder).dtypes().values()) == {
        {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[dtype]
    }


def test_shards_hold_the_same(seed_like, checkpoint, tmp_path):
    folder = checkpoint(seed_like)
    _, whole = load(folder, Layout())
    from tools.random_checkpoint import write_checkpoint

    wide = dataclasses.replace(seed_like, vocab_size=6000)
    write_checkpoint(tmp_path / "one", wide, dtype="float32")
    write_checkpoint(tmp_path / "many", wide, dtype="float32", max_shard_mb=1)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) == 2
    same(load(tmp_path / "one", Layout())[1], load(tmp_path / "many", Layout())[1])
    assert flat(whole).keys() == flat(load(tmp_path / "one", Layout())[1]).keys()


@pytest.mark.parametrize(
    "layout",
    [
        Layout(fsdp=2, tensor=4),  # heads 4 over 4; KV heads 2 and the vocabulary of 280 too
        Layout(data=1, fsdp=8),
        Layout(data=2, tensor=4, rules=(("head_dim", "tensor"), ("heads", None), ("kv_heads", None))),
    ],
    ids=["fsdp and tensor", "fsdp", "inside a head"],
)
def test_each_device_reads_its_slice(seed_like, checkpoint, layout, monkeypatch):
    folder = checkpoint(seed_like)
    _, expected = load(folder, Layout())
    _, params = load(folder, layout)
    same(params, expected)
    gate = params["layers"]["mlp"]["gate"]["weight"]
    assert gate.sharding.shard_shape(gate.shape) != gate.shape


def test_a_slice_reads_no_more_of_the_file(seed_like, checkpoint, monkeypatch):
    model = HuggingFaceModel(checkpoint(seed_like))
    read = []
    monkeypatch.setattr(model.files, "read", lambda name, index: read.append((name, index)) or np.zeros((6, 32)))
    (output,) = (weight for weight in weights(model.config) if weight.path == "layers/attention/output/weight")
    model.read(output, (slice(1, 2), slice(2, 4), slice(0, 16), slice(6, 12)))
    assert read == [("model.layers.1.self_attn.o_proj.weight", (slice(6, 12), slice(32, 64)))]


@pytest.mark.parametrize(
    ("prefix", "head"),
    [
        ("", "lm_head."),
        ("model.model.", "model.lm_head."),
        ("model.language_model.", "lm_head."),
        ("language_model.model.", "language_model.lm_head."),
        ("transformer.", "transformer.lm_head."),
    ],
)
def test_other_prefixes(seed_like, checkpoint, prefix, head):
    folder = checkpoint(seed_like)
    _, expected = load(folder, Layout())

    def renamed(name):
        return name.replace("lm_head.", head) if name.startswith("lm_head.") else prefix + name.removeprefix("model.")

    rewrite(folder, lambda tensors: {renamed(name): value for name, value in tensors.items()})
    same(load(folder, Layout())[1], expected)
    model = HuggingFaceModel(folder)
    assert model.prefix == prefix
    assert "model.layers.0.mlp.up_proj.weight" in model.dtypes()


def test_a_model_that_also_sees(seed_like, checkpoint):
    folder = checkpoint(seed_like)
    _, expected = load(folder, Layout())
    inner = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "vlm", "text_config": inner, "vision_config": {}}))
    rewrite(
        folder,
        lambda tensors: (
            {name.replace("model.", "model.language_model.", 1): value for name, value in tensors.items()}
            | {"model.vision_model.patch.weight": np.zeros(3, np.int32)}
        ),
    )
    same(load(folder, Layout())[1], expected)
    assert HuggingFaceModel(folder).left_out == ["model.vision_model.patch.weight"]


def test_buffers_and_repetitions_are_ignored(small, checkpoint):
    folder = checkpoint(small)

    def add(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(8, np.float32)
        tensors["model.rotary_emb.inv_freq"] = np.zeros(8, np.float32)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    rewrite(folder, add)
    assert len(HuggingFaceModel(folder).buffers) == 3

    def another(tensors):
        tensors["lm_head.weight"][-1, -1] += 1

    rewrite(folder, another)
    with pytest.raises(ValueError, match=r"1 too many: lm_head\.weight"):
        HuggingFaceModel(folder)


def test_everything_that_does_not_fit_is_named_at_once(small, checkpoint):
    folder = checkpoint(small)

    def harm(tensors):
        del tensors["model.layers.2.mlp.up_proj.weight"], tensors["model.norm.weight"]
        tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(64, np.float32)
        tensors["model.layers.0.self_attn.q_norm.weight"] = np.zeros(16, np.float32)
        tensors["model.layers.1.self_attn.o_proj.weight"] = np.zeros((64, 24), np.float32)
        tensors["model.layers.1.mlp.gate_proj.weight"] = np.zeros((40, 24), np.float64)
        tensors["model.layers.0.mlp.gate_proj.weight"] = np.zeros((40, 24), ml_dtypes.float8_e4m3fn)

    rewrite(folder, harm)
    with pytest.raises(ValueError) as refused:
        HuggingFaceModel(folder)
    message = str(refused.value)
    for part in (
        "2 missing: model.layers.2.mlp.up_proj.weight; model.norm.weight",
        "2 too many: model.layers.0.self_attn.q_norm.weight; model.layers.0.self_attn.q_proj.bias",
        "1 misshapen: model.layers.1.self_attn.o_proj.weight is [64, 24], config.json asks for [24, 64]",
        "2 of a dtype other than F32, BF16, F16: model.layers.0.mlp.gate_proj.weight is F8_E4M3",
        "model.layers.1.mlp.gate_proj.weight is F64",
    ):
        assert part in message


def test_a_config_of_more_layers_names_what_is_missing(small, checkpoint):
    folder = checkpoint(small)
    configure(folder, num_hidden_layers=9)
    with pytest.raises(ValueError, match=r"54 missing: model\.layers\.3\..*and 42 more"):
        HuggingFaceModel(folder)
    configure(folder, num_hidden_layers=2)
    with pytest.raises(ValueError, match=r"9 too many: model\.layers\.2\."):
        HuggingFaceModel(folder)
    configure(folder, num_hidden_layers=3, tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"1 missing: lm_head\.weight"):
        HuggingFaceModel(folder)
    configure(folder, tie_word_embeddings=True, model_type="hyperclovax", use_post_norm=True)
    with pytest.raises(ValueError, match=r"6 missing: model\.layers\.0\.post_norm1\.weight"):
        HuggingFaceModel(folder)
