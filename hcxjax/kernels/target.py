"""What a program is compiled for."""

from typing import NamedTuple

import jax


class Target(NamedTuple):
    """The devices of the mesh in use, which need not be present, or this process's first."""

    platform: str
    device_kind: str

    @classmethod
    def now(cls) -> "Target":
        """Of the program that is being traced."""
        device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
        return cls(device.platform, device.device_kind)
