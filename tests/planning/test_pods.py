import pytest

from hcxjax.chips import CHIPS
from hcxjax.planning.pods import Pod, usual_pods


@pytest.mark.parametrize(
    ("text", "slices", "chips", "devices"),
    [
        ("v5e:16x16", 1, 256, 256),
        ("V5P:8x8x8", 2, 1024, 1024),
        ("TPU7x:2x2x1", 1, 4, 8),
        ("H200:4x8", 1, 32, 32),
    ],
)
def test_pods_by_name(text, slices, chips, devices):
    pod = Pod.parse(text, slices)
    assert (pod.chips, pod.devices, len(pod.places)) == (chips, devices, devices)
    assert pod.name.lower() == text.lower()
    places = {(place.slice_index, place.coords, place.core_on_chip) for place in pod.places}
    assert len(places) == (devices if pod.chip.torus else 4)
    assert str(chips) in pod.described.replace(",", "")


@pytest.mark.parametrize(
    ("text", "slices", "message"),
    [
        ("v9:4x4", 1, r"its chip must be one of v5e, v5p"),
        ("v5p:4x4", 1, r"a pod of v5p is written v5p:4x4x4"),
        ("v5e:4x0", 1, r"a pod of v5e is written v5e:4x4"),
        ("v5e", 1, r"a pod of v5e is written"),
        ("H200:8", 1, r"a pod of H200 is written H200:NODESx8"),
        ("v5e:16x32", 1, r"a slice of v5e has at most 256 chips"),
        ("v5e:4x4", 0, r"--slices is 0"),
        ("H200:2x8", 2, r"--slices is 2; .* GPUs"),
    ],
)
def test_pods_that_cannot_be(text, slices, message):
    with pytest.raises(ValueError, match=message):
        Pod.parse(text, slices)


def test_tori_close():
    assert Pod.parse("v5p:4x4x8").rings(2) and not Pod.parse("v5p:2x4x4").rings(2)
    assert Pod.parse("v6e:8x16").rings(1) and not Pod.parse("v6e:8x16").rings(0)


def test_memory_is_of_one_of_jax_s_devices():
    chip = next(chip for chip in CHIPS if chip.name == "TPU7x")
    assert Pod.parse("TPU7x:2x2x1").device_memory == chip.memory / 2


def test_a_chip_alone_is_its_usual_pods():
    assert [pod.chips for pod in usual_pods("v5e")] == [16, 32, 64, 128, 256]
    assert [pod.chips for pod in usual_pods("v5p", 2)][-1] == 2048
    assert usual_pods("v6e:4x4", 2) == [Pod.parse("v6e:4x4", 2)]
    assert {pod.shape[1] for pod in usual_pods("h200")} == {8}
