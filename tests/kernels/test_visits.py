import jax
import jax.numpy as jnp
import numpy as np

from hcxjax.kernels.plan import Spans, Tile, attention_plan
from hcxjax.kernels.visits import FIRST, LAST, NEEDED, PLAIN, visits

listing = jax.jit(visits, static_argnums=4)


def test_visits_of_two_rows():
    """Held blocks 0 and 1 of three streamed ones; one of them has nothing to see."""
    spans = Spans(*(jnp.array(x) for x in ([[0, 1], [0, 0]], [[2, 3], [0, 1]], [[0, 1], [0, 0]], [[1, 1], [0, 1]])))
    listed = listing(*spans, 3)
    count = int(listed.count)
    assert count == 6
    np.testing.assert_array_equal(listed.rows_W[:count], [0, 0, 0, 0, 1, 1])
    np.testing.assert_array_equal(listed.held_W[:count], [0, 0, 1, 1, 0, 1])
    np.testing.assert_array_equal(listed.streamed_W[:count], [0, 1, 1, 2, 0, 0])
    first, last = FIRST | NEEDED, LAST | NEEDED
    assert listed.bits_W[:count].tolist() == [first | PLAIN, last, first, last, FIRST | LAST, first | last | PLAIN]


def test_a_plan_lists_its_own_spans():
    """Once a batch: the lists hold what the spans do, whichever side is held."""
    segments = jnp.asarray(np.repeat([[1, 2, 3], [1, 1, 0]], 16, axis=1), jnp.int32)
    plan = jax.jit(attention_plan, static_argnums=1)(segments, Tile(8, 16))
    assert plan.kv_visits is None
    listed = jax.jit(lambda plan: plan.listed())(plan)
    for one, other in ((listed.kv_visits, listing(*plan.kv_spans, 3)), (listed.q_visits, listing(*plan.q_spans, 6))):
        for x, y in zip(one, other, strict=True):
            np.testing.assert_array_equal(x, y)
