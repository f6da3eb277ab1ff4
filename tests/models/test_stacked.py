"""Layers picked by number in a loop: gradients as of a plain loop, and what they cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.models.stacked import picked, visiting

LAYERS, WIDTH = 5, 3
ORDER = (0, 3, 1, 3, 4)


def layer(x_BTD, weights, given):
    return jnp.sin(x_BTD @ (weights["matrix"] * weights["levels"])) * given


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    matrix, given = rng.normal(size=(LAYERS, WIDTH, WIDTH)), rng.normal(size=(2, 1, 2, WIDTH))
    levels = rng.integers(-3, 4, (LAYERS, WIDTH, WIDTH)).astype(np.int8)
    x_BTD = rng.normal(size=(1, 2, WIDTH)).astype(np.float32)
    return x_BTD, {"matrix": np.float32(matrix), "levels": levels}, np.float32(given)


def in_a_loop(x_BTD, weights, given):
    visit, constants = visiting(layer), jax.lax.stop_gradient(weights)

    def step(carry, number):
        return visit(*carry, constants, given, number, number % 2), None

    return jnp.sum(jax.lax.scan(step, (x_BTD, weights), jnp.array(ORDER))[0][0])


def plainly(x_BTD, weights, given):
    for number in ORDER:
        x_BTD = layer(x_BTD, jax.tree.map(lambda leaf, number=number: leaf[number], weights), given[number % 2])
    return jnp.sum(x_BTD)


def test_gradients_are_those_of_a_plain_loop(case):
    """One layer comes twice, another never; weights of whole numbers have no gradient."""
    x_BTD, weights, given = case
    found, expected = (
        jax.jit(jax.grad(lambda x, matrix, of=of: of(x, weights | {"matrix": matrix}, given), (0, 1)))(
            x_BTD, weights["matrix"]
        )
        for of in (in_a_loop, plainly)
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert not np.any(found[1][2])


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def test_no_gradient_of_a_whole_stack_is_added(case):
    x_BTD, weights, given = case
    gradient = jax.grad(lambda matrix: in_a_loop(x_BTD, weights | {"matrix": matrix}, given))
    found = list(equations(jax.make_jaxpr(gradient)(weights["matrix"]).jaxpr))
    assert any(equation.primitive.name == "scatter-add" for equation in found)
    added = [equation.outvars[0].aval.shape for equation in found if equation.primitive.name in ("add", "add_any")]
    assert weights["matrix"].shape not in added


def test_an_entry_of_a_stack_that_is_carried():
    stack, factor = jnp.arange(6.0).reshape(3, 2), jnp.array([2.0, 5.0])

    def total(stack):
        entry, same = picked(stack, jnp.int32(1))
        return jnp.sum(entry * factor) + jnp.sum(same)

    np.testing.assert_array_equal(picked(stack, 1)[0], stack[1])
    np.testing.assert_array_equal(jax.grad(total)(stack), jnp.ones((3, 2)).at[1].add(factor))
