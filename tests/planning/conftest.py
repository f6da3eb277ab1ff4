"""A small run of the planner: the tiny decoder over packed rows, its mesh laid over eight CPU devices."""

import dataclasses

import jax
import numpy as np
import pytest

from hcxjax.mesh import Layout
from hcxjax.objectives.language_model import LanguageModel
from hcxjax.optim import AdamW, Cosine, SpikeGuard
from hcxjax.planning.plan import Site, compiled_plan, estimate
from hcxjax.planning.pods import Pod
from hcxjax.planning.step import Step
from hcxjax.update import Recipe


def batch_shapes(rows, length):
    whole = ("tokens_BT", "targets_BT", "segment_ids_BT", "positions_BT")
    return {
        **{name: jax.ShapeDtypeStruct((rows, length), np.int32) for name in whole},
        "weights_BT": jax.ShapeDtypeStruct((rows, length), np.float32),
        "source_B": jax.ShapeDtypeStruct((rows,), np.int32),
    }


@pytest.fixture(scope="session")
def step_of():
    """(config, rows, length, accumulate, mesh sizes) → a step of it."""

    def build(config, rows=16, length=32, accumulate=1, **sizes):
        recipe = Recipe(LanguageModel(config), AdamW(Cosine(1e-3, 10)), SpikeGuard(), accumulate, 0)
        return Step(recipe, Layout(**sizes), batch_shapes(rows, length))

    return build


@pytest.fixture(scope="session")
def billion(tiny):
    """A decoder of about a billion parameters; nothing of it is ever computed."""
    return dataclasses.replace(
        tiny,
        vocab_size=100352,
        num_layers=18,
        embed_dim=2048,
        mlp_dim=5632,
        num_heads=16,
        num_kv_heads=4,
        head_dim=128,
        max_length=32768,
        dtype="bfloat16",
    )


POD = "v5e:2x4"
"""A pod of eight chips, whose wires the CPU's eight devices are given."""


@pytest.fixture(scope="session")
def cube(step_of, tiny):
    """A step on a mesh of 2 x 2 x 2, in four microbatches: more than it has layers."""
    return step_of(dataclasses.replace(tiny, remat="full"), rows=16, accumulate=4, data=2, fsdp=2, tensor=2)


@pytest.fixture(scope="session")
def compiled(cube):
    """Its plan, compiled for the CPU's devices."""
    return compiled_plan(cube, Pod.parse(POD), jax.devices())


@pytest.fixture(scope="session")
def estimated(cube):
    """Its plan by arithmetic."""
    return estimate(cube, Site.of(cube, Pod.parse(POD)))
