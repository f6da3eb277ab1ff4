"""config.json of `llama` and `hyperclovax` models as a `DecoderConfig`, and back."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hcxjax.models.config import DecoderConfig, RopeScaling

MODEL_TYPES = ("llama", "hyperclovax")
SIZES = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "embed_dim": "hidden_size",
    "mlp_dim": "intermediate_size",
    "num_heads": "num_attention_heads",
}
"""Field of `DecoderConfig` → field of config.json that has to be there."""
ABSENT = {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "rope_theta": 10_000.0, "tie_word_embeddings": False}
"""What transformers takes for a field that config.json leaves out, for both model types."""
MULTIPLIERS = {
    "embedding_multiplier": "embedding_multiplier",
    "residual_multiplier": "residual_multiplier",
    "logits_multiplier": "logits_scaling",
}
"""Field of `DecoderConfig` → hyperclovax's; absent is 1. `logits_scaling` multiplies (Granite's divides)."""
SWITCHES: dict[str, tuple[object, ...]] = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "qkv_bias": (False, None),
    "hidden_act": ("silu", "swish", None),
    "hidden_activation": ("silu", "swish", None),
    "partial_rotary_factor": (1, None),
    "rope_interleaved": (False, None),
    "position_embedding_type": ("rope", None),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "qk_norm": (False, None),
    "use_qk_norm": (False, None),
    "num_experts": (0, 1, None),
    "num_local_experts": (0, 1, None),
    "attention_chunk_size": (None,),
    "is_encoder_decoder": (False, None),
}
"""Switches of models of this family that change what is computed → the values that this decoder computes."""
LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low_frequency",
    "high_freq_factor": "high_frequency",
    "original_max_position_embeddings": "original_length",
}
"""Field of llama3's rotary settings → field of `RopeScaling`."""
_FORMS: dict[str, tuple[Callable[[Any], bool], tuple[str, ...]]] = {
    "a whole number of at least 1": (
        lambda value: type(value) is int and value >= 1,
        (*SIZES.values(), "num_key_value_heads", "head_dim", "max_position_embeddings"),
    ),
    "a number above 0": (lambda value: _is_number(value) and value > 0, ("rms_norm_eps", "rope_theta", *LLAMA3)),
    "a number": (lambda value: _is_number(value), (*MULTIPLIERS.values(), "attention_multiplier")),
    "true or false": (lambda value: isinstance(value, bool), ("tie_word_embeddings",)),
    "a string": (lambda value: isinstance(value, str), ("rope_type", "type")),
    "a list": (lambda value: isinstance(value, list), ("layer_types",)),
    "an object": (lambda value: isinstance(value, dict), ("rope_parameters", "rope_scaling")),
}
"""What a field must be → whether it is, and the fields, also those of the rotary settings."""
HARMLESS = {
    *("architectures", "auto_map", "model_type", "torch_dtype", "dtype", "transformers_version", "_name_or_path"),
    *("initializer_range", "use_cache", "pretraining_tp", "attention_dropout", "resid_pdrop", "embd_pdrop"),
    *("hidden_dropout", "bos_token_id", "eos_token_id", "pad_token_id", "end_token_id", "unk_token_id"),
    *("output_attentions", "output_hidden_states", "return_dict", "chunk_size_feed_forward", "problem_type"),
    *("id2label", "label2id", "name_or_path", "is_decoder", "add_cross_attention", "cross_attention_hidden_size"),
    *("num_key_value_heads", "head_dim", "rope_parameters", "rope_scaling", "attention_multiplier", "use_post_norm"),
    *(
        "quantization_config",
        "sliding_window",
        "use_sliding_window",
        "max_window_layers",
        "layer_types",
        "_attn_implementation",
        "text_config",
    ),
}
"""Other fields that are read here, or that change nothing of what the model computes."""


def read_config(folder: str | Path) -> dict[str, Any]:
    """config.json of `folder`; ValueError where there is none, or no object in it."""
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} has no config.json: name the folder of a Hugging Face checkpoint")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no object")
    return content


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a configuration: `text_config` of a model that also sees, else the whole.

    The weights of such a model are tied as its own text model says; the wrapper's word counts where that says nothing.
    """
    inner = config.get("text_config")
    if inner is None:
        return config
    if not isinstance(inner, dict):
        raise ValueError(f"config.json: text_config is {inner!r:.60}; it must be an object")
    shared = {name: config[name] for name in ("tie_word_embeddings", "quantization_config") if name in config}
    return {**shared, **inner}


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """The decoder that a config.json describes, in the default compute dtype.

    Args:
      config: the file's content; of a model that also sees, its `text_config` is read. `auto_map` is ignored.
    Raises:
      ValueError: another model type, a field that is missing, or one that asks for other arithmetic; names them all.
    """
    config = text_config(config)
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise ValueError(f"config.json: model_type is {kind!r}; {' and '.join(MODEL_TYPES)} can be read")
    problems = [f"{name} is missing" for name in SIZES.values() if config.get(name) is None]
    config, malformed = _well_formed(config)
    problems += [*malformed, *_other_arithmetic(config)]
    if kind == "hyperclovax" and not isinstance(config.get("use_post_norm"), bool):
        problems.append(
            "use_post_norm is missing: libraries disagree on what that means, so write true or false into the file"
        )
    scaling, theta = None, ABSENT["rope_theta"]
    try:
        scaling, theta = _rope(config)
    except ValueError as error:
        problems.append(str(error))
    if problems:
        raise ValueError(f"config.json: {'; '.join(problems)}")
    heads = config["num_attention_heads"]
    fields = {ours: config[theirs] for ours, theirs in SIZES.items()}
    if kind == "hyperclovax":
        fields |= {ours: float(_value(config, theirs, 1.0)) for ours, theirs in MULTIPLIERS.items()}
        fields |= {"post_norms": config["use_post_norm"], "attention_multiplier": config.get("attention_multiplier")}
    return DecoderConfig(
        **fields,
        num_kv_heads=_value(config, "num_key_value_heads", heads),
        head_dim=_value(config, "head_dim", config["hidden_size"] // heads),
        max_length=_value(config, "max_position_embeddings", ABSENT["max_position_embeddings"]),
        rope_theta=float(theta),
        rope_scaling=scaling,
        norm_epsilon=float(_value(config, "rms_norm_eps", ABSENT["rms_norm_eps"])),
        tie_embeddings=bool(_value(config, "tie_word_embeddings", ABSENT["tie_word_embeddings"])),
    )


def unknown_fields(config: Mapping[str, Any]) -> list[str]:
    """Fields of a (text) configuration that are not known here; they were left alone."""
    config = text_config(config)
    known = HARMLESS | SWITCHES.keys() | ABSENT.keys() | set(SIZES.values()) | set(MULTIPLIERS.values())
    return sorted(config.keys() - known)


def hugging_face_config(
    config: DecoderConfig, tokens: Mapping[str, int | list[int] | None], dtype: str
) -> dict[str, Any]:
    """config.json of a decoder: `llama` where that computes the same, else `hyperclovax`.

    Rotary settings are written in the form of transformers 5 (`rope_parameters`) and in the older one.

    Args:
      tokens: `bos_token_id` and so on.
      dtype: of most tensors, as 'float32'.
    """
    plain = not config.post_norms and all(getattr(config, ours) == 1 for ours in MULTIPLIERS)
    plain = plain and config.attention_scale == config.head_dim**-0.5
    scaling = _rope_scaling(config.rope_scaling)
    written = {
        "architectures": ["LlamaForCausalLM" if plain else "HyperCLOVAXForCausalLM"],
        "model_type": "llama" if plain else "hyperclovax",
        **{theirs: getattr(config, ours) for ours, theirs in SIZES.items()},
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": config.init_std,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_theta": config.rope_theta, **(scaling or {"rope_type": "default"})},
        "dtype": dtype,
        "torch_dtype": dtype,
        **tokens,
    }
    if not plain:
        written |= {theirs: getattr(config, ours) for ours, theirs in MULTIPLIERS.items()}
        written |= {"attention_multiplier": config.attention_scale, "use_post_norm": config.post_norms}
    return written


def _value(config: Mapping[str, Any], name: str, absent: Any) -> Any:
    """A field that may be left out or null, with what either means."""
    value = config.get(name)
    return absent if value is None else value


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300  # neither infinite nor no number


def _well_formed(config: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Any], list[str]]:
    """(The fields without those of another type than they must have, what is wrong with these)."""
    problems, kept = [], dict(config)
    for form, (fits, names) in _FORMS.items():
        for name in names:
            if kept.get(name) is not None and not fits(kept[name]):
                problems.append(f"{prefix}{name} is {kept.pop(name)!r:.60}; it must be {form}")
    for name in () if prefix else ("rope_parameters", "rope_scaling"):
        inner, malformed = _well_formed(kept.get(name) or {}, f"{name}.")
        problems += malformed
        # Settings of which one is wrong are not looked at further.
        kept[name] = None if malformed else {key: value for key, value in inner.items() if value is not None}
    return kept, problems


def _other_arithmetic(config: Mapping[str, Any]) -> list[str]:
    problems = [
        f"{name} is {config[name]!r}, which this decoder does not compute"
        for name, allowed in SWITCHES.items()
        if name in config and config[name] not in allowed
    ]
    if config.get("quantization_config") is not None:
        problems.append("quantization_config is set: quantised weights cannot be read; take the float checkpoint")
    if config.get("sliding_window") is not None and config.get("use_sliding_window") is not False:
        problems.append(f"sliding_window is {config['sliding_window']!r}; every layer here sees the whole row")
    odd = {str(kind) for kind in config.get("layer_types") or ()} - {"full_attention"}
    if odd:
        problems.append(f"layer_types has {', '.join(sorted(odd))}; every layer here sees the whole row")
    if config["model_type"] == "llama":
        without = dict.fromkeys(MULTIPLIERS.values(), 1.0) | {"use_post_norm": False}
        others = sorted(name for name, value in without.items() if config.get(name) not in (None, value))
        others += ["attention_multiplier"] if config.get("attention_multiplier") is not None else []
        problems += [f"{name} is {config[name]!r}, which model_type llama does not have" for name in others]
    return problems


def _rope(config: Mapping[str, Any]) -> tuple[RopeScaling | None, float]:
    """(scaling, base) of `rope_parameters` (transformers 5), or of `rope_scaling` and `rope_theta` (before it)."""
    new, old = config.get("rope_parameters"), config.get("rope_scaling")
    base = _value(config, "rope_theta", (new or {}).get("rope_theta", ABSENT["rope_theta"]))
    rope = {"rope_theta": base, **(new or {})}
    if old:
        older = {"rope_theta": base, **old}
        older["rope_type"] = older.pop("type", None) or older.get("rope_type")
        if new and older != rope:
            raise ValueError(f"rope_parameters {new} and rope_scaling {old} disagree")
        rope = older
    kind = _value(rope, "rope_type", rope.get("type") or "default")
    if rope["rope_theta"] != base:
        raise ValueError(f"rope_theta is {base} and {rope['rope_theta']} in rope_parameters")
    known = {"rope_theta", "rope_type", "type", "partial_rotary_factor"}
    if rope.get("partial_rotary_factor") not in (None, 1):
        raise ValueError(f"partial_rotary_factor is {rope['partial_rotary_factor']}; here whole heads are rotated")
    fields = {"linear": {"factor": "factor"}, "llama3": LLAMA3, "default": {}}.get(kind)
    if fields is None:
        raise ValueError(f"rope_type is {kind!r}; default, linear and llama3 are known")
    if missing := sorted(fields.keys() - rope.keys()):
        raise ValueError(f"rope_type {kind} lacks {', '.join(missing)}")
    strange = sorted(rope.keys() - known - fields.keys() - {"original_max_position_embeddings", "factor"})
    if strange:
        raise ValueError(f"rope settings have {', '.join(strange)}, which rope_type {kind} does not know")
    if kind == "default":
        if rope.get("factor", 1) != 1:
            raise ValueError(f"rope settings have the factor {rope['factor']}, and no rope_type that would use it")
        return None, base
    if kind == "llama3" and rope["low_freq_factor"] >= rope["high_freq_factor"]:
        raise ValueError("low_freq_factor is not below high_freq_factor")
    return RopeScaling(kind, **{ours: rope[theirs] for theirs, ours in fields.items()}), base


def _rope_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    fields = LLAMA3 if scaling.kind == "llama3" else {"factor": "factor"}
    values = dataclasses.asdict(scaling)
    return {"rope_type": scaling.kind, **{theirs: values[ours] for theirs, ours in fields.items()}}
