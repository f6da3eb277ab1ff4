"""What libtpu makes of the kernels, ahead of time: that they compile and fit, and their schedules beside splash's.

The pages in tests/golden/kernels are `python -m tools.bench bundles --json tests/golden/kernels`.
"""

import importlib.metadata
import importlib.util
import json
from pathlib import Path

import pytest

from tools.bench_bundles import CHIPS, KERNELS, Case, measure

GOLDEN = Path(__file__).parents[2] / "golden/kernels"

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, which compiles for TPUs, is not installed"
)


def per_tile(what, tiles):
    """Of a row of one document, 4,096 tokens in tiles of 512: 8 tiles are masked, 28 are not."""
    masked, plain = (tile[what] for tile in (tiles * 2)[:2])
    return (8 * masked + 28 * plain) / 36


def against_splash(pallas_tpu, splash):
    """The bars of the kernels: memory, bundles and spilled registers."""
    assert pallas_tpu["temporary_mib"] <= 1.2 * splash["temporary_mib"]
    for kernel, tiles in pallas_tpu["tiles"].items():
        assert len(tiles) == 2, kernel
        theirs = splash["tiles"][kernel]
        assert max(tile["span"] for tile in tiles) <= 1.1 * theirs[0]["span"], kernel
        assert per_tile("spills", tiles) <= theirs[0]["spills"], kernel


@pytest.mark.parametrize("chip", CHIPS)
def test_golden_pages_are_within_the_bars(chip):
    page = json.loads((GOLDEN / f"{chip}.json").read_text(encoding="utf-8"))
    assert set(page["cases"]) == {f"{head_dim} x {length}" for head_dim in (64, 128) for length in (4096, 32768)}
    for both in page["cases"].values():
        against_splash(**both)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("length", [4096, 32768])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("chip", CHIPS)
def test_compiles_within_the_bars_and_as_before(chip, head_dim, length):
    now = {side: measure(Case(chip, side, head_dim, length)) for side in KERNELS}
    against_splash(**now)
    page = json.loads((GOLDEN / f"{chip}.json").read_text(encoding="utf-8"))
    if page["libtpu"] != importlib.metadata.version("libtpu"):
        pytest.skip(f"the golden page was made with libtpu {page['libtpu']}")
    before = page["cases"][f"{head_dim} x {length}"]["pallas_tpu"]
    assert now["pallas_tpu"]["temporary_mib"] <= 1.05 * before["temporary_mib"]
    for kernel, tiles in now["pallas_tpu"]["tiles"].items():
        for tile, old in zip(tiles, before["tiles"][kernel], strict=True):
            assert tile["span"] <= 1.02 * old["span"], f"{kernel}; a new page is made by tools.bench bundles"


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
def test_float32_compiles(chip):
    assert len(measure(Case(chip, "pallas_tpu", 128, dtype="float32"))["tiles"]["dkv"]) == 2
