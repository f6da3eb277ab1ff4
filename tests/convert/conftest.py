"""Hugging Face checkpoints of tiny random models, made without transformers; and what our decoder says."""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that asks for the network is wrong


@pytest.fixture(scope="session")
def small():
    """Sizes that all differ, so that a mixed-up axis is an error; heads are wider together than the model."""
    from hcxjax.models.config import DecoderConfig

    return DecoderConfig(
        vocab_size=280,
        num_layers=3,
        embed_dim=24,
        mlp_dim=40,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        max_length=320,
        rope_theta=1000.0,
        dtype="float32",
        init_std=0.3,
    )


@pytest.fixture(scope="session")
def seed_like(small):
    """All that a hyperclovax model may have beyond a llama, every factor away from 1."""
    return dataclasses.replace(
        small,
        post_norms=True,
        embedding_multiplier=3.0,
        residual_multiplier=0.7,
        logits_multiplier=0.5,
        attention_multiplier=0.11,
        tie_embeddings=False,
    )


@pytest.fixture
def checkpoint(tmp_path):
    """(config, dtype, shard size) → a folder with a checkpoint of it."""
    from tools.random_checkpoint import write_checkpoint

    def make(config, dtype="float32", max_shard_mb=1000, seed=0):
        folder = tmp_path / f"source-{seed}-{dtype}"
        write_checkpoint(folder, config, dtype=dtype, max_shard_mb=max_shard_mb, seed=seed)
        return folder

    return make


@pytest.fixture(scope="session")
def logits():
    """(config, params, tokens_BT) → logits_BTV of rows of one document each."""

    @functools.partial(jax.jit, static_argnames="config")
    def run(config, params, tokens_BT):
        from hcxjax.models.decoder import Decoder, apply

        positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        return apply(config, params, Decoder.__call__, tokens_BT, jnp.ones_like(tokens_BT), positions_BT)

    return lambda config, params, tokens_BT: np.asarray(run(config, params, jnp.asarray(tokens_BT, jnp.int32)))
