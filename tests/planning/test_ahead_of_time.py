"""The real train step, compiled for pods that are absent."""

import json

import pytest

from hcxjax.main import configure
from hcxjax.planning.flops import matmul_weights, recomputed
from tests.kernels.absent import H200, absent_gpu
from tests.planning.ahead import needs_libtpu, plan, run
from tests.runs import ROOT
from tools.plan import step_of

TINY = [f"--gin_file={ROOT / 'tests/tiny.gin'}", "--gin.RUN_DIR=nowhere"]

KERNELS = [
    "--gin.LENGTH=1024",
    "--gin.LanguageModel.loss_chunk=512",
    *(f"--gin.DecoderConfig.{name}" for name in ("max_length=1024", "head_dim=128", "embed_dim=128")),
    "--gin.DecoderConfig.dtype='bfloat16'",
]
"""Of a size and dtype that the chips' own attention kernels take, and a head in two chunks."""


def flops_of(options, scores, heads):
    """Of an update whose program computes so many times what forward would of all T x T scores, and of the head."""
    bindings = [option.removeprefix("--gin.") for option in options if option.startswith("--gin.")]
    experiment, _ = configure([str(ROOT / "tests/tiny.gin")], bindings)
    step = step_of(experiment, 0)
    model, again = step.model, recomputed(step.model)
    weights = sum((4 if name in again else 3) * size for name, size in matmul_weights(model).items())
    a_layer = 2 * weights + scores * 4 * model.num_heads * model.head_dim * step.length
    return step.tokens * (model.num_layers * a_layer + heads * 2 * model.vocab_size * model.embed_dim)


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
    # Twice forward, and of each of backward's matmuls what is not there yet; logits of one chunk are kept.
    least = flops_of([*TINY, *mesh, *wider], scores=4, heads=3)
    assert told["device_flops"] * 16 == pytest.approx(least, rel=0.01) and told["uncounted"] == []


@needs_libtpu
@pytest.mark.slow
def test_a_step_with_the_chips_own_kernels_compiles(tmp_path):
    mesh = ["--gin.BATCH=16", "--gin.Layout.data=1", "--gin.Layout.fsdp=8", "--gin.Layout.tensor=2"]
    options = [*TINY, *KERNELS, *mesh, "--gin.DecoderConfig.num_kv_heads=2", "--gin.DecoderConfig.remat=full"]
    plan(tmp_path, *options, "--topology=v5e:4x4", "--quick", timeout=300)
    told = json.loads((tmp_path / "plan.json").read_text())
    # They say that they compute the half of all scores, of tiles on the diagonal too.
    assert told["device_flops"] * 16 == pytest.approx(flops_of(options, scores=5.5 / 2, heads=4), rel=0.01)
    assert told["uncounted"] == [] and told["moved_leaves"] == []


GPUS = ["--gin.BATCH=16", "--gin.Layout.data=1", "--gin.Layout.fsdp=4", "--gin.Layout.tensor=2"]


def on_h200s(folder, *options):
    """The plan of a step on eight of them, as numbers."""
    described = folder / "h200.txtpb"
    described.write_text(H200)
    plan(folder, *options, f"--target_config={described}", timeout=300)
    told = json.loads((folder / "plan.json").read_text())
    assert told["origin"] == "compiled" and "jax-cuda13-plugin" in told["versions"]
    assert set(told["collective_bytes"]) >= {"fsdp", "tensor"} and told["moved_leaves"] == []
    assert 0 < told["memory_bytes"]["activations"] < told["memory_bytes"]["total"] < 1e9
    return told


@absent_gpu
def test_a_small_step_compiles_for_gpus_that_are_absent(tmp_path):
    options = [*TINY, *GPUS, "--gin.DecoderConfig.num_kv_heads=2"]
    told = on_h200s(tmp_path, *options, "--topology=H200:1x8")
    assert told["device_flops"] * 8 == pytest.approx(flops_of(options, scores=3, heads=3), rel=0.01)
    assert told["uncounted"] == [] and "network" not in told["least_seconds"]


@absent_gpu
def test_two_nodes_of_gpus_with_cudnn_attention(tmp_path):
    options = [*TINY, *KERNELS, *GPUS, "--gin.DecoderConfig.num_kv_heads=2"]
    told = on_h200s(tmp_path, *options, "--topology=H200:2x4")
    assert any("fmhaSoftmax" in name for name in told["uncounted"]), "it does not say what it computes"
    assert told["device_flops"] * 8 >= flops_of(options, scores=4.5 * 0.75, heads=4), "so arithmetic stands in"
    assert told["least_seconds"]["network"] > 0


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
