"""Layers of a stack by number, inside a loop: their gradients are added where the weights lie, and no copy is kept.

Left to itself, a loop that picks weights by a number it computes keeps what it picked, in every step, for the backward
pass, and adds the gradient of a whole stack for every layer picked.
"""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias, TypeVar

import jax

from hcxjax.protocols import Array, Params, PyTree

T = TypeVar("T")

Layer: TypeAlias = Callable[[Array, Params, PyTree], Array]
"""(x_BTD, weights of the layer, what it is given beside x) → y_BTD."""

Visit: TypeAlias = Callable[..., tuple[Array, Params]]
"""(x_BTD, tally, weights of all layers, what all are given, number of the layer, of the microbatch) → (y_BTD, tally)."""


def at(stack: T, number: Array) -> T:
    """Entry `number` of every array of a tree."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, number, keepdims=False), stack)


@jax.custom_vjp
def picked(stack: Array, number: Array) -> tuple[Array, Array]:
    """(entry `number`, the stack), for a stack that a loop carries: its gradient is changed in that entry alone."""
    return at(stack, number), stack


def _picked_forward(stack: Array, number: Array):
    return picked(stack, number), number


def _picked_backward(number: Array, gradients: tuple[Array, Array]):
    entry, stack = gradients
    return stack.at[number].add(entry), None


picked.defvjp(_picked_forward, _picked_backward)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Again:
    """Stands for the array of this place among those that are picked again in the backward pass."""

    place: int


def visiting(layer: Layer) -> Visit:
    """`layer` with weights, and what else it is given, picked by number.

    What the backward pass needs of a visit is what `layer`'s own does, but for what was picked. The gradient of the
    weights does not come by the weights but by `tally`, which is as large, starts as the weights themselves, and goes
    through every visit of a loop unchanged: its gradient is one sum, in which each visit adds to its own layer's part.
    """

    @jax.custom_vjp
    def visit(x_BTD: Array, tally: Params, weights: Params, given: PyTree, number: Array, microbatch: Array):
        return layer(x_BTD, at(weights, number), at(given, microbatch)), tally

    def forward(x_BTD: Array, tally: Params, weights: Params, given: PyTree, number: Array, microbatch: Array):
        inputs = at(weights, number), at(given, microbatch)
        y_BTD, pull = jax.vjp(layer, x_BTD, *inputs)
        places = {id(leaf): _Again(place) for place, leaf in enumerate(jax.tree.leaves(inputs))}
        kept = jax.tree.map(lambda leaf: places.get(id(leaf), leaf), pull)
        return (y_BTD, tally), (kept, weights, given, number, microbatch)

    def backward(residuals, gradients: tuple[Array, Params]):
        kept, weights, given, number, microbatch = residuals
        d_BTD, tally = gradients
        inputs = jax.tree.leaves((at(weights, number), at(given, microbatch)))
        pull = jax.tree.map(
            lambda leaf: inputs[leaf.place] if isinstance(leaf, _Again) else leaf,
            kept,
            is_leaf=lambda leaf: isinstance(leaf, _Again),
        )
        d_BTD, of_layer, _ = pull(d_BTD)
        tally = jax.tree.map(lambda total, own: total.at[number].add(own), tally, of_layer)
        return d_BTD, tally, None, None, None, None

    visit.defvjp(forward, backward)
    return visit
