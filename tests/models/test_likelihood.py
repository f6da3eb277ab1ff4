import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.mesh import Layout
from hcxjax.models.decoder import Decoder
from hcxjax.models.likelihood import token_logprobs
from hcxjax.models.vocabulary_scores import target_scores


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


def test_gradients_are_those_of_the_formula(case):
    config, x_BTD, targets_BT, params = case

    def formula(x_BTD, table_VD):
        logits_BTV = x_BTD @ table_VD.T * config.logits_multiplier
        logprob_BT = jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), targets_BT[..., None], -1)
        return jnp.sum(logprob_BT) + 0.1 * jnp.sum(jax.nn.logsumexp(logits_BTV, axis=-1) ** 2)

    dx_BTD, dtable_VD = jax.grad(formula, (0, 1))(x_BTD, params["embed"])
    _, (found_BTD, found) = scores_and_gradients(*case, 5)
    np.testing.assert_allclose(found_BTD, dx_BTD, atol=1e-5)
    np.testing.assert_allclose(found["embed"], dtable_VD, atol=1e-4)


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


@pytest.mark.parametrize(
    "axes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"context": 4, "tensor": 2}, {"fsdp": 4, "context": 2}]
)
@pytest.mark.parametrize("vocab_size", [64, 61])
def test_scores_on_a_mesh_equal_those_on_one_device(case, axes, vocab_size):
    """Rows, places, vocabulary and width divided, and a vocabulary that cannot be; forward and gradient."""
    config, x_BTD, targets_BT, params = case
    config = dataclasses.replace(config, vocab_size=vocab_size)
    rng = np.random.default_rng(1)
    given = (
        np.concatenate([x_BTD, x_BTD[::-1]])[:, :8],
        np.concatenate([targets_BT, targets_BT])[:, :8],
        params | {"embed": rng.normal(size=(vocab_size, config.embed_dim)).astype(np.float32)},
    )
    alone = scores_and_gradients(config, *given, 2)
    with Layout(**{"data": 1, **axes}).active():
        together = jax.jit(scores_and_gradients.__wrapped__, static_argnums=(0, 4))(config, *given, 2)
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)


def test_gradient_of_the_head_crosses_the_mesh_once():
    """However many chunks there are: sums of chunks stay on their device."""
    layout = Layout(data=2, fsdp=2, tensor=2)
    arrays = [((64, 32), ("vocab", "embed")), ((8, 64, 32), ("batch", "length", None)), ((8, 64), ("batch", "length"))]

    def loss(table_VD, x_BTD, targets_BT):
        return jnp.sum(target_scores(table_VD, x_BTD, targets_BT, dtype="bfloat16", multiplier=1.0, chunk=8)[0])

    with layout.active():
        types = ("float32", "float32", "int32")
        given = [
            jax.ShapeDtypeStruct(shape, dtype, sharding=layout.sharding(*axes))
            for (shape, axes), dtype in zip(arrays, types, strict=True)
        ]
        text = jax.jit(jax.grad(loss)).lower(*given).as_text()
    assert text.count("stablehlo.reduce_scatter") == 1
    (scattered,) = re.findall(r"stablehlo\.reduce_scatter.*?\(tensor<([\dx]+\w+)>\)", text, re.DOTALL)
    assert scattered == "32x32xf32"
    (gathered,) = re.findall(r"stablehlo\.all_gather.*-> tensor<([\dx]+\w+)>", text)[:1]
    assert gathered == "32x32xbf16"
