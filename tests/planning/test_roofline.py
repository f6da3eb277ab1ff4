import pytest

from hcxjax.planning.collectives import Collective
from hcxjax.planning.pods import Pod
from hcxjax.planning.roofline import Roofline
from hcxjax.planning.wiring import Wiring

V5P = Pod.parse("v5p:4x4x4")
WIRES = Wiring.of(V5P, {"data": 1, "fsdp": 16, "tensor": 4})


def collective(kind, *axes, payload=0.0, sent=0.0, times=1.0, slices=1):
    return Collective(kind, axes, True, payload, sent, times, "bf16", "", slices)


def test_each_resource_takes_its_time():
    found = [
        collective("all-gather", "fsdp", sent=40e9, times=2),  # 400 GB/s
        collective("all-reduce", "tensor", sent=10e9),  # 200 GB/s
        collective("all-reduce", "fsdp", "tensor", sent=60e9),  # 600 GB/s, and busy on both
    ]
    roofline = Roofline.of(V5P, WIRES, 459e12 * 0.25, 2765e9 * 0.1, found)
    assert roofline.seconds == pytest.approx(
        {"compute": 0.25, "HBM": 0.1, "links of fsdp": 0.3, "links of tensor": 0.15}
    )
    assert (roofline.bound, roofline.bound_by) == (pytest.approx(0.3), "links of fsdp")
    assert roofline.serial == pytest.approx(0.8)
    assert roofline.bound < roofline.ranking < roofline.serial


def test_matmuls_in_eight_bits_have_their_own_rate():
    assert Roofline.of(V5P, WIRES, 918e12, 0.0, [], eight_bits=True).seconds["compute"] == pytest.approx(1.0)


def test_two_devices_share_a_chip():
    pod = Pod.parse("TPU7x:2x2x1")
    wires = Wiring.of(pod, {"data": 1, "fsdp": 8, "tensor": 1})
    roofline = Roofline.of(pod, wires, 2307e12, 7380e9, [])
    assert roofline.seconds == pytest.approx({"compute": 2.0, "HBM": 2.0})


def test_between_slices_each_device_takes_its_part_across():
    pod = Pod.parse("v5e:4x4", slices=2)
    wires = Wiring.of(pod, {"data": 2, "fsdp": 16, "tensor": 1})
    network = 3.125e9
    alone = Roofline.of(pod, wires, 0.0, 0.0, [collective("all-reduce", "data", payload=network, slices=2)])
    assert alone.seconds["network"] == pytest.approx(1.0) and "links of data" not in alone.seconds
    whole = collective("all-reduce", "data", "fsdp", payload=16 * network, slices=2)
    both = Roofline.of(pod, wires, 0.0, 0.0, [whole])
    assert both.seconds["network"] == pytest.approx(1.0)
    assert both.seconds["links of fsdp"] == pytest.approx(16 * network * 2 * 15 / 16 / 100e9)
    passed = collective("collective-permute", "data", "fsdp", payload=network, slices=2)
    assert Roofline.of(pod, wires, 0.0, 0.0, [passed]).seconds["network"] == pytest.approx(1.0), "all of it"
    sent = Roofline.of(pod, wires, 0.0, 0.0, [collective("send", "data", sent=2 * network)])
    assert sent.seconds["network"] == pytest.approx(2.0)
