"""PPO's two clipped losses, of every token; masks and means are the caller's.

Both are finite, with finite gradients, for finite arguments of any size, so padding may hold what it likes but NaN.
"""

import jax.numpy as jnp

from hcxjax.protocols import Array
from hcxjax.shapes import shaped

LARGEST_LOG_RATIO = 20.0
"""Ratios are kept within e^±20: beyond, float32 overflows a few steps later and the clipped loss is flat anyway."""


@shaped
def policy_loss(
    logprob_BT: Array, old_BT: Array, advantage_BT: Array, clip: float, dual_clip: float | None = None
) -> Array:
    """loss_BT = max(−A ρ, −A clip(ρ, 1 ± clip)), ρ = exp(log π − log π_old).

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7.

    Args:
      old_BT: log-probabilities under the policy that drew the tokens (or that stands for it).
      advantage_BT: no gradient flows to it or to `old_BT` unless the caller asks for one.
      dual_clip: above 1; where A < 0 the loss is at most −A · dual_clip, so that a token which became far more likely
        cannot dominate the step (Ye et al. 2020, arXiv:1912.09729, "dual-clip PPO"); None: no bound.
    """
    difference_BT = jnp.asarray(logprob_BT, jnp.float32) - jnp.asarray(old_BT, jnp.float32)
    ratio_BT = jnp.exp(jnp.clip(difference_BT, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))
    advantage_BT = jnp.asarray(advantage_BT, jnp.float32)
    clipped_BT = jnp.clip(ratio_BT, 1 - clip, 1 + clip)
    loss_BT = jnp.maximum(-advantage_BT * ratio_BT, -advantage_BT * clipped_BT)
    if dual_clip is None:
        return loss_BT
    return jnp.where(advantage_BT < 0, jnp.minimum(loss_BT, -advantage_BT * dual_clip), loss_BT)


@shaped
def value_loss(value_BT: Array, old_BT: Array, return_BT: Array, clip: float) -> Array:
    """loss_BT = ½ max((V − R)², (clip(V, V_old ± clip) − R)²).

    Source: OpenAI's baselines, described by Engstrom et al. 2020, arXiv:2005.12729, section 3; not in PPO's own paper.

    Args:
      old_BT: the values when the answers were written.
      return_BT: what they should have been.
    """
    value_BT, old_BT = jnp.asarray(value_BT, jnp.float32), jnp.asarray(old_BT, jnp.float32)
    return_BT = jnp.asarray(return_BT, jnp.float32)
    clipped_BT = jnp.clip(value_BT, old_BT - clip, old_BT + clip)
    return jnp.maximum(jnp.square(value_BT - return_BT), jnp.square(clipped_BT - return_BT)) / 2
