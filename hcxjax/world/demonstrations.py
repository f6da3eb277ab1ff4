"""Answers of mixed quality to instructions, and comparisons of them that the known reward decides, with noise."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from hcxjax.checks import number
from hcxjax.world.dice import Dice
from hcxjax.world.instructions import FORMS, Instruction
from hcxjax.world.known_reward import KnownReward

SAME_WORDING, MOST = 0.5, 2**31


@dataclass(frozen=True)
class Quality:
    """How often an answer is as it should be, each independent of the others.

    Attributes:
      truth: share that says the true value; the others say one that somebody else has, or make one up.
      form: share of the form that was asked for; the others have another.
      polite: share with manners.
      loops: share that says everything again and again.
    """

    truth: float = 0.8
    form: float = 0.6
    polite: float = 0.6
    loops: float = 0.15

    def __post_init__(self):
        number(self, "truth", "form", "polite", "loops")
        for name, share in vars(self).items():
            if not 0 <= share <= 1:
                raise ValueError(f"Quality.{name} is {share}; it must lie in [0, 1]")


class Comparison(NamedTuple):
    """Of two answers, which was preferred.

    Attributes:
      chosen, rejected: their places among the answers.
      margin: the known reward of `chosen` less that of `rejected`; negative where noise decided. No label to train on.
    """

    chosen: int
    rejected: int
    margin: float


class Compared(NamedTuple):
    """Answers to a prompt, each compared with each other.

    Attributes:
      prompt, answers: texts. Two answers differ; of more some may be equal.
      comparisons: one of each pair of answers, equal ones too.
    """

    prompt: str
    answers: Sequence[str]
    comparisons: Sequence[Comparison]


def respond(dice: Dice, instruction: Instruction, quality: Quality) -> str:
    """An answer whose faults are drawn."""
    form, wrong = instruction.form, dice.pick(instruction.told or instruction.rivals)
    value = instruction.value if dice.chance(quality.truth) else wrong
    fits, polite = dice.chance(quality.form), dice.chance(quality.polite)

    def written(form: str) -> str:
        opening = instruction.opening or dice.pick(instruction.answerer.OPENINGS)
        return instruction.answerer.answer(
            dice, form, instruction.relation, instruction.subject, value, opening, polite
        )

    answer = written(form)
    if not fits:
        others = [written(other) for other in dice.draw(FORMS, len(FORMS))]
        others.append(f"{written('sentence')} {written('sentence')}")
        answer = next((other for other in others if not instruction.is_of_the_form(other)), answer)
    return " ".join([answer] * dice.number(2, 3)) if dice.chance(quality.loops) else answer


def compare(
    dice: Dice, instruction: Instruction, quality: Quality, reward: KnownReward, sharpness: float, count: int
) -> Compared:
    """`count` answers, of each two the first preferred with probability σ(sharpness · (its reward - the other's)).

    Source: Bradley and Terry 1952, with rewards as log-strengths.
    """
    answers = _answers(dice, instruction, quality, count)
    rewards = [reward(instruction, answer) for answer in answers]
    comparisons = []
    for one, two in itertools.combinations(range(count), 2):
        gain = rewards[one] - rewards[two]
        if dice.chance(1 / (1 + math.exp(-sharpness * gain))):
            comparisons.append(Comparison(one, two, gain))
        else:
            comparisons.append(Comparison(two, one, -gain))
    return Compared(instruction.prompt, answers, comparisons)


def _answers(dice: Dice, instruction: Instruction, quality: Quality, count: int) -> list[str]:
    """What is compared: of two, half are one answer with a true and a false value; of more, all are such pairs.

    What is true is hard to see for a small model, and the wording of two answers would drown it.
    """
    if count == 2 and not dice.chance(SAME_WORDING):
        answers = [respond(dice, instruction, quality)] * 2
        while answers[1] == answers[0]:
            answers[1] = respond(dice, instruction, quality)
        return answers
    answers = []
    for _ in range(count // 2):
        wording, order = dice.number(0, MOST), (1.0, 0.0) if dice.chance(0.5) else (0.0, 1.0)
        answers += [respond(Dice("wording", wording), instruction, replace(quality, truth=truth)) for truth in order]
    if count == 2:
        return answers
    answers += [respond(dice, instruction, quality) for _ in range(count % 2)]
    return dice.draw(answers, count)
