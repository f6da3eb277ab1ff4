"""Playing: answers are written in any order and judged in the prompts', by whatever weights are given."""

import threading

import jax
import numpy as np
import pytest

from hcxjax.data.rollouts.judges import Reference
from hcxjax.data.rollouts.player import Call, Player, Stopped
from hcxjax.inference.engine import EngineSettings
from hcxjax.objectives.ppo import PPO
from tests.data.rollouts.parts import LAYOUT, MODEL, PROMPTS, STOP, LikesSevens, first_params

OBJECTIVE = PPO(MODEL, temperature=0.7)
EPISODES, ROWS, NEW_TOKENS = 8, 2, 6


class Remembers(LikesSevens):
    """A judge that knows what it was given, in its order."""

    def __init__(self):
        self.prompts, self.rewarded = [], []

    def scores(self, batch, last_B):
        self.prompts.append([tuple(row[:1].tolist()) for row in batch["tokens_BT"]])
        return super().scores(batch, last_B)

    def rewards(self, score_B, sources):
        self.rewarded.append(list(sources))
        return super().rewards(score_B, sources)

    def scales(self, sources):
        return np.zeros(len(sources), np.float32), np.ones(len(sources), np.float32)


@pytest.fixture(scope="module")
def policies():
    """Two of them."""
    return [first_params(OBJECTIVE, seed)["policy"] for seed in (0, 1)]


def player(slots, judge=None, seed=5):
    return Player(
        MODEL,
        Reference(OBJECTIVE, LAYOUT),
        judge or LikesSevens(),
        width=PROMPTS.length + NEW_TOKENS,
        new_tokens=NEW_TOKENS,
        temperature=0.7,
        stop_ids=(STOP,),
        seed=seed,
        rows=ROWS,
        settings=EngineSettings(slots=slots, chunk=16, steps=2, listed=1, prefix_tokens=0),
        layout=LAYOUT,
    )


def call(update=0):
    numbers = PROMPTS.batch(update, EPISODES, 0)
    tokens = [PROMPTS.tokens[number] for number in numbers]
    return Call(update, max(0, update - 1), tokens, numbers.astype(np.int32), [f"of {number}" for number in numbers])


def assert_same(one, other, sampled=0.0):
    """Bit for bit; what the engine told of log-probabilities to `sampled`."""
    for name, value in vars(one).items():
        most = sampled if name == "sampled_BT" else 0
        np.testing.assert_allclose(value, vars(other)[name], rtol=0, atol=most, err_msg=name)


@pytest.fixture(scope="module")
def played(policies):
    """What eight slots give, and what their judge was given."""
    judge = Remembers()
    return player(8, judge).play(call(), policies[0], policies[1]).episodes, judge


def test_two_slots_give_what_eight_give(policies, played):
    """Answers are finished in another order, and the same ones are judged together: bit for bit the same.

    All but what the engine says of its draws, which another number of slots rounds in another way.
    """
    episodes, judge = played
    few = Remembers()
    assert_same(player(2, few).play(call(), policies[0], policies[1]).episodes, episodes, sampled=1e-6)
    neighbours = [[prompt[:1] for prompt in call().prompts[at : at + ROWS]] for at in range(0, EPISODES, ROWS)]
    assert sorted(few.prompts) == sorted(judge.prompts) == sorted(neighbours)
    assert judge.prompts != neighbours, "nothing was finished out of order: the test shows nothing"
    assert few.rewarded == judge.rewarded == [[f"of {n}" for n in call().numbers[at : at + 2]] for at in range(0, 8, 2)]


def test_answers_are_of_their_prompts(played):
    episodes, _ = played
    for row, prompt in enumerate(call().prompts):
        begins, ends = int(episodes.begins_B[row]), int(episodes.ends_B[row])
        answer = episodes.tokens_BT[row, begins:ends].tolist()
        assert tuple(episodes.tokens_BT[row, :begins]) == prompt
        assert 1 <= len(answer) <= NEW_TOKENS
        assert STOP not in answer[:-1]
        assert answer[-1] == STOP or len(answer) == NEW_TOKENS
    assert len(set((episodes.ends_B - episodes.begins_B).tolist())) > 1
    assert episodes.prompt_B.tolist() == call().numbers.tolist()


def test_what_was_told_of_the_answers(policies, played):
    """Log-probabilities of the policy that wrote, of the reference, and the score, each at its place."""
    episodes, _ = played
    reference = Reference(OBJECTIVE, LAYOUT)
    mask_BT, _ = episodes.answers((STOP,))
    batch = episodes.batch()
    for params, told_BT, most in ((policies[0], episodes.sampled_BT, 1e-5), (policies[1], episodes.reference_BT, 1e-6)):
        expected_BT = np.asarray(reference.logprobs(params, batch))
        np.testing.assert_allclose(told_BT[:, : mask_BT.shape[1]][mask_BT], expected_BT[mask_BT], atol=most)
    assert np.abs(episodes.sampled_BT - episodes.reference_BT)[:, : mask_BT.shape[1]][mask_BT].max() > 0.1
    np.testing.assert_array_equal(episodes.score_B, LikesSevens().scores(batch, None))


def test_draws_are_a_function_of_seed_update_and_row(policies, played):
    first = player(4)
    assert_same(first.play(call(0), *policies).episodes, played[0], sampled=1e-6)
    later = first.play(call(3), *policies).episodes
    assert later.version_B.tolist() == [2] * EPISODES
    assert call(3).prompts == call(0).prompts, "the same prompts come again"
    assert not np.array_equal(later.tokens_BT, played[0].tokens_BT)
    assert_same(player(4).play(call(3), *policies).episodes, later)
    assert not np.array_equal(player(4, seed=6).play(call(0), *policies).episodes.tokens_BT, played[0].tokens_BT)


def test_new_weights_write_something_else_and_the_old_ones_the_same_again(policies, played):
    one = player(4)
    one.play(call(), *policies)
    other = one.play(call(), policies[1], policies[1]).episodes
    mask_BT, _ = other.answers((STOP,))
    width = mask_BT.shape[1]
    np.testing.assert_allclose(other.sampled_BT[:, :width][mask_BT], other.reference_BT[:, :width][mask_BT], atol=1e-5)
    copied = jax.tree.map(lambda leaf: leaf + 0, policies[0])
    assert_same(one.play(call(), copied, policies[1]).episodes, played[0], sampled=1e-6)


def test_a_player_that_was_stopped_leaves_its_work(policies):
    """In the middle: another thread does not wait for long answers at the end of a run."""
    judge = Remembers()
    stopped = player(2, judge)
    failed = []

    def play():
        try:
            stopped.play(call(), *policies)
        except Stopped as error:
            failed.append(error)

    judged = judge.scores
    judge.scores = lambda *arguments: (stopped.stop(), judged(*arguments))[1]
    thread = threading.Thread(target=play)
    thread.start()
    thread.join(120)
    assert not thread.is_alive()
    assert len(failed) == 1
    assert len(judge.prompts) == 1, "nothing more was judged"


def test_a_player_that_was_stopped_before_does_not_begin(policies):
    stopped = player(2)
    stopped.stop()
    with pytest.raises(Stopped):
        stopped.play(call(), *policies)
