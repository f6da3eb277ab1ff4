"""The one way into attention on a device: `attention(q, k, v, plan, ...)`; gin names the backend."""

from hcxjax.kernels.backends import Work, backend_named
from hcxjax.kernels.plan import AttentionPlan
from hcxjax.kernels.rotary import Angles, rotate
from hcxjax.protocols import Array
from hcxjax.shapes import shaped


@shaped
def attention(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    plan: AttentionPlan,
    *,
    scale: float,
    angles: Angles | None = None,
    backend: str = "auto",
    parts: bool = False,
) -> tuple[Array, Array | None]:
    """Grouped-query attention of `q` over `k`, `v` as `plan` allows.

    Args:
      scale: multiplies q·k, usually head_dim^-0.5.
      angles: turns the queries first; keys are turned already. None: so are the queries.
      backend: a name in `hcxjax.kernels.backends`, or 'auto'.
      parts: rows are divided over devices: the queries are not all of a row, or the keys another part of it.
    Returns: o_BTNH in q's dtype, 0 for padding; lse_BNT = log Σ_s exp(scale q·k_s), float32, or None where the backend
      keeps it to itself.
    Raises:
      ValueError: unknown backend, one that cannot do this, or query heads that KV heads do not divide.
    """
    heads, kv_heads, head_dim = *q_BTNH.shape[2:3], *k_BSKH.shape[2:]
    if heads % kv_heads:
        raise ValueError(f"num_heads is {heads}; it must be a multiple of num_kv_heads, {kv_heads}")
    chosen = backend_named(backend, Work(head_dim, q_BTNH.dtype.name, parts))
    if angles is not None and not chosen.rotates:
        q_BTNH, angles = rotate(q_BTNH, angles), None
    return chosen.run(q_BTNH, k_BSKH, v_BSKH, plan, scale=scale, angles=angles)
