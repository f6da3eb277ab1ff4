"""Tensors and parameters are the same numbers, axis by axis."""

import jax
import numpy as np
import pytest

from hcxjax.convert.model import abstract_params
from hcxjax.convert.names import nested, weights
from hcxjax.mesh import unbox


@pytest.fixture(params=["small", "seed_like"])
def config(request):
    return request.getfixturevalue(request.param)


def test_the_table_has_every_parameter_of_the_decoder(config):
    shapes = jax.tree.map(lambda leaf: leaf.shape, unbox(abstract_params(config)))
    table = nested({weight.path: weight.shape(config) for weight in weights(config)})
    assert jax.tree.structure(shapes) == jax.tree.structure(table)
    assert shapes == table


def test_query_heads_lie_one_after_the_other(small):
    """Row n*H + h of q_proj makes element h of head n; column n*H + h of o_proj reads it."""
    table = {weight.path: weight for weight in weights(small)}
    query, output = table["layers/attention/query/weight"], table["layers/attention/output/weight"]
    tensor = np.arange(np.prod(query.their_shape(small))).reshape(query.their_shape(small))
    assert query.to_ours(tensor, small)[5, 2, 3] == tensor[2 * 16 + 3, 5]
    tensor = np.arange(np.prod(output.their_shape(small))).reshape(output.their_shape(small))
    assert output.to_ours(tensor, small)[2, 3, 5] == tensor[5, 2 * 16 + 3]
    down = table["layers/mlp/down/weight"]
    tensor = np.arange(np.prod(down.their_shape(small))).reshape(down.their_shape(small))
    assert down.to_ours(tensor, small)[7, 5] == tensor[5, 7]


def test_there_and_back(config):
    for weight in weights(config):
        shape = weight.their_shape(config)
        tensor = np.random.default_rng(0).normal(size=shape)
        ours = weight.to_ours(tensor, config)
        assert ours.shape == weight.shape(config)[weight.stacked :]
        np.testing.assert_array_equal(weight.to_theirs(ours, config), tensor)


def test_slices_hold_what_they_should(config):
    rng = np.random.default_rng(0)
    for weight in weights(config):
        tensor = rng.normal(size=weight.their_shape(config))
        ours = weight.to_ours(tensor, config)
        index = []
        for axis, size in zip(weight.ours, ours.shape, strict=True):
            start = 0 if axis == "H" else int(rng.integers(0, size))
            index.append(slice(start, size if axis == "H" else int(rng.integers(start + 1, size + 1))))
        part = weight.to_ours(tensor[weight.their_index(index, config)], config)
        np.testing.assert_array_equal(part, ours[tuple(index)])
