"""The texts of a row in one pass, and what a batch's comparisons are measured by."""

import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.objectives.comparisons import less, measured, texts


@pytest.mark.parametrize("count", [2, 4])
def test_texts_stand_side_by_side_and_say_where_their_answers_are(comparisons, count):
    batch = comparisons(4, 10, 50, texts=count)
    given = texts(batch)
    for row in range(3):
        for place in range(count):
            at, end, start = count * row + place, batch["end_BK"][row, place], batch["start_B"][row]
            np.testing.assert_array_equal(given.tokens_BT[at], batch["tokens_BKT"][row, place])
            np.testing.assert_array_equal(given.segment_ids_BT[at], np.arange(10) <= end)
            np.testing.assert_array_equal(np.flatnonzero(given.answer_BT[at]), np.arange(start, end + 1))
            assert given.end_B[at] == end
    np.testing.assert_array_equal(given.positions_BT, np.tile(np.arange(10), (4 * count, 1)))


def test_a_difference_is_the_first_s_less_the_second_s():
    difference_BKK = less(jnp.array([[5.0, 2.0, 1.0]]))
    assert float(difference_BKK[0, 0, 2]) == 4
    assert float(difference_BKK[0, 2, 1]) == -1


def test_what_is_not_preferred_does_not_count(comparisons):
    batch = comparisons(6, 10, 50, seed=3)
    batch["source_B"][:] = [0, 2, 2, 0, 2, 0]  # no row of the second source
    batch["preferred_BKK"][4] = batch["preferred_BKK"][4].T  # the second text is the better one
    numbers = {"loss": jnp.array([1.0, 2, 3, 4, 5, 1e6]), "accuracy": jnp.array([1.0, 0, 1, 1, 0, 1])}
    of_pairs = {
        name: jnp.where(batch["preferred_BKK"] + (number_B == 1e6)[:, None, None] > 0, number_B[:, None, None], 1e5)
        for name, number_B in numbers.items()
    }
    metrics = measured(batch, ("a", "b", "c"), of_pairs)
    used = int((batch["end_BK"][:5] + 1).sum())
    expected = {
        "loss": (15, 5),
        "accuracy": (3, 5),
        "padding": (120 - used, 120),
        "loss/a": (5, 2),
        "accuracy/a": (2, 2),
        "share/a": (2, 5),
        "loss/b": (0, 0),
        "accuracy/b": (0, 0),
        "share/b": (0, 5),
        "loss/c": (10, 3),
        "accuracy/c": (1, 3),
        "share/c": (3, 5),
    }
    assert {name: tuple(map(float, metric)) for name, metric in metrics.items()} == expected
