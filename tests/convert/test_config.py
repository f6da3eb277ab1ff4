"""config.json is read in every spelling, written back, and refused where it asks for other arithmetic."""

import dataclasses

import pytest

from hcxjax.convert.config import decoder_config, hugging_face_config, read_config, unknown_fields
from hcxjax.models.config import RopeScaling

LLAMA = {
    "model_type": "llama",
    "vocab_size": 110592,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000,
    "tie_word_embeddings": True,
}
THINK = LLAMA | {
    "model_type": "hyperclovax",
    "use_post_norm": True,
    "embedding_multiplier": 10,
    "residual_multiplier": 1.0,
    "attention_multiplier": 0.0078125,
    "logits_scaling": 0.125,
    "tie_word_embeddings": False,
}
SCALED = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_the_smallest_seed_model_has_its_parameters():
    config = decoder_config(LLAMA)
    assert config.parameters == 566_281_216
    assert (config.rope_theta, config.norm_epsilon, config.max_length) == (500_000.0, 1e-5, 8192)


def test_hyperclovax_has_post_norms_and_multipliers():
    config = decoder_config(THINK)
    assert (config.post_norms, config.embedding_multiplier, config.residual_multiplier) == (True, 10.0, 1.0)
    assert (config.attention_multiplier, config.logits_multiplier, config.tie_embeddings) == (1 / 128, 0.125, False)
    absent = {name: value for name, value in THINK.items() if "multiplier" not in name}
    assert decoder_config(absent).attention_scale == 128**-0.5


def test_a_text_model_inside_a_vision_model():
    wrapped = {"model_type": "vlm", "text_config": THINK, "vision_config": {"hidden_size": 7}, "vocab_size": 3}
    assert decoder_config(wrapped) == decoder_config(THINK)


def test_fields_left_out_mean_what_transformers_says():
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = decoder_config({"model_type": "llama", **{name: LLAMA[name] for name in sizes}})
    assert (config.num_kv_heads, config.head_dim, config.max_length) == (16, 64, 2048)
    assert (config.rope_theta, config.norm_epsilon, config.tie_embeddings) == (10_000.0, 1e-6, False)


@pytest.mark.parametrize(
    ("fields", "scaling"),
    [
        ({"rope_scaling": None}, None),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, RopeScaling("linear", 2.0)),
        ({"rope_scaling": SCALED}, RopeScaling("llama3", 8.0)),
        ({"rope_parameters": {"rope_theta": 500000, **SCALED}}, RopeScaling("llama3", 8.0)),
        ({"rope_parameters": {"rope_theta": 500000, "rope_type": "default"}}, None),
        ({"rope_parameters": SCALED, "rope_scaling": SCALED}, RopeScaling("llama3", 8.0)),
    ],
)
def test_rotary_settings_of_both_forms(fields, scaling):
    config = decoder_config(LLAMA | fields)
    assert (config.rope_scaling, config.rope_theta) == (scaling, 500_000.0)


@pytest.mark.parametrize("base", [LLAMA, THINK], ids=["llama", "hyperclovax"])
@pytest.mark.parametrize("rope", [{}, {"rope_scaling": SCALED}, {"rope_scaling": {"type": "linear", "factor": 4}}])
def test_a_config_comes_back(base, rope):
    config = decoder_config(base | rope)
    written = hugging_face_config(config, {"bos_token_id": 1}, "bfloat16")
    assert written["model_type"] == base["model_type"]
    assert (written["bos_token_id"], written["dtype"]) == (1, "bfloat16")
    assert decoder_config(written) == config
    assert unknown_fields(written) == []


@pytest.mark.parametrize(
    "change",
    [
        {"post_norms": True},
        {"embedding_multiplier": 2.0},
        {"residual_multiplier": 2.0},
        {"logits_multiplier": 2.0},
        {"attention_multiplier": 0.5},
    ],
)
def test_what_llama_cannot_say_is_written_as_hyperclovax(change):
    config = dataclasses.replace(decoder_config(LLAMA), **change)
    written = hugging_face_config(config, {}, "float32")
    assert written["model_type"] == "hyperclovax"
    assert isinstance(written["use_post_norm"], bool)
    again = decoder_config(written)
    assert dataclasses.replace(again, attention_multiplier=config.attention_multiplier) == config
    assert again.attention_scale == config.attention_scale


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; llama and hyperclovax"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"sliding_window": 4096}, "sliding_window is 4096"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types has sliding_attention"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type is 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "rope_type llama3 lacks high_freq_factor, low_fr"),
        ({"rope_parameters": SCALED, "rope_scaling": SCALED | {"factor": 2.0}}, "disagree"),
        ({"rope_parameters": {"rope_theta": 1.0}}, "rope_theta is 500000 and 1.0"),
        ({"rope_parameters": {"full_attention": SCALED}}, "rope settings have full_attention"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config is set"),
        ({"residual_multiplier": 0.5}, "residual_multiplier is 0.5, which model_type llama does not have"),
        ({"use_post_norm": True}, "use_post_norm is True, which model_type llama"),
        ({"model_type": "hyperclovax"}, "use_post_norm is missing: libraries disagree"),
    ],
)
def test_other_arithmetic_is_refused_by_name(fields, message):
    with pytest.raises(ValueError) as refused:
        decoder_config(LLAMA | fields)
    assert message in str(refused.value)
    if message.startswith("quantization_config is set"):
        with pytest.raises(ValueError, match="quantization_config is set"):
            decoder_config({"text_config": LLAMA, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads is 0; it must be a whole number of at least 1"),
        ({"hidden_size": "64"}, "hidden_size is '64'; it must be a whole number"),
        ({"vocab_size": True}, "config.json: vocab_size is True; it must be a whole number"),
        ({"head_dim": 64.0}, "config.json: head_dim is 64.0; it must be a whole number"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps is 'x'; it must be a number above 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan; it must be a number above 0"),
        ({"rope_theta": 10**400}, "it must be a number above 0"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'; it must be true or false"),
        ({"layer_types": 3}, "layer_types is 3; it must be a list"),
        ({"rope_parameters": [1]}, "rope_parameters is [1]; it must be an object"),
        ({"rope_scaling": {"type": "linear", "factor": "4"}}, "rope_scaling.factor is '4'; it must be a number above"),
        ({"rope_scaling": {"type": ["linear"]}}, "rope_scaling.type is ['linear']; it must be a string"),
        ({"rope_scaling": {"type": "linear", "factor": None}}, "rope_type linear lacks factor"),
        ({"rope_scaling": {"factor": 4.0}}, "have the factor 4.0, and no rope_type that would use it"),
        ({"rope_scaling": SCALED | {"low_freq_factor": 4.0}}, "low_freq_factor is not below high_freq_factor"),
        ({"model_type": "hyperclovax", "use_post_norm": True, "logits_scaling": [1]}, "logits_scaling is [1]; it must"),
        ({"text_config": []}, "text_config is []; it must be an object"),
    ],
)
def test_a_field_of_another_type_is_named(fields, message):
    with pytest.raises(ValueError) as refused:
        decoder_config(LLAMA | fields)
    assert message in str(refused.value)
    assert str(refused.value).count(next(iter(fields))) <= 2, "it is told once"


def test_all_is_refused_at_once():
    with pytest.raises(ValueError, match=r"hidden_size is '64'.*num_attention_heads is 0.*layer_types is 3.*mlp_bias"):
        decoder_config(LLAMA | {"hidden_size": "64", "num_attention_heads": 0, "layer_types": 3, "mlp_bias": True})
    with pytest.raises(ValueError, match=r"mlp_bias is True.*sliding_window is 3.*rope_type is 'yarn'"):
        decoder_config(LLAMA | {"mlp_bias": True, "sliding_window": 3, "rope_scaling": {"type": "yarn"}})


def test_what_changes_nothing_is_let_through():
    fields = {"use_sliding_window": False, "sliding_window": 4096, "pretraining_tp": 2, "auto_map": {"AutoModel": "x"}}
    fields |= {"use_post_norm": False, "logits_scaling": 1}
    assert decoder_config(LLAMA | fields) == decoder_config(LLAMA)
    assert unknown_fields(LLAMA | fields | {"flux": 1.21}) == ["flux"]


@pytest.mark.parametrize(
    ("content", "message"), [(None, "has no config.json"), ("{", "is no JSON"), ("[]", "no object")]
)
def test_files_that_are_none(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path)
