import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.kernels import backends
from hcxjax.kernels.backends import BACKENDS, Backend
from hcxjax.kernels.plan import AttentionPlan
from hcxjax.kernels.reference import reference_attention
from hcxjax.kernels.target import Target
from hcxjax.mesh import Layout, unbox
from hcxjax.models import context
from hcxjax.models.config import DecoderConfig
from hcxjax.models.decoder import Decoder, apply, init_decoder

ROWS, LENGTH = 4, 64
CONFIG = functools.partial(
    DecoderConfig,
    vocab_size=32,
    num_layers=2,
    embed_dim=16,
    mlp_dim=24,
    num_heads=8,
    num_kv_heads=2,
    head_dim=8,
    max_length=LENGTH,
    dtype="float32",
)


def packed():
    """(tokens, segments, positions): documents of mixed lengths, one row of a single one, a padding tail."""
    rng = np.random.default_rng(0)
    segments, positions = np.zeros((2, ROWS, LENGTH), np.int32)
    for row, mean in enumerate((LENGTH, 4, 12, 30)):
        at = number = 0
        while at < LENGTH - 3 * row:
            size, number = min(LENGTH - 3 * row - at, int(rng.exponential(mean)) + 1 if row else LENGTH), number + 1
            segments[row, at : at + size], positions[row, at : at + size] = number, np.arange(size)
            at += size
    return rng.integers(0, 32, (ROWS, LENGTH)).astype(np.int32), segments, positions


def on(layout, **settings):
    """Logits of what is no padding, the loss, and its gradient, on one device or on several."""
    config, (tokens, segments, positions) = CONFIG(**settings), packed()
    seen = (segments > 0)[..., None]

    def loss(params):
        logits = apply(config, params, Decoder.__call__, tokens, segments, positions) * seen
        return jnp.sum(jnp.sin(logits)), logits

    with layout.active():
        params = unbox(jax.jit(init_decoder, static_argnums=0)(config, jax.random.key(0)))
        return jax.device_get(jax.jit(jax.value_and_grad(loss, has_aux=True))(params))


@pytest.fixture(scope="module")
def alone():
    return on(Layout(devices=(0, 1)))


@pytest.mark.parametrize(
    ("axes", "settings"),
    [
        pytest.param({"context": 8}, {}, marks=pytest.mark.slow),
        ({"context": 4, "tensor": 2}, {"context": "ring"}),
        ({"fsdp": 2, "context": 2, "tensor": 2}, {"attention_tile": (8, 4)}),
        ({"data": 2, "tensor": 4}, {}),  # two devices share each KV head
        pytest.param(
            {"context": 2, "tensor": 4},
            {"context": "ring", "remat": "attention", "attention_tile": (4, 8)},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_rows_divided_over_devices_equal_rows_on_one(alone, axes, settings):
    """Forward and gradient to 1e-5 of the largest value."""
    found = on(Layout(**{"data": 1, **axes}), **settings)
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5 * max(1, np.abs(one).max()))


def attention_on(layout, rows=ROWS, length=LENGTH):
    """The compiled text of attention alone, its arguments laid as the model lays them."""
    config = CONFIG()
    with layout.active():
        shapes = [(rows, length, heads, 8) for heads in (8, 2, 2)]
        axes = [("batch", "length", name, None) for name in ("heads", "kv_heads", "kv_heads")]
        arrays = [
            jax.ShapeDtypeStruct(
                shape, jnp.float32, sharding=jax.NamedSharding(layout.mesh, context.spec_of(shape, *name))
            )
            for shape, name in zip(shapes, axes, strict=True)
        ]
        plan = jax.eval_shape(lambda ids: context.row_plan(ids, config), jnp.ones((rows, length), jnp.int32))
        angles = (jnp.ones((rows, length, 4)),) * 2

        def total(q_BTNH, k_BSKH, v_BSKH, plan: AttentionPlan):
            return jnp.sum(context.row_attention(q_BTNH, k_BSKH, v_BSKH, plan, angles, config))

        return jax.jit(jax.grad(total, (0, 1, 2))).lower(*arrays, plan).compile().as_text()


def test_queries_keys_and_values_are_not_gathered():
    """But for the keys of a row that is divided, and then only over the context axis."""
    assert "all-gather" not in attention_on(Layout(data=2, fsdp=2, tensor=2))
    assert "all-gather" not in attention_on(Layout(data=2, tensor=4)), "two devices share each KV head"
    assert "all-gather" in attention_on(Layout(data=2, context=2, tensor=2))


def test_every_device_has_the_same_causal_work():
    places = context._places(64, 4)
    assert sorted(places.reshape(-1)) == list(range(64))
    assert len({int(np.sum(own + 1)) for own in places}) == 1


def test_columns_come_back_in_order():
    layout = Layout(data=2, context=4)
    with layout.active():
        x_BTD = jnp.arange(2.0 * 16 * 3).reshape(2, 16, 3)
        back = jax.jit(lambda x_BTD: context.collected(context.dealt(x_BTD)))(x_BTD)
        np.testing.assert_array_equal(back, x_BTD)
        assert not np.array_equal(jax.jit(context.dealt)(x_BTD), x_BTD)
        odd = jnp.zeros((2, 12, 3))  # no multiple of 2 x 4: held whole by every device
        assert context.shards_of(12) == 1
        assert context.dealt(odd) is odd


def test_backend_that_takes_whole_rows_only(monkeypatch):
    monkeypatch.setitem(BACKENDS, "whole", Backend(reference_attention, parts=False))
    config = CONFIG(attention="whole")
    with Layout(data=2, context=4).active():
        context.row_plan(jnp.ones((2, 12), jnp.int32), config)
        with pytest.raises(ValueError, match=r"'whole' .*: it takes whole rows, and Layout\.context divides them"):
            context.row_plan(jnp.ones((2, 16), jnp.int32), config)


@pytest.mark.parametrize("ways", ["gather", "ring"])
def test_auto_leaves_it_out_where_rows_are_divided(monkeypatch, ways):
    """Each time that it is asked: for the plan's tiles, and where attention is computed."""
    monkeypatch.setitem(BACKENDS, "whole", Backend(lambda *_, **__: pytest.fail("was taken"), parts=False))
    monkeypatch.setattr(backends, "CHOICES", ("whole", "xla"))
    monkeypatch.setattr(backends, "chosen", backends.chosen.__wrapped__)
    config = CONFIG(attention="auto", context=ways)

    def attended(x_BTNH, k_BSKH, angles):
        plan = context.row_plan(jnp.ones((2, 16), jnp.int32), config)
        return context.row_attention(x_BTNH, k_BSKH, k_BSKH, plan, (angles, angles), config)

    shapes = [jax.ShapeDtypeStruct((2, 16, *more), jnp.float32) for more in ((8, 8), (2, 8), (4,))]
    with Layout(data=2, context=4).active():
        assert jax.eval_shape(attended, *shapes).shape == (2, 16, 8, 8)


def test_kv_heads_that_cannot_be_dealt():
    config, message = CONFIG(num_heads=12, num_kv_heads=3), r"3 KV heads .*num_kv_heads.* axis tensor.*Layout\.tensor"
    layout = Layout(data=2, tensor=4)
    with layout.active(), pytest.raises(ValueError, match=message):
        shape = [jnp.ones((2, 16, heads, 8)) for heads in (12, 3, 3)]
        plan = context.row_plan(jnp.ones((2, 16), jnp.int32), config)
        context.row_attention(*shape, plan, (jnp.ones((2, 16, 4)),) * 2, config)


@pytest.mark.parametrize("name", ["pallas_tpu", "splash"])
def test_parameters_are_drawn_where_kernels_are_particular_about_tiles(name, monkeypatch):
    """What the model is shown then is no row that anything could be divided over."""
    monkeypatch.setattr(Target, "now", lambda: Target("tpu", "TPU v5p"))
    with Layout(context=4, tensor=2).active():
        shapes = jax.eval_shape(functools.partial(init_decoder, CONFIG(attention=name, head_dim=64)), jax.random.key(0))
    assert unbox(shapes)["embed"].shape == (32, 16)
