import subprocess
import sys

import jax
import pytest

from hcxjax.mesh import Layout
from hcxjax.planning.pods import Pod
from hcxjax.planning.topology import NoCompilerError, PodLayout, compile_only_devices

HAS_LIBTPU = "import importlib.util, sys; sys.exit(importlib.util.find_spec('libtpu') is None)"


def test_a_layout_over_stand_ins_says_how_arrays_are_divided():
    layout = PodLayout.over(Layout(data=2, fsdp=-1, tensor=4, devices=(0, 1)), range(64))
    assert layout.sizes == {"pipe": 1, "data": 2, "fsdp": 8, "context": 1, "tensor": 4}
    assert layout.sharding("vocab", "embed").shard_shape((64, 64)) == (16, 8)
    assert layout.batch_shards == 16
    assert isinstance(layout.mesh, jax.sharding.AbstractMesh)


def test_a_layout_over_devices_that_are_there_is_over_these():
    layout = PodLayout.over(Layout(data=2, tensor=2), jax.devices()[4:])
    assert {device.id for device in layout.mesh.devices.flat} == {4, 5, 6, 7}


@pytest.mark.skipif(
    subprocess.run([sys.executable, "-c", HAS_LIBTPU], check=False).returncode == 0, reason="libtpu is installed"
)
def test_without_libtpu_the_message_names_the_command():
    with pytest.raises(NoCompilerError, match=r"needs libtpu, an extra: pip install 'jax\[tpu\]'.*--arithmetic"):
        compile_only_devices(Pod.parse("v5e:4x4"))


def test_gpus_need_a_description_and_a_plugin(tmp_path):
    pod = Pod.parse("H200:1x8")
    with pytest.raises(ValueError, match=r"--target_config=FILE, such as .*specs/h200\.txtpb"):
        compile_only_devices(pod)
    with pytest.raises(ValueError, match="which is no file"):
        compile_only_devices(pod, tmp_path / "none.txtpb")
    described = tmp_path / "h200.txtpb"
    described.write_text("")
    if "cuda" not in {device.platform for device in jax.devices()}:
        with pytest.raises(NoCompilerError, match=r"pip install 'jax\[cuda13\]'"):
            compile_only_devices(pod, described)
