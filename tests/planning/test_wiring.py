import pytest

from hcxjax.planning.pods import Pod
from hcxjax.planning.wiring import Wiring


def wires(name, slices=1, **sizes):
    wiring = Wiring.of(Pod.parse(name, slices), {"data": 1, "fsdp": 1, "tensor": 1, **sizes})
    return {axis: wire.bandwidth / 1e9 for axis, wire in wiring.wires.items() if wire.devices > 1}


@pytest.mark.parametrize(
    ("name", "sizes", "expected"),
    [
        # A v5p link carries 100 GB/s one way; rings have two of them in each dimension.
        ("v5p:4x4x4", {"fsdp": 16, "tensor": 4}, {"fsdp": 400, "tensor": 200}),
        ("v5p:4x4x4", {"fsdp": 64}, {"fsdp": 600}),
        # Half of a dimension is no ring; what is left of it is none either.
        ("v5p:4x4x4", {"fsdp": 32, "tensor": 2}, {"fsdp": 500, "tensor": 100}),
        # Less than a cube has no links back.
        ("v5p:2x2x4", {"fsdp": 16}, {"fsdp": 300}),
        ("v5e:4x4", {"fsdp": 16}, {"fsdp": 100}),
        ("v5e:16x16", {"fsdp": 16, "tensor": 16}, {"fsdp": 100, "tensor": 100}),
        # Two devices of a TPU7x chip share its links; what is between them is six times as fast.
        ("TPU7x:4x4x4", {"fsdp": 128}, {"fsdp": 300}),
        ("TPU7x:2x2x1", {"fsdp": 4, "tensor": 2}, {"fsdp": 100, "tensor": 600}),
        ("H200:1x8", {"fsdp": 8}, {"fsdp": 450}),
    ],
)
def test_bandwidth_of_axes(name, sizes, expected):
    assert wires(name, **sizes) == pytest.approx(expected)


def test_axes_across_slices():
    wiring = Wiring.of(Pod.parse("v5e:4x4", 2), {"data": 2, "fsdp": 16, "tensor": 1})
    assert wiring.across == {"data": 2, "fsdp": 1, "tensor": 1}
    assert {axis: wire.devices for axis, wire in wiring.wires.items()} == {"data": 1, "fsdp": 16, "tensor": 1}
    assert wiring.network == pytest.approx(3.125e9)
    assert wiring.wires["data"].bandwidth == 0, "within a slice it is one device"
    nodes = Wiring.of(Pod.parse("H200:2x8"), {"data": 2, "fsdp": 8, "tensor": 1})
    assert nodes.across["data"] == 2 and nodes.network == 50e9
