"""The least time that an update can take, and what it waits for."""

import dataclasses
import math
from collections.abc import Iterable, Mapping

from hcxjax.planning.collectives import Collective, ring_share
from hcxjax.planning.pods import Pod
from hcxjax.planning.wiring import Wiring

OVERLAP = 0.9
"""Share of the other resources' time that is taken to pass beside the slowest one, where variants are ranked. An
assumption of ours: nothing was measured."""


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds that each resource is busy in an update at its best rate.

    Attributes:
      seconds: by resource: 'compute', 'HBM', 'links of AXIS', 'network'.

    Source: Williams et al. 2009, doi:10.1145/1498765.1498785, with a line for each wire.
    """

    seconds: Mapping[str, float]

    @classmethod
    def of(
        cls,
        pod: Pod,
        wiring: Wiring,
        flops: float,
        moved: float,
        collectives: Iterable[Collective],
        eight_bits: bool = False,
    ) -> "Roofline":
        """Of one device's work.

        Args:
          flops: that it runs.
          moved: bytes between its HBM and its cores.
          collectives: that it takes part in. One along several axes has the wires of all of them; those of an axis are
            busy for every collective that goes along it.
          eight_bits: some matmuls are in int8 or fp8; then all are taken to be, so that it stays a bound.
        """
        chip = pod.chip
        rate = (chip.flops8 if eight_bits else chip.flops) / chip.devices
        seconds = {"compute": flops / rate, "HBM": moved * chip.devices / chip.bandwidth}
        for one in collectives:
            bandwidth = sum(wiring.wires[axis].bandwidth for axis in one.axes)
            within, across = _shares(one, wiring)
            for axis in one.axes:
                if wiring.wires[axis].devices > 1 and within:
                    name = f"links of {axis}"
                    seconds[name] = seconds.get(name, 0.0) + within * one.times / bandwidth
            if across:
                seconds["network"] = seconds.get("network", 0.0) + across * one.times / wiring.network
        return cls(seconds)

    @property
    def bound(self) -> float:
        """No update is faster, however well everything overlaps."""
        return max(self.seconds.values())

    @property
    def bound_by(self) -> str:
        """The resource that is busy longest."""
        return max(self.seconds, key=lambda name: self.seconds[name])

    @property
    def serial(self) -> float:
        """What an update would take if nothing overlapped and every rate were the best."""
        return sum(self.seconds.values())

    @property
    def ranking(self) -> float:
        """Seconds by which variants are compared: the bound, and a tenth of what is beside it (`OVERLAP`)."""
        return self.bound + (1 - OVERLAP) * (self.serial - self.bound)


def _shares(one: Collective, wiring: Wiring) -> tuple[float, float]:
    """(bytes that a device sends within its slice, bytes that it sends to others).

    A collective over both is done within each slice first, so that each of its m devices takes an m-th across. What is
    passed to a neighbour is passed whole, by the devices at a slice's border to one of another slice.
    """
    if one.kind == "send":
        return 0.0, one.sent
    if one.slices == 1:
        return one.sent, 0.0
    if one.kind == "collective-permute":
        return one.payload, one.payload
    members = math.prod(wiring.wires[axis].devices for axis in one.axes)
    within = one.payload * ring_share(one.kind, members)
    return within, one.payload * ring_share(one.kind, one.slices) / members
