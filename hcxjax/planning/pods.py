"""Pods: chips and how they are wired, by the names that XLA's topologies have."""

import dataclasses
import functools
import math
import re

from hcxjax.chips import CHIPS, Chip


@dataclasses.dataclass(frozen=True)
class Place:
    """A device that is not there: all that is asked of one to put it in a mesh (`hcxjax.placement`)."""

    id: int
    device_kind: str
    platform: str
    process_index: int
    coords: tuple[int, ...]
    core_on_chip: int
    slice_index: int


@dataclasses.dataclass(frozen=True)
class Pod:
    """Chips of one kind.

    Attributes:
      chip: their kind.
      shape: chips along each dimension of a slice's torus; of GPUs, (nodes, GPUs of a node).
      slices: slices that only the data centre's network connects; of GPUs always 1, because nodes are in `shape`.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @classmethod
    def parse(cls, text: str, slices: int = 1) -> "Pod":
        """`v5p:8x8x8` of TPUs, dimensions as Google's pages give them; `H200:4x8` is four nodes of eight GPUs.

        Raises:
          ValueError: no chip has that name, or no pod that shape.
        """
        name, _, sizes = text.partition(":")
        chip = next((chip for chip in CHIPS if chip.name.lower() == name.lower()), None)
        if chip is None:
            known = ", ".join(chip.name for chip in CHIPS)
            raise ValueError(f"--topology is {text!r}; its chip must be one of {known}, as in v5p:4x4x4")
        dimensions = chip.torus or 2
        if not re.fullmatch(r"\d+(x\d+)*", sizes) or sizes.count("x") != dimensions - 1 or 0 in _sizes(sizes):
            form = "x".join("4" * dimensions) if chip.torus else "NODESx8"
            raise ValueError(f"--topology is {text!r}; a pod of {chip.name} is written {chip.name}:{form}")
        if slices < 1 or (slices > 1 and not chip.torus):
            raise ValueError(
                f"--slices is {slices}; it must be at least 1, and is 1 of GPUs: the shape has their nodes"
            )
        pod = cls(chip, _sizes(sizes), slices)
        if math.prod(pod.shape) > chip.most:
            raise ValueError(f"--topology is {text!r}; a slice of {chip.name} has at most {chip.most:,} chips")
        return pod

    @property
    def name(self) -> str:
        """As it was written, slices aside."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def described(self) -> str:
        """With its slices and chips."""
        slices = f"{self.slices} slices of " if self.slices > 1 else ""
        return f"{slices}{self.name} ({self.chips:,} chips)"

    @property
    def chips(self) -> int:
        """Their number."""
        return math.prod(self.shape) * self.slices

    @property
    def parts(self) -> int:
        """That only the network connects: slices, or of GPUs nodes."""
        return self.slices if self.chip.torus else self.shape[0]

    @property
    def devices(self) -> int:
        """How many devices jax counts."""
        return self.chips * self.chip.devices

    @property
    def device_memory(self) -> float:
        """Bytes that a program may take of one device's HBM."""
        return self.chip.memory / self.chip.devices

    @functools.cached_property
    def places(self) -> tuple[Place, ...]:
        """Stand-ins for its devices, in jax's order as far as meshes depend on it."""
        return tuple(self._places_of_gpus() if not self.chip.torus else self._places_of_tpus())

    def _places_of_gpus(self) -> list[Place]:
        nodes, size = self.shape
        kind = self.chip.kinds[0]
        return [Place(at, kind, "gpu", at // size, (at // size,), 0, at // size) for at in range(nodes * size)]

    def _places_of_tpus(self) -> list[Place]:
        sizes = (*self.shape, 1)[:3]
        hosts = tuple(-(-size // part) for size, part in zip(sizes, (*self.chip.host, 1), strict=False))
        places = []
        for number in range(self.slices):
            for at in range(math.prod(sizes)):
                x, y, z = at % sizes[0], at // sizes[0] % sizes[1], at // sizes[0] // sizes[1]
                host = [a // part for a, part in zip((x, y, z), (*self.chip.host, 1), strict=False)]
                process = host[0] + hosts[0] * (host[1] + hosts[1] * host[2]) + number * math.prod(hosts)
                for core in range(self.chip.devices):
                    places.append(Place(len(places), self.chip.kinds[0], "tpu", process, (x, y, z), core, number))
        # jax lists what a host has one after the other, and some meshes go by that.
        return sorted(places, key=lambda place: (place.slice_index, place.process_index, place.id))

    def rings(self, dimension: int) -> bool:
        """Does the torus close along a dimension, so that both ways round lead everywhere?

        3D tori are made of cubes of 4x4x4 whose optical switches close them; 2D ones close at 16 chips.
        Source: docs.cloud.google.com/tpu/docs/v5p ("cubes"); Austin et al. 2025, "How to scale your model", chapter 2.
        """
        if self.chip.torus == 3:
            return all(size % 4 == 0 for size in self.shape)
        return self.shape[dimension] == 16


_PLANE = ("4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")
_NODES = ("2x8", "4x8", "8x8", "16x8", "32x8", "64x8", "128x8")


def usual_pods(text: str, slices: int = 1) -> list[Pod]:
    """The pod that `text` names; where it names a chip alone, the pods of 16 to 1,024 of it that can usually be had.

    Source: docs.cloud.google.com/tpu/docs/v5e, /v5p and /v6e. Of GPUs, powers of two of nodes of eight.
    Raises:
      ValueError: no chip has that name, or no pod that shape.
    """
    chip = next((chip for chip in CHIPS if chip.name.lower() == text.lower()), None)
    if chip is None:
        return [Pod.parse(text, slices)]
    shapes = {0: _NODES, 2: _PLANE, 3: _CUBES}[chip.torus]
    return [Pod.parse(f"{chip.name}:{shape}", slices) for shape in shapes]


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split("x"))
