"""Rollouts by arrival: nothing is lost, nothing twice, nothing older than the lag allows, and nobody waits for ever."""

import threading
import time

import numpy as np
import pytest

from hcxjax.data.rollouts.arrivals import ByArrival
from hcxjax.data.rollouts.episodes import joined
from tests.data.rollouts.parts import STOP, first_params
from tests.data.rollouts.test_player import EPISODES, OBJECTIVE, LikesSevens, assert_same, call, player

LAG = 1


@pytest.fixture(scope="module")
def policies():
    return [first_params(OBJECTIVE, seed)["policy"] for seed in (0, 1)]


@pytest.fixture
def arrivals(policies):
    """(player) → rollouts of it, closed at the end."""
    made = []

    def make(played=None, lag=LAG):
        made.append(ByArrival(played or player(4), lambda: policies[1], EPISODES, lag))
        return made[-1]

    yield make
    for rollouts in made:
        rollouts.close()


def taken(rollouts, update, policy):
    return rollouts.take(call, update, lambda: policy).played.episodes


def fill(rollouts):
    """Waits until there is nothing to do but to wait."""
    until = time.monotonic() + 120
    while len(rollouts._ready) < rollouts.most * EPISODES:
        assert time.monotonic() < until
        time.sleep(0.01)


def waiting(held):
    """How many episodes are held."""
    return 0 if held.episodes is None else len(held.episodes.prompt_B)


def in_order(episodes):
    """By the prompt, and by the answer of those that have the same."""
    order = sorted(range(len(episodes.prompt_B)), key=lambda r: (episodes.prompt_B[r], *episodes.tokens_BT[r]))
    return joined([episodes.rows(row, row + 1) for row in order])


def test_all_episodes_come_once_each_as_if_in_turn(arrivals, policies):
    """Under weights that stay: the answers, log-probabilities and scores of three rollouts, in any order."""
    rollouts = arrivals()
    parts = [taken(rollouts, update, policies[0]) for update in range(3)]
    held = rollouts.held()
    assert held.asked == 3 * EPISODES + waiting(held)
    found = in_order(joined([*parts, *([held.episodes] if waiting(held) else [])]))
    in_turn = player(8)
    calls = [call(update) for update in range(held.asked // EPISODES)]
    expected = in_order(joined([in_turn.play(one, policies[0], policies[1]).episodes for one in calls]))
    np.testing.assert_array_equal(found.tokens_BT, expected.tokens_BT)
    np.testing.assert_array_equal(found.prompt_B, expected.prompt_B)
    np.testing.assert_array_equal(found.score_B, expected.score_B)
    mask_BT, _ = expected.answers((STOP,))
    for name in ("sampled_BT", "reference_BT"):
        ours_BT, theirs_BT = (vars(episodes)[name][:, : mask_BT.shape[1]] for episodes in (found, expected))
        np.testing.assert_allclose(ours_BT[mask_BT], theirs_BT[mask_BT], atol=1e-5)


def test_an_episode_is_as_old_as_the_lag_allows_and_no_older(arrivals, policies):
    rollouts = arrivals()
    ages = []
    for update in range(5):
        episodes = taken(rollouts, update, policies[update % 2])
        ages.append((update - episodes.version_B).tolist())
        fill(rollouts)
    assert ages[0] == [0] * EPISODES
    assert max(max(age) for age in ages) == LAG + 1
    assert ages[3] == ages[4] == [LAG + 1] * EPISODES, "a trainer that always finds the queue full has the oldest"


def test_what_is_held_was_finished_and_nothing_begins_meanwhile(arrivals, policies):
    """Many times, because a thread that was a moment early would begin what the save does not know of."""
    rollouts = arrivals()
    for update in range(6):
        taken(rollouts, update, policies[0])
        held = rollouts.held()
        assert held.asked == (update + 1) * EPISODES + waiting(held), "some are neither taken nor held"


def test_a_full_queue_is_held_at_once(arrivals, policies):
    """The thread has nothing to do then, and nothing wakes it."""
    rollouts = arrivals()
    taken(rollouts, 0, policies[0])
    fill(rollouts)
    found = []
    thread = threading.Thread(target=lambda: found.append(rollouts.held()), daemon=True)
    thread.start()
    thread.join(60)
    assert len(found[0].episodes.prompt_B) == rollouts.most * EPISODES


def test_a_run_that_goes_on_has_what_was_held_and_then_what_comes_next(arrivals, policies):
    first = arrivals()
    parts = [taken(first, 0, policies[0])]
    fill(first)
    held = first.held()
    assert waiting(held) == first.most * EPISODES
    first.close()
    second = arrivals(lag=3)
    second.restore(1, held)
    parts += [taken(second, update, policies[0]) for update in (1, 2, 3)]
    fill(second)
    rest = second.held()
    assert_same(parts[1], held.episodes.rows(0, EPISODES))
    found = in_order(joined([*parts, rest.episodes]))
    expected = [player(8).play(call(update), *policies).episodes for update in range(rest.asked // EPISODES)]
    np.testing.assert_array_equal(found.tokens_BT, in_order(joined(expected)).tokens_BT)


def test_nothing_is_held_before_anything_began(arrivals):
    assert arrivals().held() == (0, None)


def test_a_judge_that_fails_ends_the_run_and_not_the_thread_alone(arrivals, policies):
    class Fails(LikesSevens):
        def scores(self, batch, last_B):
            raise ValueError("the judge has left")

    rollouts = arrivals(player(4, Fails()))
    for _ in range(2):
        with pytest.raises(ValueError, match="the judge has left"):
            taken(rollouts, 0, policies[0])
    with pytest.raises(ValueError, match="the judge has left"):
        rollouts.held()


def test_more_episodes_than_the_engine_s_queue_takes(arrivals, policies):
    narrow = player(2)
    narrow._settings = narrow._settings.__class__(**vars(narrow._settings) | {"queue": 1})
    rollouts = arrivals(narrow)
    assert len(taken(rollouts, 0, policies[0]).prompt_B) == EPISODES
    held = rollouts.held()
    assert held.asked == EPISODES + waiting(held)
