"""Demonstrations have the faults that were asked for, comparisons the noise."""

import math
from dataclasses import replace
from statistics import mean

import pytest

from hcxjax.world import COMPARED, SHARPNESS, SPOKEN, KnownReward, Quality, World
from hcxjax.world.demonstrations import MOST, respond
from hcxjax.world.dice import Dice

WORLD, REWARD = World(), KnownReward()
COUNT = 600


def judged(language, quality):
    found = []
    for index in range(COUNT):
        instruction = WORLD.instruction(language, index)
        found.append(REWARD.parts(instruction, respond(Dice("judged", index), instruction, quality)))
    return found


@pytest.mark.parametrize("language", SPOKEN)
def test_faults_are_those_asked_for(language):
    assert all(parts["total"] > 1.9 for parts in judged(language, Quality(1, 1, 1, 0)))
    worst = judged(language, Quality(0, 0, 0, 0))
    assert {(parts["truth"], parts["form"], parts["polite"]) for parts in worst} == {(0, 0, 0)}
    looped = judged(language, Quality(1, 1, 1, 1))
    assert min(parts["repetition"] for parts in looped) > 0.2
    for name in ("truth", "form", "polite"):
        one = judged(language, Quality(**({"truth": 1, "form": 1, "polite": 1, "loops": 0} | {name: 0})))
        assert mean(parts[name] for parts in one) == 0
        assert mean(parts["total"] for parts in one) == pytest.approx(2 - getattr(REWARD, name), abs=0.05)


@pytest.mark.parametrize("language", SPOKEN)
def test_demonstrations_leave_something_to_gain(language):
    answers = [WORLD.demonstration(language, index) for index in range(COUNT)]
    assert [WORLD.demonstration(language, index) for index in range(50)] == answers[:50]
    instructions = [WORLD.instruction(language, index) for index in range(COUNT)]
    assert [prompt for prompt, _ in answers] == [instruction.prompt for instruction in instructions]
    parts = [REWARD.parts(i, answer) for i, (_, answer) in zip(instructions, answers, strict=True)]
    for name, share in (("truth", 0.8), ("form", 0.6), ("polite", 0.6)):
        assert mean(part[name] for part in parts) == pytest.approx(share, abs=0.07), name
    assert 1.1 < mean(part["total"] for part in parts) < 1.5
    assert max(len(answer) for _, answer in answers) < 220


def both_of(compared):
    """(chosen, rejected, margin) of two answers."""
    ((chosen, rejected, margin),) = compared.comparisons
    return compared.answers[chosen], compared.answers[rejected], margin


@pytest.mark.parametrize("language", SPOKEN)
def test_comparisons_are_noisy_as_said(language):
    compared = [WORLD.comparison(language, index) for index in range(2 * COUNT)]
    assert [WORLD.comparison(language, index) for index in range(20)] == compared[:20]
    margins = []
    for index, one in enumerate(compared):
        instruction = WORLD.instruction(language, index)
        chosen, rejected, margin = both_of(one)
        assert one.prompt == instruction.prompt
        assert chosen != rejected
        assert margin == pytest.approx(REWARD(instruction, chosen) - REWARD(instruction, rejected))
        margins.append(margin)
    right = mean((margin > 0) + 0.5 * (margin == 0) for margin in margins)
    expected = mean(1 / (1 + math.exp(-SHARPNESS * abs(margin))) for margin in margins)
    assert 0.92 < expected < 0.96
    assert right == pytest.approx(expected, abs=0.03)


def differ_in_truth_alone(instruction, one, two):
    parts = [REWARD.parts(instruction, answer) for answer in (one, two)]
    same = all(parts[0][name] == parts[1][name] for name in ("form", "polite"))
    return same and parts[0]["truth"] != parts[1]["truth"] and len(one.split()) == len(two.split())


@pytest.mark.parametrize("language", SPOKEN)
def test_half_of_the_comparisons_differ_in_truth_alone(language):
    alone = 0
    for index in range(COUNT):
        chosen, rejected, _ = both_of(WORLD.comparison(language, index))
        alone += differ_in_truth_alone(WORLD.instruction(language, index), chosen, rejected)
    assert 0.4 < alone / COUNT < 0.65


@pytest.mark.parametrize("language", SPOKEN)
def test_of_four_answers_each_is_compared_with_each_and_there_are_two_wordings(language):
    firsts, margins, alone = [], [], 0
    for index in range(COUNT // 3):
        instruction, compared = WORLD.instruction(language, index), WORLD.comparison(language, index, answers=4)
        assert compared == WORLD.comparison(language, index, answers=4)
        assert compared.prompt == instruction.prompt
        answers, pairs = compared.answers, [pair for *pair, _ in compared.comparisons]
        assert sorted(map(sorted, pairs)) == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
        wording = Dice(0, "train", language, "comparison", index, 0).number(0, MOST)
        true, false = (
            respond(Dice("wording", wording), instruction, replace(COMPARED, truth=truth)) for truth in (1, 0)
        )
        firsts.append(answers.index(true))
        assert answers.index(false) != firsts[-1]
        alone += sum(differ_in_truth_alone(instruction, answers[one], answers[two]) for one, two in pairs) >= 2
        for chosen, rejected, margin in compared.comparisons:
            gain = REWARD(instruction, answers[chosen]) - REWARD(instruction, answers[rejected])
            assert margin == pytest.approx(gain)
            margins += [margin] if answers[chosen] != answers[rejected] else []
    assert {0, 1, 2, 3} == set(firsts), "the two stand anywhere"
    assert alone > 0.8 * COUNT // 3
    right = mean((margin > 0) + 0.5 * (margin == 0) for margin in margins)
    assert right == pytest.approx(mean(1 / (1 + math.exp(-SHARPNESS * abs(margin))) for margin in margins), abs=0.03)


def test_a_sharp_eye_makes_no_mistake():
    sharp = [both_of(WORLD.comparison("ko", index, sharpness=60.0))[2] for index in range(200)]
    assert min(sharp) > -0.1
    blind = [both_of(WORLD.comparison("ko", index, sharpness=0.0))[2] for index in range(400)]
    assert 0.4 < mean(margin > 0 for margin in blind if margin) < 0.6


def test_a_share_is_a_share():
    with pytest.raises(ValueError, match=r"Quality\.loops is 2"):
        Quality(loops=2)
