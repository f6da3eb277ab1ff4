"""The chips that runs are planned for and measured on, from their vendors' pages."""

import dataclasses

GIB = float(1 << 30)


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a chip can do at best. Bandwidths and rates are never reached in full.

    Attributes:
      name: as topologies are written, the 'v5p' of 'v5p:4x4x4'.
      kinds: how jax's device kinds begin.
      flops: dense bf16 FLOP/s.
      flops8: dense operations/s in eight bits, int8 or fp8, whichever it does more of.
      memory: bytes of HBM that a program may take; what XLA keeps for itself is not counted.
      bandwidth: bytes/s of HBM.
      link: bytes/s that one link to a neighbour carries one way; where `torus` is 0, all links to the switch together.
      torus: dimensions of the torus that links span; 0 where a node's chips meet in a switch.
      network: bytes/s one way to chips of other slices or nodes.
      devices: how many devices jax shows for one chip; they share all of the above.
      host: chips of a host; of a torus, the corner to corner sizes of what one host holds.
      most: chips that one slice has at most.
      source: where the figures are from.
    """

    name: str
    kinds: tuple[str, ...]
    flops: float
    flops8: float
    memory: float
    bandwidth: float
    link: float
    torus: int
    network: float
    devices: int
    host: tuple[int, ...]
    most: int
    source: str

    @property
    def device_flops(self) -> float:
        """FLOP/s of one of jax's devices."""
        return self.flops / self.devices


# Google's pages give the bandwidth of all links of a chip, both ways together: a link has a fourth (2D torus) or a
# sixth (3D) of it, one way the half of that. Memory is what XLA of libtpu 0.0.42 says there is when a program asks for
# more.
CHIPS = (
    Chip(
        name="v5e",
        kinds=("TPU v5 lite", "TPU v5e"),
        flops=197e12,
        flops8=393e12,
        memory=15.75 * GIB,
        bandwidth=819e9,
        link=400e9 / 4 / 2,
        torus=2,
        network=6.4e12 / 256 / 8,
        devices=1,
        host=(2, 2),
        most=256,
        source="docs.cloud.google.com/tpu/docs/v5e",
    ),
    Chip(
        name="v5p",
        kinds=("TPU v5p", "TPU v5"),
        flops=459e12,
        flops8=918e12,
        memory=95.74 * GIB,
        bandwidth=2765e9,
        link=1200e9 / 6 / 2,
        torus=3,
        network=50e9 / 8,
        devices=1,
        host=(2, 2, 1),
        most=6144,
        source="docs.cloud.google.com/tpu/docs/v5p",
    ),
    Chip(
        name="v6e",
        kinds=("TPU v6 lite", "TPU v6e"),
        flops=918e12,
        flops8=1836e12,
        memory=31.25 * GIB,
        bandwidth=1638e9,
        link=800e9 / 4 / 2,
        torus=2,
        network=100e9 / 8,
        devices=1,
        host=(2, 2),
        most=256,
        source="docs.cloud.google.com/tpu/docs/v6e, .../tpu7x",
    ),
    Chip(
        name="TPU7x",
        kinds=("TPU7x",),
        flops=2307e12,
        flops8=4614e12,
        memory=2 * 94.75 * GIB,
        bandwidth=7380e9,
        link=1200e9 / 6 / 2,
        torus=3,
        network=100e9 / 8,
        devices=2,
        host=(2, 2, 1),
        most=9216,
        source="docs.cloud.google.com/tpu/docs/tpu7x",
    ),
    Chip(
        name="H100",
        kinds=("NVIDIA H100",),
        flops=989e12,
        flops8=1979e12,
        memory=80e9,
        bandwidth=3350e9,
        link=900e9 / 2,
        torus=0,
        network=400e9 / 8,
        devices=1,
        host=(8,),
        most=1 << 20,
        source="nvidia.com/en-us/data-center/h100 (SXM); a node of 8 with a 400 Gb/s adapter a GPU",
    ),
    Chip(
        name="H200",
        kinds=("NVIDIA H200",),
        flops=989e12,
        flops8=1979e12,
        memory=141e9,
        bandwidth=4800e9,
        link=900e9 / 2,
        torus=0,
        network=400e9 / 8,
        devices=1,
        host=(8,),
        most=1 << 20,
        source="nvidia.com/en-us/data-center/h200 (SXM); a node of 8 with a 400 Gb/s adapter a GPU",
    ),
)
"""All that can be planned for."""

_MEASURED_ONLY = {"TPU v4": 275e12, "NVIDIA A100": 312e12}
"""FLOP/s of chips that runs may be measured on, though none is planned for them; by device kind."""


def chip_of(kind: str) -> Chip | None:
    """The chip of a device of this kind (jax's `device_kind`): the longest match, 'TPU v5 lite' is no 'TPU v5'."""
    matches = [(len(start), chip) for chip in CHIPS for start in chip.kinds if kind.startswith(start)]
    return max(matches, key=lambda match: match[0])[1] if matches else None


def peak_flops(kind: str) -> float | None:
    """Dense bf16 FLOP/s of a device of this kind; None where it is not known."""
    chip = chip_of(kind)
    others = (flops for start, flops in _MEASURED_ONLY.items() if kind.startswith(start))
    return chip.device_flops if chip else next(others, None)
