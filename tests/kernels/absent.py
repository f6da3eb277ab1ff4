"""A GPU that is not there, to compile for: jax's CUDA plugin needs none, where it is installed."""

import functools
import importlib.util

import jax
import pytest
from jax.experimental.topologies import get_topology_desc
from jax.sharding import SingleDeviceSharding

H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 l2_cache_size: 52428800
  memory_bandwidth: 4800000000000 device_memory_size: 151397597184 device_address_bits: 64
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
}
platform_name: "CUDA"
device_description_str: "NVIDIA H200"
"""
"""What XLA must know of a GPU that is not there, by NVIDIA's data sheet and compute capability 9.0."""


@functools.cache
def _device():
    (device,) = get_topology_desc("h200", platform="cuda", topology="1x1x1", target_config=H200).devices
    return device


def on_h200(shape, dtype):
    """An argument there."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(_device()))


def absent_gpu(test):
    """Marks a test that compiles for it."""
    installed = importlib.util.find_spec("jax_cuda13_plugin")
    return pytest.mark.slow(pytest.mark.skipif(not installed, reason="needs pip install 'jax[cuda13]'")(test))
