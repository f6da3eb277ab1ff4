"""The pieces of a block: weight einsums, RMSNorm, SwiGLU, rotary embedding."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from hcxjax.kernels.rotary import Angles
from hcxjax.mesh import constrain
from hcxjax.models.config import DecoderConfig
from hcxjax.models.weights import einsum
from hcxjax.protocols import Array
from hcxjax.shapes import shaped


class Einsum(nn.Module):
    """A weight and the equation it enters: the equation is the layer. Its result has the layer's name for remat.

    Attributes:
      equation: two inputs, the second is the weight, as in 'BTD,DNH->BTNH'.
      shape: of the weight.
      axes: its logical axes.
      inputs: how many of its leading dimensions are summed over; the initial scale is their product^-0.5.
    """

    equation: str
    shape: Sequence[int]
    axes: Sequence[str]
    dtype: jnp.dtype
    inputs: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """The equation on `x` in the compute dtype."""
        std = math.prod(self.shape[: self.inputs]) ** -0.5
        initialise = nn.with_logical_partitioning(nn.initializers.truncated_normal(std), tuple(self.axes))
        weight = self.param("weight", initialise, tuple(self.shape), jnp.float32, unbox=True)
        return checkpoint_name(einsum(self.equation, x, weight, self.dtype), str(self.name))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + ε) · weight, in float32. Source: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4."""

    epsilon: float

    @nn.compact
    def __call__(self, x_BTD: Array) -> Array:
        """Same shape and dtype as `x_BTD`."""
        initialise = nn.with_logical_partitioning(nn.initializers.ones_init(), ("norm",))
        weight_D = self.param("weight", initialise, (x_BTD.shape[-1],), jnp.float32, unbox=True)
        x32_BTD = x_BTD.astype(jnp.float32)
        square_BT1 = jnp.mean(jnp.square(x32_BTD), axis=-1, keepdims=True)
        return (x32_BTD * jax.lax.rsqrt(square_BT1 + self.epsilon) * weight_D).astype(x_BTD.dtype)


class SwiGLU(nn.Module):
    """(silu(x W_gate) * x W_up) W_down. Source: Shazeer 2020, arXiv:2002.05202, eq. 6, without biases."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x_BTD: Array) -> Array:
        """Same shape as `x_BTD`."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        wide = {"shape": (config.embed_dim, config.mlp_dim), "axes": ("embed", "mlp"), "dtype": dtype}
        gate_BTF = Einsum("BTD,DF->BTF", name="gate", **wide)(x_BTD)
        up_BTF = Einsum("BTD,DF->BTF", name="up", **wide)(x_BTD)
        hidden_BTF = constrain(nn.silu(gate_BTF) * up_BTF, "batch", "length", "mlp")
        shape = (config.mlp_dim, config.embed_dim)
        return Einsum("BTF,FD->BTD", shape, ("mlp", "embed"), dtype, name="down")(hidden_BTF)


@shaped
def rotary_angles(positions_BT: Array, config: DecoderConfig) -> Angles:
    """Of queries and keys at these positions."""
    frequencies_E = jnp.asarray(config.rotary_frequencies(), jnp.float32)
    angles_BTE = positions_BT[..., None].astype(jnp.float32) * frequencies_E
    return jnp.cos(angles_BTE), jnp.sin(angles_BTE)
