"""The same weights give the same numbers in transformers and here."""

import dataclasses

import numpy as np
import pytest

from hcxjax.convert.config import decoder_config, read_config
from hcxjax.convert.model import load
from hcxjax.inference.engine import Engine, EngineSettings
from hcxjax.inference.requests import Request
from hcxjax.inference.sampling import Sampling
from hcxjax.mesh import Layout

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.0")
torch.set_num_threads(1)  # of models this small, threads take longer to wake than to work

SHAPE = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    "bos_token_id": 1,
    "eos_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.7,
    "attention_multiplier": 0.11,
    "logits_scaling": 0.5,
}
MODELS = {
    "tied": ("Llama", {"tie_word_embeddings": True}),
    "untied, wide heads": ("Llama", {"tie_word_embeddings": False, "head_dim": 24}),
    "rope llama3": ("Llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3}),
    "rope linear": (
        "Llama",
        {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 3.0}},
    ),
    "hyperclovax": ("HyperCLOVAX", {**MULTIPLIERS, "use_post_norm": True, "tie_word_embeddings": False}),
    "hyperclovax without post norms": (
        "HyperCLOVAX",
        {**MULTIPLIERS, "use_post_norm": False, "tie_word_embeddings": True, "head_dim": 24},
    ),
}


def random_model(kind: str, fields: dict):
    """A model whose every weight matters: norms are not all 1, and logits are far apart."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SHAPE | fields)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.3 if "norm" in name else 0.25)
    return model


def written(model, prompt, new=200):
    ids = torch.tensor([prompt])
    with torch.no_grad():
        return model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new)[0].tolist()


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_greedy_tokens(name, tmp_path, logits):
    model = random_model(*MODELS[name])
    model.save_pretrained(tmp_path, max_shard_size="20KB" if "wide" in name else "1GB")
    config, params = load(tmp_path, Layout())
    config = dataclasses.replace(config, dtype="float32")
    drawn = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], 220)
    tokens_BT = np.stack([drawn, written(model, drawn[:20].tolist())])
    with torch.no_grad():
        expected_BTV = model(torch.tensor(tokens_BT, dtype=torch.long)).logits.numpy()
    logits_BTV = logits(config, params, tokens_BT)
    assert np.std(expected_BTV) > 0.3
    np.testing.assert_allclose(logits_BTV, expected_BTV, atol=1e-4, rtol=0)
    # Given what transformers wrote so far, ours writes the same next token, and so, token by token, the same text.
    assert logits_BTV[1, 19:-1].argmax(-1).tolist() == tokens_BT[1, 20:].tolist()
    engine = Engine(config, params, settings=EngineSettings(slots=1, context=256, chunk=16))
    (sample,) = engine.complete([Request(drawn[:20].tolist(), 200, Sampling(temperature=0))])[0]
    assert sample.tokens == tokens_BT[1, 20:].tolist()


def test_older_spelling_of_rotary_settings():
    """What transformers 4 wrote, as transformers 5 understands it."""
    old = {key: value for key, value in SHAPE.items() if key != "rope_parameters"}
    scaling = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    for fields in ({"rope_theta": 777.0}, {"rope_theta": 10_000.0, "rope_scaling": scaling}):
        read = transformers.LlamaConfig(**old, **fields)
        ours = decoder_config({"model_type": "llama", **old, **fields})
        assert ours == decoder_config(read.to_dict())
        inverse = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(read).inv_freq
        np.testing.assert_allclose(ours.rotary_frequencies(), inverse.numpy(), rtol=1e-5)


@pytest.mark.parametrize("kind", ["small", "seed_like"])
def test_an_export_loads_in_transformers(kind, request, checkpoint, logits):
    """A checkpoint of our own writing, through AutoModel and AutoTokenizer, without remote code."""
    source = checkpoint(request.getfixturevalue(kind))
    config, params = load(source, Layout())
    assert config == dataclasses.replace(request.getfixturevalue(kind), dtype="bfloat16", init_std=config.init_std)
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    assert model.config.model_type == read_config(source)["model_type"]
    assert model.config.model_type == ("llama" if kind == "small" else "hyperclovax")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    prompt = tokenizer("한국어 text")["input_ids"]
    assert tokenizer.decode(prompt) == "한국어 text"
    model.generation_config.eos_token_id = None
    tokens = written(model, prompt, 60)
    logits_BTV = logits(dataclasses.replace(config, dtype="float32"), params, np.asarray([tokens]))
    assert logits_BTV[0, len(prompt) - 1 : -1].argmax(-1).tolist() == tokens[len(prompt) :]
