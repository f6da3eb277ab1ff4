"""The one way into attention: `attention(q, k, v, plan, ...)`; gin names the backend."""

import functools
import logging
from collections.abc import Callable, Mapping

import jax

from hcxjax.kernels.plan import AttentionPlan
from hcxjax.kernels.reference import reference_attention
from hcxjax.kernels.xla import xla_attention
from hcxjax.protocols import Array
from hcxjax.shapes import shaped

_log = logging.getLogger(__name__)

BACKENDS: Mapping[str, Callable[..., Array]] = {"reference": reference_attention, "xla": xla_attention}


@shaped
def attention(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, plan: AttentionPlan, *, scale: float, backend: str = "auto"
) -> Array:
    """Grouped-query attention of `q` over `k`, `v` as `plan` allows.

    Args:
      scale: multiplies q·k, usually head_dim^-0.5.
      backend: 'auto' (the fastest that the platform has), 'xla' or 'reference'.
    Returns: o_BTNH in q's dtype; 0 for padding.
    Raises:
      ValueError: unknown backend, or query heads that KV heads do not divide.
    """
    heads, kv_heads = q_BTNH.shape[2], k_BSKH.shape[2]
    if heads % kv_heads:
        raise ValueError(f"num_heads is {heads}; it must be a multiple of num_kv_heads, {kv_heads}")
    if backend == "auto":
        backend = "xla"
        _tell(jax.default_backend(), backend)
    if backend not in BACKENDS:
        raise ValueError(
            f"attention backend {backend!r} is unknown; DecoderConfig.attention is one of auto, {', '.join(BACKENDS)}"
        )
    return BACKENDS[backend](q_BTNH, k_BSKH, v_BSKH, plan, scale=scale)


@functools.cache
def _tell(platform: str, backend: str) -> None:
    """Says once what was chosen, not at every program that is compiled."""
    _log.info("attention backend on %s: %s", platform, backend)
