import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.kernels.plan import Tile, attention_plan
from hcxjax.kernels.reference import reference_attention
from hcxjax.kernels.splash import splash_attention
from tests.kernels.pallas_tpu.cases import SCALE, arrays, packings

TILE = Tile(128, 256)


@functools.partial(jax.jit, static_argnames="kernel")
def output_and_gradients(qkv, do, ids, kernel):
    plan = attention_plan(ids, TILE)
    o, backward = jax.vjp(lambda *qkv: kernel(*qkv, plan, scale=SCALE)[0], *qkv)
    return o, *backward(do)


def test_equals_the_reference():
    """Rows that tiles do not divide, two query heads to a KV head."""
    segments = packings(4, 300, seed=2, tile=TILE)[1:]
    qkv, _, (do, _) = arrays(segments, 4, 2, 16)
    ours = output_and_gradients(qkv, do, segments, functools.partial(splash_attention, interpret=True))
    for one, other in zip(ours, output_and_gradients(qkv, do, segments, reference_attention), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
        assert np.all(np.asarray(one)[segments == 0] == 0)


def test_lowers_for_tpu():
    ids = jax.ShapeDtypeStruct((1, 512), jnp.int32)
    q, k = (jax.ShapeDtypeStruct((1, 512, heads, 64), jnp.bfloat16) for heads in (4, 2))
    run = jax.jit(functools.partial(output_and_gradients, kernel=splash_attention))
    assert jax.export.export(run, platforms=["tpu"])((q, k, k), q, ids).mlir_module().count("tpu_custom_call") == 3


def test_keys_of_other_rows_are_refused():
    q, k = jnp.ones((1, 8, 2, 64)), jnp.ones((1, 16, 2, 64))
    plan = attention_plan(jnp.ones((1, 8), jnp.int32), TILE, kv_segments_BS=jnp.ones((1, 16), jnp.int32))
    with pytest.raises(ValueError, match=r"'splash' .* takes whole rows, and here 8 queries see 16 keys"):
        splash_attention(q, k, k, plan, scale=1.0)
