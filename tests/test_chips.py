import pytest

from hcxjax.chips import CHIPS, peak_flops


def test_every_chip_is_whole():
    assert len({chip.name for chip in CHIPS}) == len(CHIPS)
    for chip in CHIPS:
        assert chip.source and chip.kinds and chip.devices in (1, 2)
        # Between a laptop's GPU and what exists: a slip of a thousand, or of bits for bytes, is outside.
        assert 1e14 < chip.flops < 1e16 and 1e10 < chip.memory < 1e12 and 5e11 < chip.bandwidth < 1e13
        assert 1e10 < chip.link < 1e12 and 1e9 < chip.network < chip.link
        assert 1.9 < chip.flops8 / chip.flops < 2.1
        assert 50 < chip.flops / chip.bandwidth < 1000


@pytest.mark.parametrize(
    ("kind", "flops"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU v4", 275e12),
        ("TPU7x", 2307e12 / 2),  # jax shows two devices for a chip
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("cpu", None),
    ],
)
def test_the_peak_of_a_device_kind(kind, flops):
    assert peak_flops(kind) == flops
