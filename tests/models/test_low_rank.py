"""Low-rank changes of weights: what they compute, their gradients, how they begin and how they are merged."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.convert.names import TABLE
from hcxjax.models.config import MATRICES
from hcxjax.models.decoder import Decoder
from hcxjax.models.low_rank import LowRankWeight, merged, thin_pair
from tests.models import numpy_decoder

RANK, SCALE = 3, 0.7


@pytest.fixture(scope="module")
def config(tiny):
    return dataclasses.replace(tiny, tie_embeddings=False, post_norms=True)


@pytest.fixture(scope="module")
def params(config, random_params):
    return random_params(config, 1)


@pytest.fixture(scope="module")
def batch(config, packed):
    return packed(2, 12, config.vocab_size, 2)


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, params, *rows):
    return Decoder(config).apply({"params": params}, *rows)


def logits(config, params, batch):
    return _logits(config, params, *(batch[name] for name in ("tokens_BT", "segment_ids_BT", "positions_BT")))


def layer_of(path):
    """'query' for layers/attention/query/weight."""
    return path[-2].key if len(path) > 1 else None


def adapted(params, layers=tuple(MATRICES)):
    """A low-rank change of every matrix, of size 0 but in the layers that are named."""
    rng = np.random.default_rng(0)

    def leaf(path, weight):
        if layer_of(path) not in MATRICES:
            return weight
        ends = 1 + MATRICES[layer_of(path)]
        a = rng.normal(size=(*weight.shape[:ends], RANK))
        b = 0.3 * rng.normal(size=(weight.shape[0], RANK, *weight.shape[ends:])) * (layer_of(path) in layers)
        return LowRankWeight(weight, jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32), SCALE)

    return jax.tree_util.tree_map_with_path(leaf, params)


def is_low_rank(leaf):
    return isinstance(leaf, LowRankWeight)


def test_no_change_is_the_base_bit_for_bit(config, params, batch):
    begun = adapted(params, layers=())
    np.testing.assert_array_equal(logits(config, begun, batch), logits(config, params, batch))
    jax.tree.map(np.testing.assert_array_equal, merged(begun), params)


@pytest.mark.parametrize("layers", [tuple(MATRICES), *((name,) for name in MATRICES)], ids="-".join)
def test_merged_weights_say_the_same(config, params, batch, layers):
    changed = adapted(params, layers)
    apart, whole = logits(config, changed, batch), logits(config, merged(changed), batch)
    assert np.abs(apart - logits(config, params, batch)).max() > 0.01 * np.abs(apart).max()
    np.testing.assert_allclose(apart, whole, atol=1e-5 * np.abs(whole).max())


def test_the_change_is_peft_s(config, params, batch):
    """W + (alpha / r) B A of (out, in), (r, in) and (out, r), as Hugging Face and PEFT have them, in float64."""
    theirs = {weight.path: weight for weight in TABLE}

    def leaf(path, weight):
        if not is_low_rank(weight):
            return np.asarray(weight, np.float64)
        row = theirs["/".join(key.key for key in path)]
        layers = []
        for number in range(config.num_layers):
            w, a, b = (np.asarray(part[number], np.float64) for part in (weight.weight, weight.a, weight.b))
            lora_a, lora_b = a.reshape(-1, RANK).T, b.reshape(RANK, -1).T
            layers.append(row.to_ours(row.to_theirs(w, config) + SCALE * (lora_b @ lora_a), config))
        return np.stack(layers)

    changed = adapted(params)
    peft = jax.tree_util.tree_map_with_path(leaf, changed, is_leaf=is_low_rank)
    exact = numpy_decoder.logits(peft, config, batch["tokens_BT"], batch["segment_ids_BT"])
    ours, there = np.asarray(logits(config, changed, batch)), batch["segment_ids_BT"] > 0
    assert np.abs(ours - exact)[there].max() <= 1e-5 * np.abs(exact).max()


def test_gradients_follow_from_those_of_the_merged_weight(config, params, batch):
    """W' = W + s a b: dL/da = s dL/dW' bᵀ and dL/db = s aᵀ dL/dW', in float64."""
    changed = adapted(params)

    @jax.jit
    def gradient(params):
        return jax.grad(lambda params: jnp.sum(jnp.sin(logits(config, params, batch))))(params)

    thin, whole = gradient(changed), gradient(merged(changed))
    pairs = jax.tree_util.tree_leaves_with_path(
        jax.tree.map(lambda weight, found, dense: (weight, found, dense), changed, thin, whole, is_leaf=is_low_rank),
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )
    compared = 0
    for path, (weight, found, dense) in pairs:
        if not is_low_rank(weight):
            continue
        layers = weight.a.shape[0]
        dense = np.asarray(dense, np.float64).reshape(layers, np.prod(weight.a.shape[1:-1]), -1)
        a = np.asarray(weight.a, np.float64).reshape(layers, -1, RANK)
        b = np.asarray(weight.b, np.float64).reshape(layers, RANK, -1)
        for exact, ours in ((SCALE * dense @ b.swapaxes(1, 2), found.a), (SCALE * a.swapaxes(1, 2) @ dense, found.b)):
            exact = exact.reshape(ours.shape)
            np.testing.assert_allclose(ours, exact, atol=1e-5 * np.abs(exact).max(), err_msg=str(path))
            compared += 1
    assert compared == 2 * len(MATRICES)


def test_the_thin_pair_begins_with_a_gaussian_and_nothing():
    weight = nn.LogicallyPartitioned(jnp.zeros((2, 6, 50, 9)), ("layers", "heads", "head_dim", "embed"))
    pair = thin_pair(jax.random.key(1), weight, inputs=2, rank=40)
    a, b = pair["a"], pair["b"]
    assert (a.value.shape, b.value.shape) == ((2, 6, 50, 40), (2, 40, 9))
    assert (a.names, b.names) == (("layers", "heads", "head_dim", "rank"), ("layers", "rank", "embed"))
    assert a.value.dtype == b.value.dtype == jnp.float32
    assert not np.any(b.value)
    values = np.asarray(a.value) * 300**0.5
    assert abs(values.mean()) < 0.02
    assert values.std() == pytest.approx(1, abs=0.02)
    # A Gaussian has a fourth moment of 3; a uniform of the same variance has 1.8.
    assert (values**4).mean() == pytest.approx(3, abs=0.15)


def test_thin_matrices_are_computed_in_the_compute_dtype(config, params, batch):
    """float32 in memory, and rounded with the rest of the layer."""
    small = dataclasses.replace(config, dtype="bfloat16")
    assert logits(small, adapted(params), batch).dtype == jnp.float32
    text = _logits.lower(small, adapted(params), *(batch[n] for n in ("tokens_BT", "segment_ids_BT", "positions_BT")))
    assert f"tensor<2x12x{RANK}xbf16>" in text.as_text()
    assert f"tensor<2x12x{RANK}xf32>" not in text.as_text()
