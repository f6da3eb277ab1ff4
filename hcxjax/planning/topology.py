"""Devices to compile for that are not there: XLA's own descriptions of TPU pods and of GPUs."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import jax
from jax.sharding import AbstractMesh, AxisType

from hcxjax.mesh import AXES, Layout
from hcxjax.planning.pods import Pod

TPU_COMPILER = "pip install 'jax[tpu]'"
GPU_COMPILER = "pip install 'jax[cuda13]'"


class NoCompilerError(ValueError):
    """XLA's compiler for the pod's chips is not installed; the message says how to."""


def without_accelerators() -> None:
    """Keeps jax and libtpu from looking for chips on this machine; call it before anything asks jax for a device."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # what is compiled for chips that are absent is not kept
    # libtpu asks Google's metadata server which pod it is on, for minutes where there is none.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")


def compile_only_devices(pod: Pod, target_config: Path | None = None) -> list[Any]:
    """Devices of the pod that programs can be compiled for and not run on.

    Args:
      target_config: of GPUs, XLA's description of the chip (a text protobuf `GpuTargetConfigProto`).
    Raises:
      NoCompilerError: it is not installed.
      ValueError: there is no such pod, or no description of the GPU.
    """
    from jax.experimental.topologies import get_topology_desc

    if not pod.chip.torus:
        return _gpus(pod, target_config)
    several = {"num_slices": pod.slices} if pod.slices > 1 else {}
    try:
        return list(get_topology_desc(pod.name, platform="tpu", **several).devices)
    except RuntimeError as error:
        if "not installed" in str(error):
            raise NoCompilerError(
                f"to compile for {pod.name}, XLA needs libtpu, an extra: {TPU_COMPILER} (Google Cloud's terms of use). "
                "Without it, --arithmetic estimates"
            ) from error
        raise ValueError(f"--topology is {pod.name}; libtpu knows no such pod: {error}") from error


def _gpus(pod: Pod, target_config: Path | None) -> list[Any]:
    from jax.experimental.topologies import get_topology_desc

    if target_config is None:
        raise ValueError(
            f"to compile for {pod.name} without one, XLA needs its description: --target_config=FILE, such as "
            f"xla/backends/gpu/target_config/specs/{pod.chip.name.lower()}.txtpb of github.com/openxla/xla"
        )
    if not target_config.is_file():
        raise ValueError(f"--target_config is {target_config}, which is no file")
    nodes, size = pod.shape
    described = {"target_config": target_config.read_text(), "topology": f"1x{nodes}x{size}"}
    try:
        return list(get_topology_desc(f"{nodes}x{size}", platform="cuda", **described).devices)
    except NotImplementedError as error:
        raise NoCompilerError(
            f"to compile for {pod.name}, XLA needs its CUDA plugin, an extra: {GPU_COMPILER}. Without it, --arithmetic "
            "estimates"
        ) from error


@dataclasses.dataclass(frozen=True)
class PodLayout(Layout):
    """A layout over the devices of a pod.

    Attributes:
      pod_devices: XLA's (`compile_only_devices`); or as many numbers, and then the mesh is abstract: enough to ask how
        an array is divided.
    """

    pod_devices: tuple[Any, ...] = ()

    @classmethod
    def over(cls, layout: Layout, devices: Sequence[Any]) -> "PodLayout":
        """The same axes and rules over other devices."""
        known: dict[str, Any] = {field.name: getattr(layout, field.name) for field in dataclasses.fields(Layout)}
        known |= {"devices": None, "pod_devices": tuple(devices)}
        return cls(**known)

    @property
    def chosen(self) -> list[Any]:
        """The pod's devices."""
        return list(self.pod_devices)

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """Of numbers, an abstract one."""
        if not isinstance(self.pod_devices[0], int):
            return super().mesh
        types = (AxisType.Auto,) * len(AXES)
        return cast(jax.sharding.Mesh, AbstractMesh(self.shape, AXES, axis_types=types))

    @functools.cached_property
    def batch_shards(self) -> int:
        """As of any layout; asked for of every variant of a search."""
        return super().batch_shards

    @functools.cached_property
    def sizes(self) -> dict[str, int]:
        """Axis → size, in the mesh's order."""
        return dict(zip(AXES, self.shape, strict=True))
