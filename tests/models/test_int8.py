import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.mesh import Layout
from hcxjax.models.decoder import Decoder
from hcxjax.models.int8 import Int8Weight, in_dtype, quantized
from hcxjax.objectives.language_model import LanguageModel


def restored(params):
    """The float32 weights that int8 ones stand for."""

    def leaf(weight):
        return weight.values.astype(jnp.float32) * weight.scale if isinstance(weight, Int8Weight) else weight

    return jax.tree.map(leaf, params, is_leaf=lambda weight: isinstance(weight, Int8Weight))


def forward(config, params, batch):
    decoder = Decoder(config)
    names = ("tokens_BT", "segment_ids_BT", "positions_BT")
    return jax.jit(lambda params, *rows: decoder.apply({"params": params}, *rows))(params, *(batch[n] for n in names))


@pytest.mark.parametrize("tied", [True, False])
def test_int8_weights_compute_what_their_float32_values_do(tiny, random_params, packed, tied):
    config = dataclasses.replace(tiny, tie_embeddings=tied, post_norms=True, embedding_multiplier=3.0)
    params, batch = quantized(random_params(config, 1)), packed(2, 12, tiny.vocab_size)
    exact = forward(config, restored(params), batch)
    np.testing.assert_allclose(forward(config, params, batch), exact, atol=1e-5 * np.abs(exact).max())


def test_every_matrix_is_rounded_to_half_a_step_of_its_output(tiny, random_params):
    config = dataclasses.replace(tiny, tie_embeddings=False)
    params = random_params(config, 1)
    small = quantized(params)
    layers = small["layers"]
    scales = {
        "query": (2, 1, 4, 16),
        "key": (2, 1, 2, 16),
        "value": (2, 1, 2, 16),
        "output": (2, 1, 1, 32),
    }
    assert {name: layers["attention"][name]["weight"].scale.shape for name in scales} == scales
    assert layers["mlp"]["down"]["weight"].scale.shape == (2, 1, 32)
    assert small["embed"].scale.shape == small["head"].scale.shape == (61, 1)
    norms = 0
    for path, weight in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path)
        found = small
        for key in path:
            found = found[key.key]
        if "norm" in name:
            norms += 1
            np.testing.assert_array_equal(found, weight)
        else:
            assert found.values.dtype == jnp.int8
            assert np.all(np.abs(restored(found) - weight) <= found.scale * 0.5001)
    assert norms == 3
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (small, params)]
    assert sizes[0] < sizes[1] * 0.32


def test_int8_weights_lie_on_the_mesh_as_the_weights_did(tiny, random_params):
    layout = Layout(fsdp=4, tensor=2)
    with layout.active():
        boxed = jax.eval_shape(LanguageModel(tiny).init, jax.random.key(0))
        params = jax.device_put(random_params(tiny), layout.param_shardings(boxed))
        small = quantized(params)
    gate = small["layers"]["mlp"]["gate"]["weight"].values
    assert gate.sharding.is_equivalent_to(params["layers"]["mlp"]["gate"]["weight"].sharding, 3)


def test_weights_in_the_compute_dtype_compute_the_same(tiny, random_params, packed):
    config = dataclasses.replace(tiny, dtype="bfloat16", tie_embeddings=False)
    params, batch = random_params(config, 1), packed(2, 12, tiny.vocab_size)
    small = in_dtype(params, "bfloat16")
    np.testing.assert_array_equal(forward(config, small, batch), forward(config, params, batch))
    assert small["embed"].dtype == small["layers"]["mlp"]["up"]["weight"].dtype == jnp.bfloat16
    assert small["norm"]["weight"].dtype == small["layers"]["input_norm"]["weight"].dtype == jnp.float32
