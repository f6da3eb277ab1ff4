import dataclasses

import pytest

from hcxjax.planning.flops import block_weights
from hcxjax.planning.pods import Pod
from hcxjax.planning.traffic import estimated_collectives, moved_bytes


def estimated(step, pod="v5p:4x4x4"):
    pod = Pod.parse(pod)
    return estimated_collectives(step, pod, step.on(pod))


def by_axes(found):
    totals = {}
    for one in found:
        totals[one.axes] = totals.get(one.axes, 0) + one.total
    return totals


def test_axes_of_one_device_carry_nothing(step_of, billion):
    assert {one.axes for one in estimated(step_of(billion, rows=64, data=1, fsdp=16, tensor=4))} == {
        ("fsdp",),
        ("tensor",),
    }
    assert {one.axes for one in estimated(step_of(billion, rows=64, data=64))} == {("data",)}


def test_weights_are_gathered_and_their_gradients_scattered(step_of, billion):
    step = step_of(billion, rows=64, length=4096, data=1, fsdp=16, tensor=4)
    blocks = 2 * block_weights(billion) / 4
    gathers, scatter, *_ = estimated(step)
    assert (gathers.kind, gathers.payload, gathers.times) == ("all-gather", blocks, 2)
    assert gathers.total == pytest.approx(2 * blocks * 15 / 16)
    assert (scatter.kind, scatter.total) == ("reduce-scatter", pytest.approx(blocks * 15 / 16))
    down = 5632 / (3 * 5632 + 5120)  # the last matmul is not needed again
    [again, *_] = estimated(step.changed({"data": 1, "fsdp": 16}, 2, "full"))
    assert again.times == pytest.approx(2 * (2.5 - down / 2))


def test_gradients_of_rows_on_two_axes_are_summed_whole(step_of, billion):
    _, scatter, *_ = estimated(step_of(billion, rows=64, length=4096, data=4, fsdp=16))
    assert (scatter.kind, scatter.axes) == ("all-reduce", ("fsdp",))


def test_a_whole_closed_torus_reduces_where_others_gather(step_of, billion):
    step = step_of(billion, rows=64, data=1, fsdp=64)
    assert {one.kind for one in estimated(step)} == {"all-reduce"}
    assert "all-gather" in {one.kind for one in estimated(step, "v6e:8x8")}


def test_a_divided_row_gathers_keys_and_values(step_of, billion):
    step = step_of(billion, rows=8, length=32768, data=1, fsdp=8, context=8)
    row = 2 * 2 * 32768 * 4 * 128  # of a row: keys and values in bf16

    def keys(step, pod):
        return [(one.kind, one.payload, one.times) for one in estimated(step, pod) if one.axes == ("context",)]

    assert keys(step, "v5p:4x4x4") == [("all-gather", row, 18), ("all-reduce", row, 18)]
    assert keys(step, "H200:8x8") == [("all-gather", row, 18), ("reduce-scatter", row, 18)]
    assert keys(step.changed({}, 1, "dots"), "v5p:4x4x4")[0] == ("all-gather", row, 36), "they are not kept"
    assert ("fsdp", "context") in {one.axes for one in estimated(step)}


def test_stages_pass_rows_on(step_of, billion):
    step = step_of(billion, rows=64, length=4096, data=1, fsdp=8, tensor=4, pipe=2)
    residual = 2 * 8 * 4096 * 2048
    passed, summed = (one for one in estimated(step) if one.axes == ("pipe",))
    assert (passed.kind, passed.payload, passed.times) == ("collective-permute", residual / 8, 2 * 9)
    assert (summed.kind, summed.payload, summed.times) == ("all-reduce", residual, 2)
    gathered = next(one for one in estimated(step) if one.axes == ("fsdp",))
    assert (gathered.payload, gathered.times) == (4 * block_weights(billion) / 8, 1), "once, in float32"


def test_traffic_is_near_that_of_a_compiled_program(compiled, estimated):
    """XLA on a CPU gathers and sums as the arithmetic says, and adds little of its own."""
    ours, theirs = by_axes(estimated.collectives), by_axes(compiled.collectives)
    assert ours[("tensor",)] == pytest.approx(theirs[("tensor",)], rel=0.35)
    fsdp = theirs[("fsdp",)] + theirs.get(("data", "fsdp"), 0)
    assert ours[("fsdp",)] == pytest.approx(fsdp, rel=0.5)


def test_bytes_between_memory_and_cores(step_of, billion):
    step = step_of(billion, rows=64, length=4096, data=64)
    layout = step.on(Pod.parse("v5p:4x4x4"))
    blocks, trained = 2 * block_weights(billion), 4.0 * billion.parameters
    least = 2 * blocks + 36 * billion.parameters
    assert moved_bytes(step, layout, trained) > least
    assert moved_bytes(step.changed({}, 1, "full"), layout, trained) - moved_bytes(step, layout, trained) < 3 * blocks


def test_a_stage_moves_what_its_own_layers_need(step_of, billion):
    def of_state_aside(**sizes):
        step = step_of(dataclasses.replace(billion, remat="dots"), rows=512, length=4096, data=1, **sizes)
        return moved_bytes(step, step.on(Pod.parse("v5p:4x4x4")), trained=0.0)

    blocks = 2 * block_weights(billion)
    alone, staged = of_state_aside(fsdp=64), of_state_aside(fsdp=32, pipe=2)
    # Of 16 rows in two stages of half as many layers: 17 steps, each of which reads half the weights.
    assert staged - 17 / 2 * 2 * blocks == pytest.approx(17 / 16 * (alone - 2 * blocks))
