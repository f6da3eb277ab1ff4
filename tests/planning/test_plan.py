import dataclasses
import json

import jax
import pytest

from hcxjax.planning.plan import ARITHMETIC, COMPILED, Site, compiled_plan, estimate
from hcxjax.planning.pods import Pod


@pytest.fixture(scope="module")
def plan(step_of, billion):
    step = step_of(billion, rows=64, length=4096, data=1, fsdp=-1, tensor=4)
    return estimate(step, Site.of(step, Pod.parse("v5p:4x4x4")))


def test_bounds_hang_together(plan, billion):
    seconds = plan.roofline.bound
    assert plan.origin == ARITHMETIC and plan.fits
    assert plan.mfu_bound == pytest.approx(billion.flops_per_token(4096) * 64 * 4096 / (64 * 459e12 * seconds))
    assert 0.5 < plan.mfu_bound < 1
    assert plan.tokens_per_day == pytest.approx(64 * 4096 * 86400 / seconds)
    assert plan.chip_hours(1e12) == pytest.approx(plan.days(1e12) * 24 * 64)
    assert plan.days(plan.tokens_per_day) == pytest.approx(1)


def test_sizes_are_resolved(plan):
    assert plan.step.bindings()["Layout.fsdp"] == 16


def test_a_summary_is_plain_numbers(plan, compiled):
    told = json.loads(json.dumps(plan.summary()))
    assert told["origin"] == ARITHMETIC and "versions" not in told
    assert told["memory_bytes"]["total"] == pytest.approx(plan.memory.total)
    assert told["collective_bytes"]["tensor"]["all-reduce"] > 0
    told = json.loads(json.dumps(compiled.summary()))
    assert told["origin"] == COMPILED and told["versions"] and told["uncounted"] == []
    assert told["step"]["rows"] == 16


def test_matmuls_are_counted_where_they_can_be(compiled, estimated):
    assert compiled.flops == compiled.compiled.flops
    assert estimated.flops == pytest.approx(compiled.flops, rel=0.05)


def test_what_does_not_train_is_not_moved_for_the_optimizer(compiled, cube):
    """Compiled or not: bytes between memory and cores are arithmetic in either case."""
    thin = dataclasses.replace(cube.model, num_layers=1)
    objective = dataclasses.replace(cube.recipe.objective, model=thin)
    recipe = dataclasses.replace(cube.recipe, objective=objective, trainable=("embed",), accumulate=1)
    step = dataclasses.replace(cube, recipe=recipe)
    frozen = compiled_plan(step, compiled.pod, jax.devices())
    assert 0 < frozen.compiled.trained < 0.7 * frozen.memory.parameters
    assert frozen.roofline.seconds["HBM"] == estimate(step, Site.of(step, compiled.pod)).roofline.seconds["HBM"]


def test_a_batch_that_the_mesh_does_not_divide(step_of, billion):
    step = step_of(billion, rows=24, data=-1)
    with pytest.raises(ValueError, match="BATCH is 24; it must be a positive multiple of 64"):
        estimate(step, Site.of(step, Pod.parse("v5p:4x4x4")))


def test_a_step_that_is_no_language_model(plan):
    unknown = dataclasses.replace(plan.step, recipe=dataclasses.replace(plan.step.recipe, objective=object()))
    with pytest.raises(ValueError, match="the arithmetic knows language models"):
        estimate(unknown, Site(plan.pod, None, None))
