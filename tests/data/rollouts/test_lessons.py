"""From episodes to what is learnt of them, against loops over tokens; and the order in which it is dealt."""

import dataclasses
import math

import numpy as np
import pytest

from hcxjax.data.rollouts.episodes import Episodes
from hcxjax.data.rollouts.lessons import Deal, Judged, Lessons, minibatch, packed_minibatch
from hcxjax.inference.requests import Continuation
from tests.data.rollouts.parts import STOP

UPDATE, BETA, WIDTH = 5, 0.3, 16
LESSONS = Lessons(discount=0.9, decay=0.7, missing_stop_penalty=0.25, ngram=2, most_weight=1.5)
ROWS = [
    ((3, 4), (5, 6, 5, 6, STOP), 0.7, UPDATE),
    ((3,), (7, 8, 9), -1.6, UPDATE),
    ((4, STOP, 3), (STOP,), 0.4, UPDATE - 1),
    ((8,), (5, 5, 5, 5, 5, 5), 2.0, UPDATE - 2),
]
"""Prompt, answer, score and version. The second and the last answer do not stop."""
AT = [slice(len(prompt) - 1, len(prompt) - 1 + len(answer)) for prompt, answer, _, _ in ROWS]


def rollout():
    """(episodes, what policy and critic say of them); elsewhere than in the answers there is NaN."""
    rng, episodes = np.random.default_rng(0), Episodes.empty(len(ROWS), WIDTH)
    told = {
        name: np.full((len(ROWS), WIDTH), math.nan, np.float32) for name in ("new", "reference", "value", "entropy")
    }
    for row, (prompt, answer, score, version) in enumerate(ROWS):
        new, sampled, reference = -rng.uniform(0.1, 3, size=(3, len(answer)))
        episodes.put(row, prompt, Continuation(list(answer), sampled.tolist()))
        told["new"][row, AT[row]], told["reference"][row, AT[row]] = new, reference
        told["value"][row, AT[row]] = rng.normal(size=len(answer))
        told["entropy"][row, AT[row]] = rng.uniform(0, 2, size=len(answer))
        episodes.score_B[row], episodes.version_B[row] = score, version
    outside_BT = np.isnan(told["new"])
    episodes.sampled_BT[outside_BT] = math.nan
    episodes.reference_BT[:] = told["reference"]
    return episodes, Judged(told["new"], told["entropy"], told["value"])


def learn(lessons=LESSONS, episodes=None, judged=None, update=UPDATE, beta=BETA):
    known, said = rollout()
    return lessons.learn(episodes or known, judged or said, (STOP,), update, beta)


def expected():
    """Of each row, by loops: rewards, advantages before whitening, returns."""
    episodes, judged = rollout()
    found = []
    for row, (_, answer, score, _) in enumerate(ROWS):
        new, value = judged.logprob_BT[row, AT[row]], judged.value_BT[row, AT[row]]
        reward = [-BETA * (n - r) for n, r in zip(new, episodes.reference_BT[row, AT[row]], strict=True)]
        reward[-1] += score - (0 if answer[-1] == STOP else LESSONS.missing_stop_penalty)
        advantage, after, ahead = [], 0.0, 0.0
        for r, v in reversed(list(zip(reward, value, strict=True))):
            after = r + LESSONS.discount * ahead - v + LESSONS.discount * LESSONS.decay * after
            advantage.insert(0, after)
            ahead = v
        found.append((np.array(reward), np.array(advantage), np.array(advantage) + value))
    return found


def test_rewards_become_advantages_and_returns_as_in_loops():
    lesson, told = learn()
    rewards, advantages, returns = zip(*expected(), strict=True)
    flat = np.concatenate(advantages)
    for row, here in enumerate(AT):
        whitened = (advantages[row] - flat.mean()) / flat.std()
        np.testing.assert_allclose(lesson["advantage_BT"][row, here], whitened, atol=1e-5)
        np.testing.assert_allclose(lesson["return_BT"][row, here], returns[row], atol=1e-5)
    assert told["objective/rlhf_reward"] == pytest.approx(np.mean([reward.sum() for reward in rewards]), abs=1e-5)


def test_outside_the_answers_is_nothing():
    lesson, told = learn()
    of_answers = ("mask_BT", "old_logprob_BT", "old_value_BT", "advantage_BT", "return_BT", "repeated_BT", "weight_BT")
    assert set(lesson) == {*of_answers, "tokens_BT", "targets_BT", "segment_ids_BT", "positions_BT"}
    for name in of_answers:
        assert lesson[name].dtype == np.float32
        for row, here in enumerate(AT):
            np.testing.assert_array_equal(np.delete(lesson[name][row], np.r_[here]), 0, err_msg=name)
    assert all(math.isfinite(value) for value in told.values())


def test_what_stands_outside_the_answers_changes_no_bit():
    """NaN there or 1e6."""
    lesson, told = learn()
    episodes, judged = rollout()
    for array in (episodes.sampled_BT, episodes.reference_BT, *judged):
        array[np.isnan(array)] = 1e6
    other, other_told = learn(episodes=episodes, judged=judged)
    for name, array in lesson.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)
    assert told == other_told


def test_a_wider_rollout_teaches_the_same():
    lesson, told = learn()
    episodes, judged = rollout()
    wide = Episodes(**{n: np.pad(a, ((0, 0), (0, 16))) if n.endswith("T") else a for n, a in vars(episodes).items()})
    other, other_told = learn(episodes=wide, judged=Judged(*(np.pad(array, ((0, 0), (0, 16))) for array in judged)))
    for name, array in lesson.items():
        width = min(array.shape[1], other[name].shape[1])
        np.testing.assert_allclose(array[:, :width], other[name][:, :width], atol=1e-6, err_msg=name)
    assert told == pytest.approx(other_told, abs=1e-6)


def test_what_the_policy_and_the_critic_said_is_kept():
    lesson, _ = learn()
    _, judged = rollout()
    for row, here in enumerate(AT):
        np.testing.assert_array_equal(lesson["old_logprob_BT"][row, here], judged.logprob_BT[row, here])
        np.testing.assert_array_equal(lesson["old_value_BT"][row, here], judged.value_BT[row, here])


def test_repeated_ngrams_are_marked_within_the_answer():
    lesson, told = learn()
    marked = [lesson["repeated_BT"][row, here].tolist() for row, here in enumerate(AT)]
    assert marked == [[0, 0, 1, 1, 0], [0, 0, 0], [0], [0, 1, 1, 1, 1, 1]]
    assert told["rollout/seq_rep_2"] == pytest.approx(np.mean([1 / 4, 0, 0, 4 / 5]))


def test_tokens_of_an_earlier_policy_weigh_what_the_present_one_gives_them():
    lesson, _ = learn()
    episodes, judged = rollout()
    bounded = 0
    for row, here in enumerate(AT):
        ratio = np.exp(judged.logprob_BT[row, here] - episodes.sampled_BT[row, here])
        weight = np.minimum(ratio, LESSONS.most_weight) if ROWS[row][3] != UPDATE else np.ones_like(ratio)
        np.testing.assert_allclose(lesson["weight_BT"][row, here], weight, rtol=1e-5)
        bounded += int((ratio > LESSONS.most_weight).sum()) * (ROWS[row][3] != UPDATE)
    assert 0 < bounded < 7, "some are bounded and some are not"


def test_an_answer_without_a_stop_token_loses_reward():
    """And only it; the share of those that stop is told."""
    _, told = learn()
    _, without = learn(dataclasses.replace(LESSONS, missing_stop_penalty=0.0))
    assert told["rollout/stop_rate"] == 0.5
    lost = without["objective/rlhf_reward"] - told["objective/rlhf_reward"]
    assert lost == pytest.approx(LESSONS.missing_stop_penalty / 2, abs=1e-5)
    assert without["objective/score"] == told["objective/score"] == pytest.approx(np.mean([r[2] for r in ROWS]))

    episodes, judged = rollout()
    advantages = {}
    for penalty in (0.0, 100.0):
        lesson, _ = learn(dataclasses.replace(LESSONS, missing_stop_penalty=penalty), episodes, judged)
        advantages[penalty] = [lesson["advantage_BT"][row, here.stop - 1] for row, here in enumerate(AT)]
    for row, (_, answer, _, _) in enumerate(ROWS):
        assert (advantages[100.0][row] > 0) == (answer[-1] == STOP)


def test_the_measures_are_means_over_answers_or_tokens():
    episodes, judged = rollout()
    _, told = learn()
    k1 = [judged.logprob_BT[row, here] - episodes.reference_BT[row, here] for row, here in enumerate(AT)]
    entropies = np.concatenate([judged.entropy_BT[row, here] for row, here in enumerate(AT)])
    differences = np.concatenate(
        [np.abs(judged.logprob_BT[row, here] - episodes.sampled_BT[row, here]) for row, here in enumerate(AT)]
    )
    returns = np.concatenate([returned for _, _, returned in expected()])
    errors = returns - np.concatenate([judged.value_BT[row, here] for row, here in enumerate(AT)])
    assert told == pytest.approx(
        {
            "objective/score": np.mean([score for _, _, score, _ in ROWS]),
            "objective/rlhf_reward": np.mean([reward.sum() for reward, _, _ in expected()]),
            "objective/kl": np.mean([terms.sum() for terms in k1]),
            "objective/kl_k3": np.mean([(np.exp(-terms) - 1 + terms).sum() for terms in k1]),
            "objective/entropy": entropies.mean(),
            "objective/beta": BETA,
            "value/explained_variance": 1 - errors.var() / returns.var(),
            "rollout/length": np.mean([len(answer) for _, answer, _, _ in ROWS]),
            "rollout/stop_rate": 0.5,
            "rollout/seq_rep_2": np.mean([1 / 4, 0, 0, 4 / 5]),
            "sampler_trainer_logp_diff": differences.mean(),
        },
        abs=1e-5,
    )


def test_a_critic_that_knows_the_returns_explains_all_of_them():
    """λ = 1, γ = 1 and no KL divergence: every token's return is the answer's reward."""
    _, judged = rollout()
    value_BT = np.zeros_like(judged.value_BT)
    for row, (_, answer, score, _) in enumerate(ROWS):
        value_BT[row] = score - (0 if answer[-1] == STOP else 0.25)
    lessons = dataclasses.replace(LESSONS, discount=1.0, decay=1.0)
    _, told = learn(lessons, judged=judged._replace(value_BT=value_BT), beta=0.0)
    assert told["value/explained_variance"] == pytest.approx(1, abs=1e-5)
    _, told = learn(lessons, judged=judged._replace(value_BT=-value_BT), beta=0.0)
    assert told["value/explained_variance"] == pytest.approx(1 - 4, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": -0.1}, r"Lessons\.beta is -0\.1; it must not be negative"),
        ({"missing_stop_penalty": -1.0}, r"Lessons\.missing_stop_penalty is -1\.0"),
        ({"discount": 1.1}, r"Lessons\.discount is 1\.1; it must lie between 0 and 1"),
        ({"decay": -0.1}, r"Lessons\.decay is -0\.1"),
        ({"most_weight": 0.9}, r"Lessons\.most_weight is 0\.9; it must be at least 1"),
        ({"ngram": 0}, r"Lessons\.ngram is 0"),
        ({"beta": "much"}, r"Lessons\.beta"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        Lessons(**changes)


def test_every_epoch_deals_all_episodes_in_an_order_of_its_own():
    deal = Deal(episodes=12, epochs=3, minibatches=4, seed=7)
    assert deal.hands == 12
    orders = set()
    for update in range(5):
        for epoch in range(3):
            parts = [deal.rows(update, epoch * 4 + part) for part in range(4)]
            assert [len(part) for part in parts] == [3] * 4
            order = np.concatenate(parts).tolist()
            assert sorted(order) == list(range(12))
            orders.add(tuple(order))
    assert len(orders) == 15
    assert deal.rows(0, 1).tolist() == Deal(12, 3, 4, 7).rows(0, 1).tolist()
    assert deal.rows(0, 1).tolist() != Deal(12, 3, 4, 8).rows(0, 1).tolist()


def test_a_minibatch_is_of_its_episodes():
    lesson = {"mask_BT": np.arange(12).reshape(6, 2), "tokens_BT": -np.arange(12).reshape(6, 2)}
    part = minibatch(lesson, np.array([0, 3]))
    np.testing.assert_array_equal(part["mask_BT"], [[0, 1], [6, 7]])
    np.testing.assert_array_equal(part["tokens_BT"], [[0, -1], [-6, -7]])


@pytest.mark.parametrize(("width", "multiple", "shape"), [(16, 1, (2, 16)), (16, 4, (4, 16)), (24, 1, (1, 24))])
def test_a_packed_minibatch_has_the_same_episodes_in_fewer_rows(width, multiple, shape):
    """Each once and whole, as a segment of its own; what is left of the rows is empty."""
    lesson, _ = learn()
    ends_B = rollout()[0].ends_B
    dealt = np.array([3, 0, 2, 1])
    packed = packed_minibatch(lesson, dealt, ends_B, width, multiple)
    assert packed.keys() == lesson.keys()
    assert {array_BT.shape for array_BT in packed.values()} == {shape}
    found = set()
    for row, segments_T in enumerate(packed["segment_ids_BT"]):
        for segment in range(1, segments_T.max() + 1):
            (here,) = np.nonzero(segments_T == segment)
            assert here[-1] - here[0] + 1 == len(here)
            tokens = packed["tokens_BT"][row, here].tolist()
            (episode,) = (at for at in dealt if [*ROWS[at][0], *ROWS[at][1]] == tokens)
            found.add(episode)
            for name in lesson.keys() - {"segment_ids_BT"}:
                np.testing.assert_array_equal(packed[name][row, here], lesson[name][episode, : len(here)], name)
    assert found == set(dealt)
    empty_BT = packed["segment_ids_BT"] == 0
    assert empty_BT.sum() == np.prod(shape) - ends_B.sum()
    assert all(not array_BT[empty_BT].any() for array_BT in packed.values())
