"""Demonstrations have the faults that were asked for, comparisons the noise."""

import math
from statistics import mean

import pytest

from hcxjax.world import SHARPNESS, SPOKEN, KnownReward, Quality, World
from hcxjax.world.demonstrations import respond
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


@pytest.mark.parametrize("language", SPOKEN)
def test_comparisons_are_noisy_as_said(language):
    compared = [c for index in range(COUNT) for c in WORLD.comparison(language, index, comparisons=2)]
    assert len(compared) == 2 * COUNT
    assert [c for index in range(20) for c in WORLD.comparison(language, index, comparisons=2)] == compared[:40]
    assert WORLD.comparison(language, 7)[0] == WORLD.comparison(language, 7, comparisons=3)[0]
    assert sum(first[1:3] != second[1:3] for first, second in zip(compared[::2], compared[1::2], strict=True)) > 500
    for number, one in enumerate(compared):
        instruction = WORLD.instruction(language, number // 2)
        assert one.prompt == instruction.prompt and one.chosen != one.rejected
        gain = REWARD(instruction, one.chosen) - REWARD(instruction, one.rejected)
        assert one.margin == pytest.approx(gain)
    right = mean((one.margin > 0) + 0.5 * (one.margin == 0) for one in compared)
    expected = mean(1 / (1 + math.exp(-SHARPNESS * abs(one.margin))) for one in compared)
    assert 0.92 < expected < 0.96
    assert right == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("language", SPOKEN)
def test_half_of_the_comparisons_differ_in_truth_alone(language):
    alone = 0
    for index in range(COUNT):
        instruction, (one,) = WORLD.instruction(language, index), WORLD.comparison(language, index)
        parts = [REWARD.parts(instruction, answer) for answer in (one.chosen, one.rejected)]
        same = all(parts[0][name] == parts[1][name] for name in ("form", "polite"))
        alone += (
            same and parts[0]["truth"] != parts[1]["truth"] and len(one.chosen.split()) == len(one.rejected.split())
        )
    assert 0.4 < alone / COUNT < 0.65


def test_a_sharp_eye_makes_no_mistake():
    sharp = [WORLD.comparison("ko", index, sharpness=60.0)[0].margin for index in range(200)]
    assert min(sharp) > -0.1
    blind = [WORLD.comparison("ko", index, sharpness=0.0)[0].margin for index in range(400)]
    assert 0.4 < mean(margin > 0 for margin in blind if margin) < 0.6


def test_a_share_is_a_share():
    with pytest.raises(ValueError, match=r"Quality\.loops is 2"):
        Quality(loops=2)
