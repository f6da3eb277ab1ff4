"""The one einsum of all layers, over a weight or over what stands in its place."""

import jax.numpy as jnp

from hcxjax.mesh import constrain
from hcxjax.models.int8 import Int8Weight
from hcxjax.models.low_rank import LowRankWeight, factored
from hcxjax.protocols import Array


def einsum(equation: str, x: Array, weight: Array | Int8Weight | LowRankWeight, dtype: jnp.dtype) -> Array:
    """The equation in `dtype`.

    Int8 weights are scaled after the sum, where a scale is one for each output. Of a low-rank weight the two thin
    matrices are passed through one after the other, and what comes out is added.

    Args:
      equation: of `x` and the weight, as in 'BTD,DNH->BTNH'.
    """
    if isinstance(weight, LowRankWeight):
        inwards, outwards = factored(equation)
        x_BTR = constrain(jnp.einsum(inwards, x.astype(dtype), weight.a.astype(dtype)), "batch", "length", None)
        change = weight.scale * jnp.einsum(outwards, x_BTR, weight.b.astype(dtype))
        return einsum(equation, x, weight.weight, dtype) + change
    if isinstance(weight, Int8Weight):
        return jnp.einsum(equation, x.astype(dtype), weight.values.astype(dtype)) * weight.scale.astype(dtype)
    return jnp.einsum(equation, x.astype(dtype), weight.astype(dtype))
