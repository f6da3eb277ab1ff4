import jax
import jax.numpy as jnp
import numpy as np

from hcxjax.kernels.plan import Spans
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
