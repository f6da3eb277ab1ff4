import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.models.decoder import Decoder
from hcxjax.models.likelihood import token_logprobs


def scores(config, x_BTD, targets_BT, params, chunk):
    """Under the logits of any hidden states."""

    def bound(decoder):
        return token_logprobs(decoder, x_BTD, targets_BT, chunk=chunk)

    return Decoder(config).apply({"params": params}, method=bound)


@functools.partial(jax.jit, static_argnums=(0, 4))
def scores_and_gradients(config, x_BTD, targets_BT, params, chunk):
    def summed(x_BTD, params):
        found = scores(config, x_BTD, targets_BT, params, chunk)
        return jnp.sum(found.logprob_BT + 0.1 * found.normaliser_BT**2), found

    return jax.value_and_grad(summed, argnums=(0, 1), has_aux=True)(x_BTD, params)


@pytest.fixture(scope="module")
def case(tiny, random_params):
    config = dataclasses.replace(tiny, logits_multiplier=0.7)
    rng = np.random.default_rng(0)
    x_BTD = rng.normal(size=(2, 12, config.embed_dim)).astype(np.float32)
    return config, x_BTD, rng.integers(0, config.vocab_size, (2, 12)), random_params(config)


def test_scores_equal_numpy(case):
    config, x_BTD, targets_BT, params = case
    (_, found), _ = scores_and_gradients(*case, None)
    logits_BTV = x_BTD.astype(np.float64) @ np.asarray(params["embed"], np.float64).T * 0.7
    normaliser_BT = np.log(np.exp(logits_BTV).sum(-1))
    target_BT = np.take_along_axis(logits_BTV, targets_BT[..., None], -1)[..., 0]
    np.testing.assert_allclose(found.normaliser_BT, normaliser_BT, atol=1e-5)
    np.testing.assert_allclose(found.logprob_BT, target_BT - normaliser_BT, atol=1e-5)
    np.testing.assert_array_equal(found.top_BT, logits_BTV.argmax(-1) == targets_BT)
    np.testing.assert_array_equal(found.likeliest_BT, logits_BTV.argmax(-1))
    best = scores(config, x_BTD, logits_BTV.argmax(-1), params, None)
    assert np.all(best.top_BT)
    assert not np.all(found.top_BT)


@pytest.mark.parametrize("chunk", [4, 1, 5])
def test_chunks_equal_the_whole(case, chunk):
    whole, parts = scores_and_gradients(*case, None), scores_and_gradients(*case, chunk)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)


def test_a_chunk_keeps_only_its_own_logits(case):
    """No array of the program, forward or backward, holds the scores of a whole row."""

    def program(chunk):
        return str(jax.make_jaxpr(functools.partial(scores_and_gradients, case[0], chunk=chunk))(*case[1:]))

    assert "f32[2,12,61]" in program(None)
    assert "f32[2,12,61]" not in program(4)


def test_chunk_beyond_the_row_is_the_whole(case):
    assert jax.eval_shape(functools.partial(scores, case[0], chunk=100), *case[1:]).logprob_BT.shape == (2, 12)
