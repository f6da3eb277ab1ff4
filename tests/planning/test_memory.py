import dataclasses

import jax
import pytest

from hcxjax.planning.flops import block_weights
from hcxjax.planning.memory import estimated_memory, kept_bytes, sharded_bytes
from hcxjax.planning.plan import Site
from hcxjax.planning.pods import Pod
from hcxjax.planning.shares import Share


def site(step, pod="v5p:4x4x4"):
    return Site.of(step, Pod.parse(pod))


def test_the_state_is_divided_as_the_mesh_says(step_of, billion):
    whole = billion.parameters * 4
    for sizes in ({"fsdp": 64}, {"fsdp": 16, "tensor": 4}, {"fsdp": 8, "context": 8}):
        parameters, _, optimizer, _ = site(step_of(billion, rows=64, data=1, **sizes)).held
        assert parameters == pytest.approx(whole / 64, rel=0.01)  # norms are on every device
        assert optimizer == pytest.approx(2 * parameters, rel=0.001)
    held = site(step_of(billion, rows=64, data=64)).held
    assert held.parameters == held.trained == whole and held.batch == 5 * 32 * 4 + 4


def test_bytes_of_arrays_that_are_divided_and_of_those_that_are_not(step_of, tiny):
    layout = step_of(tiny, data=2, fsdp=2, tensor=2).on(Pod.parse("v5e:2x4"))
    leaves = {
        "divided": jax.ShapeDtypeStruct((8, 8), "bfloat16", sharding=layout.sharding("vocab", "embed")),
        "whole": jax.ShapeDtypeStruct((3,), "int32", sharding=layout.sharding(None)),
    }
    assert sharded_bytes(leaves) == 8 * 8 * 2 / 4 + 12


def test_what_forward_keeps(step_of, billion):
    share = Share.of(step_of(billion, rows=64, length=4096, data=1, fsdp=16, tensor=4), site_layout(step_of, billion))
    embed, heads, keys, wide = 2048, 16 * 128 / 4, 128, 5632 / 4
    assert kept_bytes(share, "full") == 2 * embed
    assert kept_bytes(share, "attention") == 2 * (embed + heads) + 4 * 16 / 4
    assert kept_bytes(share, "dots") == 2 * (2 * embed + 2 * heads + 2 * keys + 2 * wide) + 4 * 16 / 4
    assert kept_bytes(share, ("gate", "key")) == 2 * (embed + wide + keys)
    assert kept_bytes(share, "none") == 28 * embed + 2 * (3 * heads + 2 * keys + 6 * wide)
    normed = dataclasses.replace(share, model=dataclasses.replace(billion, post_norms=True))
    assert kept_bytes(normed, "dots") == kept_bytes(share, "dots") + 2 * embed


def site_layout(step_of, billion):
    return step_of(billion, rows=64, length=4096, data=1, fsdp=16, tensor=4).on(Pod.parse("v5p:4x4x4"))


def test_keeping_more_takes_more_and_dividing_takes_less(step_of, billion):
    def total(remat="full", accumulate=1, **sizes):
        step = step_of(billion, rows=256, length=4096).changed({"data": 1, **sizes}, accumulate, remat)
        here = site(step)
        return estimated_memory(step, here.layout, here.held).total

    by_remat = [total(remat, fsdp=64) for remat in ("none", "dots", "attention", "full")]
    assert by_remat == sorted(by_remat, reverse=True)
    assert total(fsdp=64, accumulate=4) < total(fsdp=64)
    assert total(fsdp=64) < total(fsdp=16, data=4)


def test_a_pipeline_keeps_a_stage_s_weights_whole(step_of, billion):
    def temporaries(**sizes):
        step = step_of(billion, rows=64, length=4096).changed({"data": 1, **sizes}, 1, "full")
        here = site(step)
        return estimated_memory(step, here.layout, here.held).temporaries

    assert temporaries(fsdp=8, tensor=4, pipe=2) > 12 * block_weights(billion) / 8


def test_what_waits_for_every_microbatch(step_of, billion):
    """The gradient of an embedding that is not the head is whole until the last; weights in the compute dtype wait too."""

    def temporaries(model, accumulate=4):
        step = step_of(model, rows=256, length=4096, data=1, fsdp=16, tensor=4)
        step = step.changed({}, accumulate, "full")
        here = site(step)
        return estimated_memory(step, here.layout, here.held).temporaries

    untied = dataclasses.replace(billion, tie_embeddings=False)
    assert temporaries(untied) - temporaries(billion) == 4 * 100352 * 2048 / 4
    assert temporaries(untied, 1) == temporaries(billion, 1)
    wider = temporaries(dataclasses.replace(billion, num_layers=36)) - temporaries(billion)
    assert wider == 2 * block_weights(billion) / 64


def test_the_estimate_is_near_a_compiled_program(compiled, estimated):
    """A tiny one, in float32 on a CPU: what is by sharding is exact, the rest of the same size."""
    for kind in ("parameters", "optimizer", "batch"):
        assert getattr(estimated.memory, kind) == getattr(compiled.memory, kind)
    assert estimated.memory.total == pytest.approx(compiled.memory.total, rel=0.35)
