import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from hcxjax.mesh import Layout
from hcxjax.planning.collectives import collectives
from hcxjax.planning.hlo import Program

CUBE = {"data": 2, "fsdp": 2, "tensor": 2}
ONE_SLICE = dict.fromkeys(CUBE, 1)


def of(lines, mesh=CUBE, across=ONE_SLICE, extra=""):
    """Of a program of these lines, each an instruction."""
    body = "\n".join(f"  {line}" for line in lines)
    text = f"HloModule m\n\n{extra}\nENTRY %main (a: f32[8]) -> f32[8] {{\n  %a = f32[8] parameter(0)\n{body}\n}}\n"
    return collectives(Program.parse(text).executed(), mesh, across)


GROUPS = {
    ("tensor",): ["{{0,1},{2,3},{4,5},{6,7}}", "[4,2]<=[8]", "mesh['a'=4,'b'=2] {'b'}"],
    ("fsdp",): ["{{0,2},{1,3},{4,6},{5,7}}", "[4,2]<=[2,2,2]T(0,2,1)", "mesh['a'=2,'b'=2,'c'=2] {'b'}"],
    ("data",): ["{{0,4},{1,5},{2,6},{3,7}}", "[4,2]<=[2,4]T(1,0)", "mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}"],
    ("data", "tensor"): ["{{0,1,4,5},{2,3,6,7}}", "[2,4]<=[2,2,2]T(1,0,2)", "mesh['a'=2,'b'=2,'c'=2] {'a','c'}"],
    ("data", "fsdp", "tensor"): ["{{0,1,2,3,4,5,6,7}}", "{}", "[1,8]<=[8]", "mesh['a'=8,'b'=1] {'a','b'}"],
    (): ["{{0},{1},{2},{3},{4},{5},{6},{7}}", "[8,1]<=[8]"],
}


@pytest.mark.parametrize(
    ("axes", "groups"), [(axes, groups) for axes, forms in GROUPS.items() for groups in forms], ids=str
)
def test_groups_in_every_form_are_along_the_axes_that_they_reach(axes, groups):
    [one] = of([f"%r = f32[8] all-reduce(%a), replica_groups={groups}, to_apply=%sum"])
    members = 2 ** len(axes)
    assert (one.axes, one.whole, one.payload) == (axes, True, 32)
    assert one.sent == 2 * 32 * (members - 1) / members


def test_a_part_of_an_axis_is_said_to_be_one():
    [one] = of(["%r = f32[8] all-reduce(%a), replica_groups={{0,1},{2,3},{4,5},{6,7}}"], {"data": 1, "fsdp": 8}, {})
    assert (one.axes, one.whole) == (("fsdp",), False)
    [one] = of(["%r = f32[8] all-reduce(%a), replica_groups=mesh['a'=8] {'a':(2)4}"], {"data": 2, "fsdp": 4}, {})
    assert (one.axes, one.whole) == (("fsdp",), True)
    with pytest.raises(ValueError, match="replica groups of r are in a form that is not known"):
        of(["%r = f32[8] all-reduce(%a), replica_groups=<all>"])


GROUP = "replica_groups=[4,2]<=[8]"


@pytest.mark.parametrize(
    ("line", "kind", "payload", "sent"),
    [
        (f"%r = f32[16] all-gather(%a), {GROUP}, dimensions={{0}}", "all-gather", 64, 32),
        (f"%r = (f32[8], f32[16]) all-gather-start(%a), {GROUP}", "all-gather", 64, 32),
        (f"%r = f32[4] reduce-scatter(%a), {GROUP}", "reduce-scatter", 32, 16),
        (f"%r = f32[8] all-reduce-start(%a), {GROUP}", "all-reduce", 32, 32),
        (f"%r = (f32[8], bf16[4]) all-reduce(%a, %a), {GROUP}", "all-reduce", 40, 40),
        (f"%r = f32[8] all-to-all(%a), {GROUP}", "all-to-all", 32, 16),
        ("%r = f32[8] collective-permute(%a), source_target_pairs={{0,1},{1,0}}", "collective-permute", 32, 32),
        (
            "%r = (f32[8], f32[8], u32[], u32[]) collective-permute-start(%a), source_target_pairs={{0,1},{1,0}}",
            "collective-permute",
            32,
            32,
        ),
    ],
)
def test_bytes_of_every_kind(line, kind, payload, sent):
    [one] = of([line])
    assert (one.kind, one.axes, one.payload, one.sent) == (kind, ("tensor",), payload, sent)


def test_one_that_runs_beside_other_work_counts_once():
    starts = (
        "%start (p: f32[8]) -> (f32[8], f32[16], u32[]) {\n  %p = f32[8] parameter(0)\n"
        f'  %g = f32[16] all-gather(%p), {GROUP}, frontend_attributes={{chain_id="0"}}\n'
        '  ROOT %s = (f32[8], f32[16], u32[]) custom-call(%g), custom_call_target="AsyncCollectiveStart"\n}\n'
    )
    goes_on = (
        "%on (q: f32[8]) -> f32[16] {\n  %q = f32[8] parameter(0)\n"
        f'  ROOT %h = f32[16] all-gather(%q), {GROUP}, frontend_attributes={{chain_id="0"}}\n}}\n'
    )
    offloaded = (
        "%core (w: f32[8]) -> f32[16] {\n  %w = f32[8] parameter(0)\n"
        f'  ROOT %z = f32[16] all-gather(%w), {GROUP}\n}}, execution_thread="sparsecore"\n'
    )
    found = of(
        [
            "%f = (f32[8], f32[16], u32[]) fusion(%a), kind=kCustom, calls=%start",
            "%e = f32[16] fusion(%a), kind=kCustom, calls=%on",
            "%d = f32[16] all-gather-done(%f)",
            "%c = ((f32[8]), f32[16]) call-start(%a), to_apply=%core",
        ],
        extra=f"{starts}\n{goes_on}\n{offloaded}",
    )
    assert [(one.kind, one.times) for one in found] == [("all-gather", 1.0)] * 2


def test_what_goes_between_slices():
    handler = 'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"'
    summed, copied = of(
        [
            f'%s = (f32[8], u32[], token[]) send(%a, %t), {handler},_xla_megascale_reduce_operation="SUM"}}',
            f"%c = (f32[8], u32[], token[]) send(%a, %t), {handler}}}",
        ],
        {"data": 4, "fsdp": 2, "tensor": 2},
        across={"data": 4, "fsdp": 1, "tensor": 1},
    )
    assert (summed.kind, summed.axes, summed.payload, summed.sent) == ("send", ("data",), 32, 48)
    assert copied.sent == 32


def test_devices_of_nodes_are_numbered_in_one_go_and_those_of_slices_by_slice():
    line, across = "%r = f32[8] all-reduce(%a), replica_groups=[4,2]<=[8]", {"data": 2, "fsdp": 1, "tensor": 1}
    text = f"HloModule m\n\nENTRY %main (a: f32[8]) -> f32[8] {{\n  %a = f32[8] parameter(0)\n  {line}\n}}\n"
    executed = Program.parse(text).executed()
    [node] = collectives(executed, CUBE, across, one_program=True)
    assert (node.axes, node.slices) == (("tensor",), 1)
    [within] = collectives(executed, {"data": 4, "fsdp": 2, "tensor": 2}, across)
    assert (within.axes, within.slices) == (("tensor",), 1)
    text = text.replace("[4,2]<=[8]", "[1,8]<=[8]")
    [both] = collectives(Program.parse(text).executed(), CUBE, across, one_program=True)
    assert (both.axes, both.slices) == (("data", "fsdp", "tensor"), 2)


@pytest.mark.parametrize("axes", [axes for count in (1, 2, 3) for axes in itertools.combinations(CUBE, count)])
def test_a_compiled_sum_goes_along_the_axes_that_it_is_divided_over(axes):
    mesh = Layout(data=2, fsdp=2, tensor=2).mesh

    def placed(shape, *spec):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    product = jax.jit(jnp.matmul, out_shardings=NamedSharding(mesh, PartitionSpec()))
    text = product.lower(placed((16, 64), None, axes), placed((64, 8), axes, None)).compile().as_text()
    [one] = collectives(Program.parse(text).executed(), dict(mesh.shape), {})
    assert (one.kind, one.axes, one.payload, one.times) == ("all-reduce", axes, 16 * 8 * 4, 1.0)
    assert one.total == pytest.approx(2 * 512 * (1 - 1 / np.prod([mesh.shape[axis] for axis in axes])))
