"""The attention backends by name, what each can do, and which one a device takes where none is named."""

import dataclasses
import functools
import importlib
import logging
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from hcxjax.kernels.plan import AttentionPlan, Tile
from hcxjax.kernels.reference import reference_attention
from hcxjax.kernels.rotary import Angles
from hcxjax.kernels.target import Target
from hcxjax.kernels.xla import xla_attention
from hcxjax.protocols import Array

_log = logging.getLogger(__name__)


class Kernel(Protocol):
    """Attention of one device over what it holds."""

    def __call__(
        self, q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, plan: AttentionPlan, *, scale: float, angles: Angles | None
    ) -> tuple[Array, Array | None]:
        """(o_BTNH in q's dtype, 0 for padding; lse_BNT, the log of the softmax's sums in float32, or None).

        Both are differentiable by q, k and v. lse of a query that sees no key is `MASKED`, about −1e30.
        """
        ...


class Work(NamedTuple):
    """What a backend is asked for; `parts` are parts of rows, where context parallelism divides them."""

    head_dim: int
    dtype: str
    parts: bool = False


@dataclasses.dataclass(frozen=True)
class Backend:
    """A kernel and its limits.

    Attributes:
      run: the kernel.
      tile: what it takes at a time, unless another tile is asked for.
      rotates: it turns queries itself where angles are given; others take queries that are turned.
      parts: it takes part of a row's queries over other keys, as context parallelism does, and returns lse.
      platforms: of jax, that it compiles for; empty: all.
      devices: what the device's kind has in its name; empty: all kinds.
      head_dims, dtypes: that it can do; empty: all.
    """

    run: Kernel
    tile: Tile = Tile(512, 512)
    rotates: bool = False
    parts: bool = True
    platforms: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    head_dims: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = ()

    def refusal(self, target: Target, work: Work) -> str | None:
        """Why it cannot do this; None: it can."""
        if self.platforms and target.platform not in self.platforms:
            return f"it runs on {', '.join(self.platforms)}, and this is {target.platform}"
        if self.devices and not any(kind in target.device_kind for kind in self.devices):
            return f"it runs on {', '.join(self.devices)}, and this is {target.device_kind}"
        if self.dtypes and work.dtype not in self.dtypes:
            return f"DecoderConfig.dtype is {work.dtype}; it can do {', '.join(self.dtypes)}"
        if self.head_dims and work.head_dim not in self.head_dims:
            return f"DecoderConfig.head_dim is {work.head_dim}; it can do {', '.join(map(str, self.head_dims))}"
        if work.parts and not self.parts:
            return "it takes whole rows, and Layout.context divides them"
        return None


def _later(module: str, name: str) -> Kernel:
    """A kernel whose module is imported when it first runs: some take long, or need what not every machine has."""

    def run(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, plan: AttentionPlan, **settings) -> tuple[Array, Array | None]:
        kernel: Kernel = getattr(importlib.import_module(f"hcxjax.kernels.{module}"), name)
        return kernel(q_BTNH, k_BSKH, v_BSKH, plan, **settings)

    return run


HOPPER = ("H100", "H200", "H800", "H20", "GH200")
"""In the names of GPUs of compute capability 9."""

BLACKWELL = ("B100", "B200", "B300", "GB200", "GB300")
"""In the names of those of 10."""

HALVES = ("bfloat16", "float16")

BACKENDS: Mapping[str, Backend] = {
    "reference": Backend(reference_attention),
    "xla": Backend(xla_attention, tile=Tile(128, 128)),
    "pallas_tpu": Backend(
        _later("pallas_tpu.attention", "pallas_tpu_attention"),
        rotates=True,
        platforms=("tpu",),
        head_dims=(64, 128),
        dtypes=("bfloat16", "float32"),
    ),
    "splash": Backend(
        _later("splash", "splash_attention"),
        parts=False,
        platforms=("tpu",),
        head_dims=(64, 128),
        dtypes=("bfloat16", "float32"),
    ),
    "cudnn": Backend(
        _later("cudnn", "cudnn_attention"),
        parts=False,
        platforms=("gpu",),
        devices=HOPPER + BLACKWELL,
        head_dims=tuple(range(8, 129, 8)),
        dtypes=HALVES,
    ),
    "pallas_gpu": Backend(
        _later("pallas_gpu", "pallas_gpu_attention"),
        tile=Tile(128, 128),
        platforms=("gpu",),
        devices=HOPPER,
        head_dims=(64, 128),
        dtypes=HALVES,
    ),
}

CHOICES = ("pallas_tpu", "cudnn", "xla")
"""What 'auto' asks, one after another."""


def backend_named(name: str, work: Work) -> Backend:
    """The backend of that name, or the one that 'auto' stands for on the devices in use.

    Raises:
      ValueError: there is none, or it cannot do what is asked for; nothing else is taken in its place.
    """
    target = Target.now()
    if name == "auto":
        name = chosen(target, work)
    if name not in BACKENDS:
        raise ValueError(
            f"attention backend {name!r} is unknown; DecoderConfig.attention is one of auto, {', '.join(BACKENDS)}"
        )
    refusal = BACKENDS[name].refusal(target, work)
    if refusal:
        raise ValueError(f"attention backend {name!r} (DecoderConfig.attention) cannot be used: {refusal}")
    return BACKENDS[name]


@functools.cache
def chosen(target: Target, work: Work) -> str:
    """What 'auto' stands for: the first that can do it. Said once in the log."""
    name = next(name for name in CHOICES if BACKENDS[name].refusal(target, work) is None)
    rows = "parts of rows" if work.parts else "whole rows"
    _log.info(
        "attention backend on %s, head dim %d, %s, %s: %s", target.device_kind, work.head_dim, work.dtype, rows, name
    )
    return name
