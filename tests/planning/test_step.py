import dataclasses

import pytest

from hcxjax.planning.pods import Pod
from hcxjax.planning.step import Step


def test_a_step_knows_its_batch_and_its_flops(step_of, tiny):
    step = step_of(tiny, rows=24)
    assert (step.rows, step.length, step.tokens) == (24, 32, 768)
    assert step.flops == tiny.flops_per_token(32) * 768


def test_a_variant_is_the_same_update_done_otherwise(step_of, tiny):
    step = step_of(tiny, data=-1)
    other = step.changed({"data": 2, "fsdp": 4, "tensor": 1}, 2, "full")
    assert (other.model.remat, other.recipe.accumulate, other.flops) == ("full", 2, step.flops)
    assert dataclasses.replace(other.model, remat=tiny.remat) == tiny
    bindings = other.bindings()
    assert bindings["Layout.fsdp"] == 4 and bindings["ACCUMULATE"] == 2 and bindings["DecoderConfig.remat"] == "full"


def test_a_mesh_over_a_pod(step_of, tiny):
    layout = step_of(tiny, data=1, fsdp=-1, tensor=4).on(Pod.parse("v5p:4x4x4"))
    assert layout.sizes == {"pipe": 1, "data": 1, "fsdp": 16, "context": 1, "tensor": 4}
    with pytest.raises(ValueError, match="but 16 are present"):
        step_of(tiny, data=3).on(Pod.parse("v5e:4x4"))


def test_the_arithmetic_says_what_it_does_not_know(step_of, tiny):
    step = step_of(tiny)
    unknown = Step(dataclasses.replace(step.recipe, objective=object()), step.layout, step.shapes)
    assert not unknown.is_language_model
    with pytest.raises(ValueError, match="the arithmetic knows language models, not object"):
        _ = unknown.model
