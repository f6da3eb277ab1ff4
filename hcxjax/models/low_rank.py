"""Weights that change by a product of two thin matrices: W + scale · a b.

Source: Hu et al. 2021, "LoRA", arXiv:2106.09685, eq. 3; their B A is our a b, inputs first.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from hcxjax.protocols import Array, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRankWeight:
    """A weight and what is added to it, in the weight's place.

    Attributes:
      weight: in the shape that its layer asks for.
      a: float32, the weight's inputs x R; the layers of a stack stand before them, as in the weight.
      b: float32, R x its outputs.
      scale: of a b.
    """

    weight: Array
    a: Array
    b: Array
    scale: float = dataclasses.field(metadata={"static": True})


def factored(equation: str) -> tuple[str, str]:
    """Equations of `a` and of `b`: 'BTNH,NHD->BTD' gives ('BTNH,NHR->BTR', 'BTR,RD->BTD')."""
    x, _, rest = equation.partition(",")
    weight, _, out = rest.partition("->")
    inputs = "".join(letter for letter in weight if letter not in out)
    between = "".join(letter for letter in x if letter not in inputs) + "R"
    return f"{x},{inputs}R->{between}", f"{between},R{weight.removeprefix(inputs)}->{out}"


def thin_pair(
    rng: Array, weight: nn.LogicallyPartitioned, inputs: int, rank: int
) -> dict[str, nn.LogicallyPartitioned]:
    """Boxed `a` and `b` for a boxed weight that is stacked over layers; b is 0, so that nothing is changed yet.

    a ~ N(0, 1/inputs), so that x a has the size of x. The paper draws a Gaussian too and names no variance (section
    4.1). PEFT draws uniformly, with a third of this variance; its option 'gaussian' has a standard deviation of 1/rank.

    Args:
      inputs: how many of the weight's dimensions, after that of the layers, are summed over.
    """
    shape, names, ends = weight.value.shape, weight.names, 1 + inputs
    std = math.prod(shape[1:ends]) ** -0.5
    a = std * jax.random.normal(rng, (*shape[:ends], rank), jnp.float32)
    b = jnp.zeros((shape[0], rank, *shape[ends:]), jnp.float32)
    # No rule knows the axis 'rank': it is too short to be worth dividing.
    return {
        "a": nn.LogicallyPartitioned(a, (*names[:ends], "rank")),
        "b": nn.LogicallyPartitioned(b, (names[0], "rank", *names[ends:])),
    }


@jax.jit
def merged(params: Params) -> Params:
    """Parameters in which every low-rank weight is one array, W + scale · a b, summed in float32; others stay."""

    def leaf(weight: Array | LowRankWeight) -> Array:
        if not isinstance(weight, LowRankWeight):
            return weight
        layers, rank = weight.a.shape[0], weight.a.shape[-1]
        a, b = weight.a.reshape(layers, -1, rank), weight.b.reshape(layers, rank, -1)
        # In full float32 on accelerators, too.
        change = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        return weight.weight + weight.scale * change.reshape(weight.weight.shape)

    return jax.tree.map(leaf, params, is_leaf=lambda weight: isinstance(weight, LowRankWeight))
