"""Both texts of a comparison in one pass, and what a batch's comparisons are measured by."""

import jax.numpy as jnp
import numpy as np

from hcxjax.objectives.comparisons import apart, measured, texts


def test_texts_come_in_pairs_and_say_where_their_answers_are(comparisons):
    batch = comparisons(4, 10, 50)
    both = texts(batch)
    for row in range(4):
        for side, name in enumerate(("chosen", "rejected")):
            at, end, start = 2 * row + side, batch[f"{name}_end_B"][row], batch["start_B"][row]
            np.testing.assert_array_equal(both.tokens_BT[at], batch[f"{name}_tokens_BT"][row])
            np.testing.assert_array_equal(both.segment_ids_BT[at], np.arange(10) <= end)
            np.testing.assert_array_equal(np.flatnonzero(both.answer_BT[at]), np.arange(start, end + 1))
            assert both.end_B[at] == end
    np.testing.assert_array_equal(both.positions_BT, np.tile(np.arange(10), (8, 1)))
    chosen_B, rejected_B = apart(both.end_B)
    np.testing.assert_array_equal(chosen_B, batch["chosen_end_B"])
    np.testing.assert_array_equal(rejected_B, batch["rejected_end_B"])


def test_rows_that_fill_up_do_not_count(comparisons):
    batch = comparisons(6, 10, 50, seed=3)
    batch["source_B"][:] = [0, 2, 2, 0, 2, 0]  # no row of the second source
    loss_B, right_B = jnp.array([1.0, 2, 3, 4, 5, 1e6]), jnp.array([1.0, 0, 1, 1, 0, 1])
    metrics = measured(batch, ("a", "b", "c"), {"loss": loss_B, "accuracy": right_B})
    used = sum(int(batch[f"{name}_end_B"][row]) + 1 for row in range(5) for name in ("chosen", "rejected"))
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
