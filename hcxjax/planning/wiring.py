"""How fast the devices along a mesh axis can talk, from where they stand in the pod."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from hcxjax.placement import across_slices, arranged
from hcxjax.planning.pods import Place, Pod

DIE_TO_DIE = 6
"""Times a link between two devices of one TPU7x chip: docs.cloud.google.com/tpu/docs/tpu7x."""


@dataclasses.dataclass(frozen=True)
class Wire:
    """What a device has along one mesh axis.

    Attributes:
      devices: along the axis, within a slice.
      bandwidth: bytes/s that it can send within a slice.
      slices: that the axis reaches over.
    """

    devices: int
    bandwidth: float
    slices: int


@dataclasses.dataclass(frozen=True)
class Wiring:
    """A mesh in a pod.

    Attributes:
      wires: of each mesh axis.
      network: bytes/s that a device can send to other slices.
    """

    wires: Mapping[str, Wire]
    network: float

    @classmethod
    def of(cls, pod: Pod, sizes: Mapping[str, int]) -> "Wiring":
        """Of a mesh (axis → size) whose devices are placed as `hcxjax.placement` places them."""
        grid = arranged(sizes, pod.places)
        across = across_slices(sizes, pod.parts)
        wires = {}
        for number, axis in enumerate(sizes):
            line = np.moveaxis(grid, number, -1).reshape(-1, sizes[axis])[0]
            near = [place for place in line if place.slice_index == line[0].slice_index]
            wires[axis] = Wire(len(near), _bandwidth(pod, near), across[axis])
        return cls(wires, pod.chip.network / pod.chip.devices)

    @property
    def across(self) -> dict[str, int]:
        """Axis → over how many slices it reaches."""
        return {axis: wire.slices for axis, wire in self.wires.items()}


def _bandwidth(pod: Pod, line: list[Place]) -> float:
    """Bytes/s that a device can send along a line of them at best.

    A torus gives one link each way round of every dimension that the line reaches along, one link in all where it is no
    ring or only a part of one. Devices of one chip share its links. Lines that share a dimension share its links too,
    which is not subtracted: this is for bounds.
    """
    chip = pod.chip
    if len(line) == 1:
        return 0.0
    if not chip.torus:
        return chip.link
    along = 0.0
    for dimension in range(len(line[0].coords)):
        reach = len({place.coords[dimension] for place in line})
        if reach > 1:
            closed = reach == pod.shape[dimension] and pod.rings(dimension)
            along += chip.link * (2 if closed else 1)
    return along / chip.devices if along else DIE_TO_DIE * chip.link
