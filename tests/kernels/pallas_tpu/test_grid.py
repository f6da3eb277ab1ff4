"""Which tiles the kernels visit, counted while they run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from hcxjax.kernels.pallas_tpu.backward import backward
from hcxjax.kernels.pallas_tpu.forward import forward
from hcxjax.kernels.pallas_tpu.grid import Walk, _cost
from hcxjax.kernels.plan import Tile
from tests.kernels.pallas_tpu.cases import arrays, output_and_gradients, packings, planned

LENGTH, TILE = 48, Tile(12, 16)


@pytest.fixture(scope="module")
def visited():
    """Of 1,000 random packings: the visits of forward, dq and dkv, and the tiles that hold an allowed pair."""
    segments = packings(1000, LENGTH, seed=7, tile=TILE)
    allowed = (segments[:, :, None] == segments[:, None]) & (segments > 0)[:, None] & np.tri(LENGTH, dtype=bool)
    tiles = allowed.reshape(1000, LENGTH // TILE.queries, TILE.queries, LENGTH // TILE.keys, TILE.keys)
    q, k, sums = jnp.ones((100, 1, 1, LENGTH, 4)), jnp.ones((100, 1, LENGTH, 4)), jnp.ones((100, 1, 1, LENGTH))
    settings = {"scale": 1.0, "angles": None, "interpret": True, "counts": True}

    @jax.jit
    def run(plan):
        return forward(q, k, k, plan, **settings)[2:] + backward(q, k, k, q, sums, sums, plan, **settings)[3:]

    counts = [run(planned(rows, TILE)) for rows in np.split(segments, 10)]
    return [np.concatenate(count) for count in zip(*counts, strict=True)], tiles.any((2, 4))


def test_tiles_visited_are_the_tiles_needed(visited):
    counts, needed = visited
    assert 0.1 < needed.mean() < 0.6
    for count in counts:
        np.testing.assert_array_equal(count, needed)
    assert len(counts) == 3


def test_lists_that_scalar_memory_does_not_hold():
    plan = jax.eval_shape(lambda: planned(jnp.ones((4, 2**16), jnp.int32), Tile(256, 256)))
    with pytest.raises(ValueError, match=r"4 rows of 256 x 256 tiles are 262144; .* fewer than 65536.*attention_tile"):
        jax.eval_shape(lambda plan: Walk(plan, "keys").visits(), plan)


def test_cost_is_of_whole_rows_halved_by_causality():
    cost = _cost({"B": 2, "K": 1, "G": 4, "T": 8, "S": 16, "H": 64}, 3, [jnp.ones(5, jnp.bfloat16), jnp.ones(5)])
    assert cost == pl.CostEstimate(flops=2 * 3 * 512 * 64, transcendentals=512, bytes_accessed=30)


def test_what_the_kernels_say_of_their_cost():
    """All of the head dim, though the angles that turn queries have half as many columns."""
    segments = packings(2, LENGTH)
    given = arrays(segments, heads=4, kv_heads=2, width=8)
    told = {}

    def gather(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "pallas_call":
                told[equation.params["name"]] = equation.params["cost_estimate"].flops
            for inner in jax.core.jaxprs_in_params(equation.params):
                gather(inner)

    gather(jax.make_jaxpr(output_and_gradients)(*given, planned(segments, TILE)).jaxpr)
    pair = 2 * 8  # a multiply-add for each of the head dim
    pairs = 2 * 4 * LENGTH * LENGTH // 2
    matmuls = {"attention_forward": 2, "attention_dq": 3, "attention_dkv": 4}
    assert told == {name: count * pairs * pair for name, count in matmuls.items()}
