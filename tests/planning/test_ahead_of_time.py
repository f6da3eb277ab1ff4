"""The real train step, compiled for pods that are absent."""

import json

import pytest

from tests.planning.ahead import needs_libtpu, plan, run
from tests.runs import ROOT

TINY = [f"--gin_file={ROOT / 'tests/tiny.gin'}", "--gin.RUN_DIR=nowhere"]


@needs_libtpu
def test_a_small_step_compiles_for_sixteen_chips(tmp_path):
    mesh = ["--gin.BATCH=16", "--gin.Layout.data=1", "--gin.Layout.fsdp=8", "--gin.Layout.tensor=2"]
    wider = ["--gin.DecoderConfig.num_kv_heads=2", "--gin.DecoderConfig.remat=full"]
    plan(tmp_path, *TINY, *mesh, *wider, "--topology=v5e:4x4", "--quick", timeout=180)
    told = json.loads((tmp_path / "plan.json").read_text())
    assert told["origin"] == "compiled" and "libtpu" in told["versions"]
    assert set(told["collective_bytes"]) >= {"fsdp", "tensor"}
    assert told["moved_leaves"] == []
    assert 0 < told["memory_bytes"]["activations"] < told["memory_bytes"]["total"] < 1e8
    # Its matmuls, but for those in loops whose turns depend on the data.
    assert told["device_flops"] * 16 == pytest.approx(told["model_flops"], rel=0.8)


SAME_MESHES = """
from hcxjax.planning.topology import compile_only_devices, without_accelerators
without_accelerators()
from hcxjax.placement import arranged
from hcxjax.planning.pods import Pod

def where(devices, sizes):
    grid = arranged(sizes, devices).flat
    return [(device.slice_index or 0, tuple(device.coords), device.core_on_chip) for device in grid]

for name, slices, *shape in [
    ("v5e:4x4", 1, 1, 8, 2),
    ("v5e:4x4", 2, 2, 4, 4),
    ("v5p:4x4x4", 1, 2, 16, 2),
    ("v5p:4x4x4", 1, 1, 16, 4),
    ("v5p:4x4x8", 1, 1, 64, 2),
    ("v5p:8x8x16", 1, 1, 1024, 1),
    ("v6e:16x16", 1, 4, 16, 4),
    ("TPU7x:2x2x1", 1, 1, 4, 2),
]:
    pod, sizes = Pod.parse(name, slices), dict(zip(("data", "fsdp", "tensor"), shape))
    assert where(compile_only_devices(pod), sizes) == where(pod.places, sizes), name
    print(name, "is as it is")
"""


@needs_libtpu
@pytest.mark.slow
def test_stand_ins_are_where_the_devices_are():
    """So that arithmetic goes by the mesh that will be compiled for and run on."""
    assert run(["-c", SAME_MESHES], timeout=120).count("is as it is") == 8


@needs_libtpu
@pytest.mark.slow
def test_two_slices_talk_through_the_network(tmp_path):
    mesh = ["--gin.BATCH=32", "--gin.Layout.data=2", "--gin.Layout.fsdp=16"]
    plan(tmp_path, *TINY, *mesh, "--topology=v5e:4x4", "--slices=2", "--quick", timeout=300)
    told = json.loads((tmp_path / "plan.json").read_text())
    assert told["chips"] == 32 and told["collective_bytes"]["data"].keys() == {"send"}
    assert told["least_seconds"]["network"] > 0


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("pod", ["v5p:2x2x4", "v6e:4x4", "TPU7x:2x2x2"])
def test_every_chip_is_compiled_for(tmp_path, pod):
    mesh = ["--gin.BATCH=16", "--gin.Layout.data=1", "--gin.Layout.fsdp=16"]
    plan(tmp_path, *TINY, *mesh, f"--topology={pod}", "--quick", timeout=300)
    told = json.loads((tmp_path / "plan.json").read_text())
    assert told["collective_bytes"]["fsdp"]
    assert all("while" in name for name in told["uncounted"]), "all else is counted"
