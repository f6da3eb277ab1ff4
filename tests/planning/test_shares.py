import dataclasses

import pytest

from hcxjax.planning.pods import Pod
from hcxjax.planning.shares import Share


def share(step_of, config, pod="v5p:4x4x4", accumulate=1, **sizes):
    step = step_of(config, rows=64, length=4096, accumulate=accumulate, **sizes)
    return Share.of(step, step.on(Pod.parse(pod)))


def test_a_device_has_its_part(step_of, billion):
    one = share(step_of, billion, accumulate=2, data=2, fsdp=4, context=2, tensor=4)
    assert one.tokens * 2 * 2 * 4 * 2 == 64 * 4096
    assert (one.heads, one.keys, one.wide) == (16 * 128 / 4, 128, 5632 / 4)
    assert one.table == 100352 * 2048 / 4
    assert one.width == 2 and dataclasses.replace(billion, dtype="float32").dtype == "float32"


def test_fewer_kv_heads_than_devices_are_held_by_several(step_of, billion):
    assert share(step_of, billion, data=1, fsdp=8, tensor=8).keys == 128


def test_stages_divide_layers_and_wait(step_of, billion):
    one, piped = (share(step_of, billion, data=1, fsdp=64 // stages, pipe=stages) for stages in (1, 2))
    assert (piped.layers, one.layers, one.waiting, one.turns) == (9, 18, 1, 18)
    assert piped.weights == one.weights / 2 and piped.tokens == 2 * one.tokens
    assert piped.waiting == pytest.approx((2 + 1) / 2) and piped.turns == 3  # two rows through two stages
    head = 8.0 * 100352 * 2048 * one.tokens
    assert piped.flops - head == pytest.approx(1.5 * (one.flops - head))


@pytest.mark.parametrize(
    ("remat", "again"),
    [("none", 0), ("dots", 0), ("attention", 1), ("full", 1), (("gate", "up"), 1 - 2 * 5632 / (3 * 5632 + 5120))],
)
def test_what_is_computed_again(step_of, billion, remat, again):
    """With post-norms, whose backward needs the last matmul too."""
    model = dataclasses.replace(billion, remat=remat, post_norms=True)
    assert share(step_of, model, data=1, fsdp=64).computed_again == pytest.approx(again)
