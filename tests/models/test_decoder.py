import contextlib
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.mesh import Layout, unbox
from hcxjax.models.attention import KVCache
from hcxjax.models.config import DecoderConfig, RopeScaling
from hcxjax.models.decoder import Decoder
from hcxjax.objectives.language_model import LanguageModel
from tests.models import numpy_decoder


@functools.partial(jax.jit, static_argnums=0)
def forward(config, params, tokens_BT, segment_ids_BT, positions_BT):
    return Decoder(config).apply({"params": params}, tokens_BT, segment_ids_BT, positions_BT)


def rows_of(batch):
    return batch["tokens_BT"], batch["segment_ids_BT"], batch["positions_BT"]


SEED = {
    "post_norms": True,
    "embedding_multiplier": 1.7,
    "residual_multiplier": 0.6,
    "logits_multiplier": 0.3,
    "attention_multiplier": 0.11,
}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="llama-tied"),
        pytest.param(SEED | {"tie_embeddings": False}, id="seed-untied"),
        pytest.param({"rope_scaling": RopeScaling("linear", 4.0)}, id="linear"),
        # Wavelengths of these frequencies lie on both sides of the band that is blended, and inside it.
        pytest.param(
            {"num_kv_heads": 1, "rope_scaling": RopeScaling("llama3", 8.0, original_length=128)},
            id="llama3-one-kv-head",
        ),
    ],
)
def test_forward_equals_float64_numpy(tiny, random_params, packed, changes):
    config = dataclasses.replace(tiny, **changes)
    params, batch = random_params(config, 1), packed(3, 20, config.vocab_size, 2)
    ours_BTV = np.asarray(forward(config, params, *rows_of(batch)))
    theirs_BTV = numpy_decoder.logits(params, config, batch["tokens_BT"], batch["segment_ids_BT"])
    real_BT = batch["segment_ids_BT"] > 0
    assert batch["segment_ids_BT"].max() > 2
    assert not real_BT.all()
    assert np.abs(ours_BTV - theirs_BTV)[real_BT].max() <= 1e-5 * np.abs(theirs_BTV).max()
    assert np.isfinite(ours_BTV).all()


SEED_05B = DecoderConfig(110592, 24, 1024, 4096, 16, 8, 128, max_length=16)
THINK_14B = DecoderConfig(110592, 38, 6144, 14336, 48, 8, 128, max_length=16, post_norms=True, tie_embeddings=False)


@pytest.mark.parametrize(("config", "count"), [(SEED_05B, 566_281_216), (THINK_14B, 14_748_112_896)])
def test_parameter_count_of_released_models(config, count):
    shapes = jax.tree.leaves(unbox(jax.eval_shape(LanguageModel(config).init, jax.random.key(0))))
    assert sum(math.prod(leaf.shape) for leaf in shapes) == count
    assert config.parameters == count
    assert {leaf.dtype for leaf in shapes} == {jnp.dtype("float32")}


def test_initial_scale(tiny):
    config = dataclasses.replace(tiny, embed_dim=64, mlp_dim=96, tie_embeddings=False)
    params = unbox(jax.jit(LanguageModel(config).init)(jax.random.key(0)))
    layer = params["layers"]
    for weight, fan_in in [
        (layer["attention"]["query"], 64),
        (layer["attention"]["output"], 4 * 16),
        (layer["mlp"]["gate"], 64),
        (layer["mlp"]["down"], 96),
    ]:
        # truncated_normal(std) cuts at two of its standard deviations, so that what is left spreads 0.88 as far.
        assert np.std(weight["weight"]) == pytest.approx(0.88 * fan_in**-0.5, rel=0.05)
        assert not np.allclose(weight["weight"][0], weight["weight"][1])
    assert np.std(params["embed"]) == pytest.approx(config.init_std, rel=0.05)
    assert np.std(params["head"]) == pytest.approx(config.init_std, rel=0.05)
    assert np.all(layer["input_norm"]["weight"] == 1)


LENGTHS = (9, 1, 7, 4)  # and three tokens of padding


def one_packed_row():
    """Every token of the row is another one, so that a row of the embedding's gradient is that of one place."""
    segments = np.repeat([1, 2, 3, 4, 0], [*LENGTHS, 3])[None].astype(np.int32)
    positions = np.concatenate([np.arange(n) for n in (*LENGTHS, 3)])[None].astype(np.int32)
    return np.arange(1, 25, dtype=np.int32)[None], segments, positions


def test_gradients_reach_earlier_tokens_of_the_document_and_nothing_else(tiny, random_params):
    config = dataclasses.replace(tiny, tie_embeddings=False)
    params, (tokens, segments, positions) = random_params(config, 3), one_packed_row()
    direction_V = np.random.default_rng(0).normal(size=config.vocab_size).astype(np.float32)

    @jax.jit
    def reach(embed):
        def projected_T(embed):
            return forward(config, params | {"embed": embed}, tokens, segments, positions)[0] @ direction_V

        return jnp.abs(jax.jacrev(projected_T)(embed)).sum(-1)[:, tokens[0]]

    reach_TS = np.asarray(reach(params["embed"]))
    place = np.arange(24)
    real = segments[0] > 0
    allowed_TS = (segments[0][:, None] == segments[0]) & (place[None] <= place[:, None]) & real[:, None]
    own_TS = np.eye(24, dtype=bool)
    assert np.all(reach_TS[allowed_TS] > 0)
    assert np.all(reach_TS[~allowed_TS & ~own_TS] == 0)


def test_packed_row_equals_each_document_alone(tiny, random_params):
    params, (tokens, segments, positions) = random_params(tiny, 4), one_packed_row()
    packed_TV = np.asarray(forward(tiny, params, tokens, segments, positions))[0]
    alone_tokens, alone_segments = np.zeros((2, 4, 24), np.int32)
    starts = np.cumsum([0, *LENGTHS])
    for row, (start, size) in enumerate(zip(starts, LENGTHS, strict=False)):
        alone_tokens[row, :size] = tokens[0, start : start + size]
        alone_segments[row, :size] = 1
    alone_positions = np.broadcast_to(np.arange(24, dtype=np.int32), (4, 24))
    alone_BTV = np.asarray(forward(tiny, params, alone_tokens, alone_segments, alone_positions))
    for row, (start, size) in enumerate(zip(starts, LENGTHS, strict=False)):
        np.testing.assert_allclose(
            packed_TV[start : start + size], alone_BTV[row, :size], atol=1e-5 * np.abs(packed_TV).max()
        )


@functools.partial(jax.jit, static_argnums=0)
def extend(config, params, tokens_BT, positions_BT, cache):
    decoder = Decoder(config)
    x_BTD, cache = decoder.apply({"params": params}, tokens_BT, positions_BT, cache, method=Decoder.extend)
    return decoder.apply({"params": params}, x_BTD, method=Decoder.logits), cache


def test_cached_decoding_equals_full_forward(tiny, random_params):
    config = dataclasses.replace(tiny, **SEED)
    params, rng = random_params(config, 5), np.random.default_rng(5)
    prompts, total, width, capacity = np.array([5, 8, 2]), 13, 8, 16
    tokens = rng.integers(0, config.vocab_size, (3, total)).astype(np.int32)
    positions = np.broadcast_to(np.arange(total, dtype=np.int32), (3, total))
    whole_BTV = np.asarray(forward(config, params, tokens, np.ones_like(tokens), positions))

    padded = np.where(positions[:, :width] < prompts[:, None], tokens[:, :width], 60)
    logits_BTV, cache = extend(config, params, padded, positions[:, :width], KVCache.empty(config, 3, capacity))
    seen = [(row, t, logits_BTV[row, t]) for row, length in enumerate(prompts) for t in range(length)]
    for step in range(total - min(prompts)):
        at = np.minimum(prompts + step, total - 1).astype(np.int32)  # rows that are done write their last token again
        logits_BTV, cache = extend(config, params, tokens[np.arange(3), at][:, None], at[:, None], cache)
        seen += [(row, t, logits_BTV[row, 0]) for row, t in enumerate(at)]
    assert {(row, t) for row, t, _ in seen} == {(row, t) for row in range(3) for t in range(total)}
    worst = max(np.abs(np.asarray(logits_V) - whole_BTV[row, t]).max() for row, t, logits_V in seen)
    assert worst <= 1e-5 * np.abs(whole_BTV).max()


def test_cache_is_written_at_its_positions_and_never_beyond_its_capacity(tiny):
    cache = KVCache.empty(tiny, 2, 4)
    assert cache.capacity == 4
    k_BTKH = jnp.arange(2 * 2 * 2 * 16, dtype=jnp.float32).reshape(2, 2, 2, 16) + 1
    written = cache.write(jnp.int32(1), jnp.array([[0, 2], [3, 4]]), k_BTKH, -k_BTKH)
    expected = np.zeros((2, 2, 2, 4, 16))
    expected[1, 0, :, 0], expected[1, 0, :, 2], expected[1, 1, :, 3] = k_BTKH[0, 0], k_BTKH[0, 1], k_BTKH[1, 0]
    np.testing.assert_array_equal(written.k_LBKSH, expected)
    np.testing.assert_array_equal(written.v_LBKSH, -expected)
    k_BKSH, v_BKSH = written.part(jnp.int32(1), "float32", 0, 2, jnp.int32(2), 2)
    np.testing.assert_array_equal(k_BKSH, expected[1, :, :, 2:])
    np.testing.assert_array_equal(v_BKSH, -expected[1, :, :, 2:])


def test_an_int8_cache_gives_back_each_vector_to_half_a_step(tiny):
    cache = KVCache.empty(tiny, 2, 4, "int8")
    rng = np.random.default_rng(0)
    k_BTKH, v_BTKH = rng.normal(size=(2, 2, 4, 2, 16)).astype(np.float32) * 10.0 ** rng.integers(-3, 4, (2, 2, 4, 2, 1))
    k_BTKH[0, 1, 1] = 0
    positions_BT = jnp.broadcast_to(jnp.arange(4), (2, 4))
    read = cache.write(jnp.int32(1), positions_BT, k_BTKH, v_BTKH).part(jnp.int32(1), "float32", 0, 2, jnp.int32(0), 4)
    for exact_BTKH, found_BKSH in zip((k_BTKH, v_BTKH), read, strict=True):
        exact_BKSH = exact_BTKH.swapaxes(1, 2)
        step = np.abs(exact_BKSH).max(-1, keepdims=True) / 127
        assert np.all(np.abs(found_BKSH - exact_BKSH) <= step * 0.5001)
    assert all(leaf.nbytes * 4 <= np.prod(leaf.shape) * 4 for leaf in cache[:2])


def summed_loss(config, params, batch):
    return LanguageModel(config).loss(params, batch, None)[0]


loss_and_gradient = jax.jit(jax.value_and_grad(summed_loss, argnums=1), static_argnums=0)


def test_remat_and_unrolling_change_nothing_but_what_is_recomputed(tiny, random_params, packed):
    params, batch = random_params(tiny, 6), packed(2, 12, tiny.vocab_size, 6)
    loss, gradient = loss_and_gradient(tiny, params, batch)
    for changes in ({"remat": "full"}, {"remat": "dots"}, {"remat": ("attention", "up")}, {"scan_unroll": 2}):
        other_loss, other_gradient = loss_and_gradient(dataclasses.replace(tiny, **changes), params, batch)
        np.testing.assert_allclose(other_loss, loss, rtol=1e-6, err_msg=str(changes))
        for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(other_gradient), strict=True):
            np.testing.assert_allclose(other, one, atol=1e-5 * np.abs(one).max(), err_msg=str(changes))


def test_remat_policies_recompute_what_they_say(tiny, random_params, packed):
    params, batch = random_params(tiny, 6), packed(2, 12, tiny.vocab_size, 6)

    def program(remat):
        config = dataclasses.replace(tiny, remat=remat)
        return str(jax.make_jaxpr(jax.grad(functools.partial(summed_loss, config)))(params, batch))

    none, dots, full = (program(remat).count("dot_general") for remat in ("none", "dots", "full"))
    assert none < dots < full
    # Of seven matmuls by weights, those that are named are not computed again.
    assert full - program(("up", "key")).count("dot_general") == 2


@pytest.mark.parametrize("axes", [None, {"data": 1, "context": 2, "tensor": 2, "devices": (0, 4)}])
def test_kept_attention_is_not_run_again(tiny, random_params, packed, axes):
    """The loop over tiles runs once forward, and backward in two passes; on a mesh too."""
    params, batch = random_params(tiny, 6), packed(2, 32, tiny.vocab_size, 6)

    def loops(remat):
        config = dataclasses.replace(tiny, remat=remat, attention_tile=(8, 8))
        with Layout(**axes).active() if axes else contextlib.nullcontext():
            program = jax.make_jaxpr(jax.grad(functools.partial(summed_loss, config)))(params, batch)
        return str(program).count("while[")

    assert loops("attention") == loops("dots") == loops("none") == 3
    assert loops("full") == 4


def test_offloaded_results_go_to_the_host_and_come_back(tiny, random_params, packed):
    config = dataclasses.replace(tiny, remat=("attention", "attention_lse"), offload=("up", "gate"))
    params, batch = random_params(config, 6), packed(2, 12, tiny.vocab_size, 6)
    gradient = jax.jit(jax.grad(functools.partial(summed_loss, config)))
    text = jax.export.export(gradient, platforms=["tpu"])(params, batch).mlir_module()
    assert text.count("annotate_device_placement") >= 2 * 2
    assert "pinned_host" in text


def test_padding_and_bfloat16(tiny, random_params, packed):
    config = dataclasses.replace(tiny, dtype="bfloat16", tie_embeddings=False)
    params, batch = random_params(config, 7), packed(2, 12, config.vocab_size, 7)
    batch["tokens_BT"] = np.where(batch["segment_ids_BT"] == 0, 60, batch["tokens_BT"] % 60)  # 60 is padding alone
    assert np.any(batch["segment_ids_BT"] == 0)
    loss, gradient = loss_and_gradient(config, params, batch)
    logits_BTV = numpy_decoder.logits(params, config, batch["tokens_BT"], batch["segment_ids_BT"])
    logprobs_BTV = logits_BTV - np.log(np.exp(logits_BTV).sum(-1, keepdims=True))
    logprobs_BT = np.take_along_axis(logprobs_BTV, batch["targets_BT"][..., None], -1)[..., 0]
    assert float(loss) == pytest.approx(-(logprobs_BT * batch["weights_BT"]).sum(), rel=0.02)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    assert forward.eval_shape(config, params, *rows_of(batch)).dtype == jnp.float32
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert np.all(gradient["embed"][60] == 0)
    assert np.any(gradient["embed"][:60] != 0)


def test_rows_without_a_document_are_finite_and_teach_nothing(tiny, random_params, packed):
    params, batch = random_params(tiny, 8), packed(2, 12, tiny.vocab_size, 8)
    blank = {name: np.zeros_like(value) for name, value in batch.items()}
    loss, gradient = loss_and_gradient(tiny, params, blank)
    assert float(loss) == 0
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(gradient))


def test_context_longer_than_the_model(tiny):
    blank = jnp.zeros((1, 33), jnp.int32)
    params = jax.eval_shape(LanguageModel(tiny).init, jax.random.key(0))
    with pytest.raises(ValueError, match=r"a row of 33 tokens.*max_length is 32"):
        forward.eval_shape(tiny, params, blank, blank, blank)
