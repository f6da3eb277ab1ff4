"""Layers of a stack by number, inside a loop: their gradients are added where the weights lie, and no copy is kept.

Left to itself, the gradient of a loop that picks weights by a number it computes keeps what was picked in every step,
and adds a gradient as large as the stack for every layer that was picked.
"""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias, TypeVar

import jax

from hcxjax.protocols import Array, Params, PyTree

T = TypeVar("T")

Layer: TypeAlias = Callable[[Array, Params, PyTree], Array]
"""(x_BTD, its weights, what else it is given) → x_BTD."""

Visit: TypeAlias = Callable[[Array, Params, Params, PyTree, Array, Array], tuple[Array, Params]]
"""(x_BTD, tally, all weights, all that is given, number of the layer, number in what is given) → (x_BTD, tally)."""


def entry(stack: T, number: Array) -> T:
    """Entry `number` of every array of a tree."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, number, keepdims=False), stack)


@jax.custom_vjp
def picked(stack: Array, number: Array) -> tuple[Array, Array]:
    """(entry `number`, the stack), for a stack that a loop carries: its gradient changes in that entry alone."""
    return entry(stack, number), stack


def _picked_backward(number: Array, gradients: tuple[Array, Array]) -> tuple[Array, None]:
    of_entry, of_stack = gradients
    return of_stack.at[number].add(of_entry), None


picked.defvjp(lambda stack, number: (picked(stack, number), number), _picked_backward)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Again:
    """Stands for an array that is picked again in the backward pass, by its place among all that are picked."""

    place: int


def _stands(leaf: object) -> bool:
    return isinstance(leaf, _Again)


def visiting(layer: Layer) -> Visit:
    """`layer`, which picks by number its weights and what else it is given.

    The backward pass keeps what `layer`'s own would, but for what was picked. The gradient of the weights comes by way
    of `tally`: it starts as the weights themselves and goes through all visits of a loop unchanged, so that its
    gradient is one sum, to which each visit adds in its own layer's place. The weights that are read are constants.
    """

    @jax.custom_vjp
    def visit(x_BTD: Array, tally: Params, weights: Params, given: PyTree, number: Array, place: Array):
        return layer(x_BTD, entry(weights, number), entry(given, place)), tally

    def forward(x_BTD: Array, tally: Params, weights: Params, given: PyTree, number: Array, place: Array):
        picks = entry(weights, number), entry(given, place)
        y_BTD, pull = jax.vjp(layer, x_BTD, *picks)
        known = {id(leaf): _Again(at) for at, leaf in enumerate(jax.tree.leaves(picks))}
        kept = jax.tree.map(lambda leaf: known.get(id(leaf), leaf), pull)
        return (y_BTD, tally), (kept, weights, given, number, place)

    def backward(residuals: tuple, gradients: tuple[Array, Params]):
        kept, weights, given, number, place = residuals
        picks = jax.tree.leaves((entry(weights, number), entry(given, place)))
        pull = jax.tree.map(lambda leaf: picks[leaf.place] if _stands(leaf) else leaf, kept, is_leaf=_stands)
        of_x, of_layer, _ = pull(gradients[0])
        # Whole numbers, as of int8 weights, have no gradient.
        tally = jax.tree.map(
            lambda total, own: None if own.dtype == jax.dtypes.float0 else total.at[number].add(own),
            gradients[1],
            of_layer,
        )
        return of_x, tally, None, None, None, None

    visit.defvjp(forward, backward)
    return visit
