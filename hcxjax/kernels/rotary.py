"""Rotary positions: queries and keys turned by an angle that grows with their position."""

import jax.numpy as jnp

from hcxjax.protocols import Array

Angles = tuple[Array, Array]
"""(cos_BTE, sin_BTE) with E = head_dim/2 columns, float32."""


def rotate(x_BTNH: Array, angles: Angles) -> Array:
    """Rotary embedding, half-split: pair i is (x_i, x_{i+H/2}).

    Source: Su et al. 2021, arXiv:2104.09864, eq. 34. Deviation: pairs are the two halves (NeoX, Llama), not neighbours.
    """
    cos_BT1E, sin_BT1E = (part[:, :, None, :] for part in angles)
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cos_BT1E - second * sin_BT1E, second * cos_BT1E + first * sin_BT1E]
    return jnp.concatenate(rotated, axis=-1).astype(x_BTNH.dtype)
