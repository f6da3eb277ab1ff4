"""What the compiler makes of the device's functions."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from hcxjax.inference import steps
from hcxjax.mesh import Layout, unbox
from hcxjax.models.int8 import quantized
from hcxjax.objectives.language_model import LanguageModel

CONTEXT, SLOTS = 256, 8


@pytest.fixture(scope="module")
def model(tiny):
    return dataclasses.replace(tiny, max_length=CONTEXT)


def on_mesh(model, layout):
    boxed = jax.eval_shape(LanguageModel(model).init, jax.random.key(0))
    shardings = layout.param_shardings(boxed)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), unbox(boxed), shardings
    )


@pytest.mark.parametrize("layout", [Layout(data=8), Layout(data=2, fsdp=2, tensor=2)])
def test_no_device_is_sent_another_s_cache_and_it_is_replaced_in_place(model, layout):
    with layout.active():
        slots = steps.free_slots(model, SLOTS, CONTEXT, None, 4)
        compiled = steps.step_all.lower(model, on_mesh(model, layout), slots, 2).compile()
    sent = re.findall(
        r"= \w+\[([\d,]*)\]\S* (?:all-gather|all-to-all|collective-permute|all-reduce)\(", compiled.as_text()
    )
    assert len(sent) > 5
    sizes = [int(np.prod([int(size) for size in shape.split(",") if size])) for shape in sent]
    one_device = slots.cache.k_LBKSH.addressable_shards[0].data.size
    assert max(sizes) < one_device, "new vectors travel, the cache does not"
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= 2 * one_device * 4, "the cache that comes back is the one that went in"


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("int8", [False, True])
def test_it_lowers_for_accelerators(model, random_params, platform, int8):
    model = dataclasses.replace(model, dtype="bfloat16")
    params = random_params(model)
    params = quantized(params) if int8 else params
    cache = "int8" if int8 else None
    slots, row = steps.free_slots(model, SLOTS, CONTEXT, cache, 4), steps.empty_row(model, CONTEXT, cache)
    tokens_BT = jnp.zeros((1, 16), jnp.int32)
    stepped = export.export(steps.step_all, platforms=[platform])(model, params, slots, 2)
    filled = export.export(steps.prefill, platforms=[platform])(model, params, row, tokens_BT, jnp.int32(0))
    assert stepped.platforms == filled.platforms == (platform,)
    assert filled.out_avals[0].dtype == (jnp.int8 if int8 else jnp.bfloat16)
