"""Episodes as arrays: prompts, answers, padding; what a decoder reads of them, and which places are the answer's."""

import numpy as np
import pytest

from hcxjax.data.rollouts.episodes import Episodes, joined, narrowed
from hcxjax.inference.requests import Continuation
from tests.data.rollouts.parts import STOP

WIDTH, OTHER_STOP = 12, 11


def filled(*rows, width=WIDTH):
    """Episodes of these (prompt, answer); log-probabilities of an answer are -1, -2, ..."""
    episodes = Episodes.empty(len(rows), width)
    for row, (prompt, answer) in enumerate(rows):
        episodes.put(row, prompt, Continuation(list(answer), [-1.0 - place for place in range(len(answer))]))
    return episodes


def test_a_prompt_and_its_answer_lie_in_a_row():
    episodes = filled(((3, 4), (5, 6, STOP)), ((7,), (8,)))
    np.testing.assert_array_equal(episodes.tokens_BT[:, :6], [[3, 4, 5, 6, STOP, 0], [7, 8, 0, 0, 0, 0]])
    assert episodes.begins_B.tolist() == [2, 1]
    assert episodes.ends_B.tolist() == [5, 2]
    # A column is about the token after it: 5 was drawn where 4 was read last.
    np.testing.assert_array_equal(episodes.sampled_BT[:, :5], [[0, -1, -2, -3, 0], [-1, 0, 0, 0, 0]])


def test_what_a_decoder_reads():
    batch = filled(((3, 4), (5, 6, STOP)), ((7,), (8,))).batch()
    assert {name: array.shape for name, array in batch.items()} == dict.fromkeys(batch, (2, 6))
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}
    np.testing.assert_array_equal(batch["tokens_BT"], [[3, 4, 5, 6, STOP, 0], [7, 8, 0, 0, 0, 0]])
    np.testing.assert_array_equal(batch["targets_BT"], [[4, 5, 6, STOP, 0, 0], [8, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(batch["segment_ids_BT"], [[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(batch["positions_BT"], [[0, 1, 2, 3, 4, 0], [0, 1, 0, 0, 0, 0]])


def test_what_another_answer_left_behind_an_episode_is_no_target():
    episodes = filled(((3,), (4, 5, 6)))
    episodes.put(0, (3,), Continuation([7, STOP], [-1.0, -1.0]))
    np.testing.assert_array_equal(episodes.batch()["targets_BT"], [[7, STOP, 0]])


@pytest.mark.parametrize(
    ("prompt", "answer", "learnt", "stopped"),
    [
        ((3, 4), (STOP,), 1, True),
        ((3, 4), (5, STOP), 2, True),
        ((3, 4), (5, OTHER_STOP), 2, True),
        ((3, 4), (5, 6, 7), 3, False),
        ((3, 4), (5, STOP, 6, OTHER_STOP), 2, True),
        ((3, STOP), (5, 6), 2, False),
        ((STOP, OTHER_STOP), (OTHER_STOP, 3), 1, True),
        ((3, 4), (5, 6, 7, 8, 9, 5, 6, 7, 8, STOP), 10, True),
    ],
)
def test_an_answer_counts_up_to_its_first_stop_token(prompt, answer, learnt, stopped):
    """At the start, in the middle, at the end, absent; several; those of a prompt do not count."""
    mask_BT, stopped_B = filled((prompt, answer), ((3,), (4,))).answers((STOP, OTHER_STOP))
    columns = np.flatnonzero(mask_BT[0])
    np.testing.assert_array_equal(columns, np.arange(len(prompt) - 1, len(prompt) - 1 + learnt))
    assert bool(stopped_B[0]) is stopped
    assert not stopped_B[1]


def test_without_stop_ids_no_answer_stops():
    mask_BT, stopped_B = filled(((3,), (4, STOP))).answers(())
    assert mask_BT.sum() == 2
    assert not stopped_B.any()


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 7, 12, 13, 100])
def test_rows_are_as_narrow_as_one_of_four_widths(width):
    widths = [narrowed(longest, width) for longest in range(1, width + 1)]
    assert all(longest <= found <= width for longest, found in enumerate(widths, 1))
    assert len(set(widths)) <= 4
    assert widths[0] == -(-width // 4)
    assert widths[-1] == width


def test_what_is_read_has_the_width_of_the_longest():
    assert filled(((3,), (4, 5))).batch()["tokens_BT"].shape == (1, 3)
    assert filled(((3,), (4, 5, 6)), ((3,), (4,))).batch()["tokens_BT"].shape == (2, 6)
    assert filled(((3,), (4,)), (range(3, 10), (4, 5, 6))).answers((STOP,))[0].shape == (2, 12)


def test_rows_are_seen_and_joined_rows_are_copied():
    episodes = filled(((3,), (4,)), ((5,), (6,)), ((7,), (8,)))
    episodes.rows(1, 3).score_B[:] = (1.5, 2.5)
    assert episodes.score_B.tolist() == [0, 1.5, 2.5]
    again = joined([episodes.rows(2, 3), episodes.rows(0, 2)])
    for name, value in vars(again).items():
        np.testing.assert_array_equal(value, vars(episodes)[name][[2, 0, 1]])
    again.score_B[:] = 9
    assert episodes.score_B.tolist() == [0, 1.5, 2.5]
