"""Which device stands where in a mesh, so that axes that talk much have the wires to do it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.experimental import mesh_utils


def arranged(sizes: Mapping[str, int], devices: Sequence[Any]) -> np.ndarray:
    """Devices in the shape of a mesh.

    Where they lie in several slices (TPU slices, or nodes of GPUs), the outermost axes reach across and the others stay
    within a slice. Within a torus an axis takes whole dimensions where it can, and part of one where it cannot.

    Args:
      sizes: axis → size, outermost first; their product is the number of devices.
      devices: jax's, or whatever else says its `device_kind` and coordinates.
    Raises:
      ValueError: the axes cannot be divided over the slices.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    shape = tuple(sizes.values())
    if slices == 1:
        try:
            return mesh_utils.create_device_mesh(shape, devices)
        except NotImplementedError:  # an axis is no product of whole dimensions, such as 2 on a 4x4x4 torus
            return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    across = across_slices(sizes, slices)
    within = tuple(size // across[axis] for axis, size in sizes.items())
    return mesh_utils.create_hybrid_device_mesh(within, tuple(across.values()), devices, allow_split_physical_axes=True)


def across_slices(sizes: Mapping[str, int], slices: int) -> dict[str, int]:
    """{axis: over how many slices it reaches}, the outermost axes first.

    Raises:
      ValueError: the axes cannot be divided over the slices.
    """
    across, left = {}, slices
    for axis, size in sizes.items():
        across[axis] = math.gcd(size, left)
        left //= across[axis]
    if left > 1:
        described = " x ".join(f"{axis}={size}" for axis, size in sizes.items())
        raise ValueError(
            f"Layout {described} cannot be laid over {slices} slices; make Layout.data a multiple of {slices}"
        )
    return across
