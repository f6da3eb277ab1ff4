"""The decoder once more, in float64 numpy, written from the papers and not from `hcxjax.models`: one document, one
token and one head at a time, without packing, masks, broadcasting tricks or jax."""

import math

import numpy as np


def logits(params, config, tokens, segments):
    """Logits [B, T, V] of packed rows; every document is computed as if it were alone, padding stays 0."""
    params = _float64(params)
    rows, length = tokens.shape
    result = np.zeros((rows, length, config.vocab_size))
    for row in range(rows):
        for document in sorted(set(segments[row]) - {0}):
            places = np.flatnonzero(segments[row] == document)
            result[row, places] = _document(params, config, tokens[row, places])
    return result


def frequencies(config):
    """Rotary frequencies; the scalings as in Hugging Face's and Llama 3's released code, by wavelength."""
    base = 1.0 / config.rope_theta ** (np.arange(0, config.head_dim, 2) / config.head_dim)
    scaling = config.rope_scaling
    if scaling is None:
        return base
    if scaling.kind == "linear":
        return base / scaling.factor
    result = []
    for frequency in base:
        wavelength = 2 * math.pi / frequency
        if wavelength < scaling.original_length / scaling.high_frequency:
            result.append(frequency)
        elif wavelength > scaling.original_length / scaling.low_frequency:
            result.append(frequency / scaling.factor)
        else:
            smooth = scaling.original_length / wavelength - scaling.low_frequency
            smooth /= scaling.high_frequency - scaling.low_frequency
            result.append((1 - smooth) * frequency / scaling.factor + smooth * frequency)
    return np.array(result)


def _document(params, config, tokens):
    x = params["embed"][tokens] * config.embedding_multiplier
    for number in range(config.num_layers):
        layer = _pick(params["layers"], number)
        added = _attention(layer["attention"], config, _norm(layer["input_norm"], config, x))
        if config.post_norms:
            added = _norm(layer["post_norm1"], config, added)
        x = x + added * config.residual_multiplier
        added = _mlp(layer["mlp"], _norm(layer["mlp_norm"], config, x))
        if config.post_norms:
            added = _norm(layer["post_norm2"], config, added)
        x = x + added * config.residual_multiplier
    table = params["embed"] if config.tie_embeddings else params["head"]
    return _norm(params["norm"], config, x) @ table.T * config.logits_multiplier


def _attention(weights, config, x):
    group = config.num_heads // config.num_kv_heads
    scale = 1 / math.sqrt(config.head_dim) if config.attention_multiplier is None else config.attention_multiplier
    angles = frequencies(config)
    total = np.zeros_like(x)
    for head in range(config.num_heads):
        shared = head // group
        q = _rotate(x @ weights["query"]["weight"][:, head], angles)
        k = _rotate(x @ weights["key"]["weight"][:, shared], angles)
        v = x @ weights["value"]["weight"][:, shared]
        for t in range(len(x)):
            scores = k[: t + 1] @ q[t] * scale
            chances = np.exp(scores - scores.max())
            total[t] += (chances / chances.sum()) @ v[: t + 1] @ weights["output"]["weight"][head]
    return total


def _rotate(vectors, angles):
    """Pair (x_i, x_{i + half}) of position t turns by t · angle_i, as a complex number does."""
    half = vectors.shape[1] // 2
    turned = (vectors[:, :half] + 1j * vectors[:, half:]) * np.exp(1j * np.arange(len(vectors))[:, None] * angles)
    return np.concatenate([turned.real, turned.imag], axis=1)


def _mlp(weights, x):
    gate, up = x @ weights["gate"]["weight"], x @ weights["up"]["weight"]
    return (gate / (1 + np.exp(-gate)) * up) @ weights["down"]["weight"]


def _norm(weights, config, x):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + config.norm_epsilon) * weights["weight"]


def _pick(tree, number):
    return {k: _pick(v, number) for k, v in tree.items()} if isinstance(tree, dict) else tree[number]


def _float64(tree):
    return {k: _float64(v) for k, v in tree.items()} if isinstance(tree, dict) else np.asarray(tree, np.float64)
