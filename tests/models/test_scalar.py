"""The scalar head: its shapes and beginning, what a position's number depends on, and where a score is read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.mesh import Layout, unbox
from hcxjax.models.decoder import Decoder, apply
from hcxjax.models.scalar import init_scalar, scalars, score
from hcxjax.objectives.language_model import LanguageModel


@pytest.fixture(scope="module")
def params(tiny, random_params):
    rng = np.random.default_rng(5)
    head = {"weight": jnp.asarray(rng.normal(size=tiny.embed_dim), jnp.float32), "bias": jnp.float32(0.7)}
    return {"decoder": random_params(tiny), "head": head}


def rows(lengths, width, vocab, seed=0):
    """Rows of one text each, padded to `width` with whatever comes."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, vocab, size=(len(lengths), width)).astype(np.int32)
    here = np.arange(width) < np.array(lengths)[:, None]
    return {
        "tokens_BT": tokens,
        "segment_ids_BT": here.astype(np.int32),
        "positions_BT": (np.cumsum(here, 1) - here).astype(np.int32),
    }


def scored(model, params, batch, lengths):
    end_B = jnp.array(lengths, jnp.int32) - 1
    return np.asarray(jax.jit(score, static_argnums=0)(model, params, **batch, end_B=end_B))


def test_the_parameters_are_a_decoder_s_and_a_head_s(tiny):
    boxed = jax.eval_shape(lambda: init_scalar(tiny, jax.random.key(0)))
    assert boxed["head"]["weight"].names == ("embed",)
    decoder = jax.eval_shape(lambda: LanguageModel(tiny).init(jax.random.key(0)))
    assert jax.tree.map(lambda leaf: leaf.shape, unbox(boxed["decoder"])) == jax.tree.map(
        lambda leaf: leaf.shape, unbox(decoder)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(unbox(boxed))} == {jnp.dtype("float32")}


def test_the_head_begins_small_and_without_a_bias(tiny):
    keys = jax.random.split(jax.random.key(0), 100)
    heads = jax.jit(jax.vmap(lambda key: unbox(init_scalar(tiny, key)["head"])))(keys)
    assert not heads["bias"].any()
    assert heads["weight"].std() * np.sqrt(tiny.embed_dim + 1) == pytest.approx(1, abs=0.03)
    assert abs(heads["weight"].mean()) < 0.01


def test_each_number_is_the_head_on_the_hidden_state_that_has_read_the_token(tiny, params):
    batch = rows([7, 12], 12, tiny.vocab_size)
    x_BTD = apply(tiny, params["decoder"], Decoder.hidden, *batch.values())
    expected = np.asarray(x_BTD, np.float64) @ np.asarray(params["head"]["weight"], np.float64) + 0.7
    found = scalars(tiny, params, batch)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    later = batch | {"tokens_BT": batch["tokens_BT"] + (np.arange(12) > 4)}
    changed = np.asarray(scalars(tiny, params, later)) != np.asarray(found)
    assert not changed[:, :5].any()
    assert changed[:, 5].all()


def test_a_padded_row_has_the_score_of_the_row_alone(tiny, params):
    """Spec, item 7; the amount of padding and what stands in it change nothing."""
    lengths = [3, 12]
    wide = rows(lengths, 24, tiny.vocab_size, seed=1)
    found = scored(tiny, params, wide, lengths)
    assert abs(found[0] - found[1]) > 0.1
    for row, length in enumerate(lengths):
        alone = {name: value[row : row + 1, :length] for name, value in wide.items()}
        (expected,) = scored(tiny, params, alone, [length])
        assert found[row] == pytest.approx(expected, abs=1e-5)
        everywhere = jax.jit(scalars, static_argnums=0)(tiny, params, alone)
        assert expected == pytest.approx(float(everywhere[0, -1]), abs=1e-5)


def test_scores_of_a_mesh_are_those_of_one_device(tiny, params):
    lengths = [3, 9, 12, 1]
    batch = rows(lengths, 12, tiny.vocab_size, seed=1)
    alone = scored(tiny, params, batch, lengths)
    layout = Layout(data=2, fsdp=2, tensor=2)
    with layout.active():
        boxed = jax.eval_shape(lambda: init_scalar(tiny, jax.random.key(0)))
        spread = jax.device_put(params, layout.param_shardings(boxed))
        assert len(spread["head"]["weight"].sharding.device_set) == 8
        together = scored(tiny, spread, jax.device_put(batch, layout.sharding("batch")), lengths)
    np.testing.assert_allclose(together, alone, atol=1e-5)
