"""Answers of mixed quality to instructions, and comparisons of them that the known reward decides, with noise."""

import math
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
    """Two answers to a prompt, and which of them was preferred.

    Attributes:
      prompt, chosen, rejected: texts; the two answers differ.
      margin: the known reward of `chosen` less that of `rejected`; negative where noise decided. No label to train on.
    """

    prompt: str
    chosen: str
    rejected: str
    margin: float


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
    dice: Dice, instruction: Instruction, quality: Quality, reward: KnownReward, sharpness: float
) -> Comparison:
    """Two answers, the first preferred with probability σ(sharpness · (its reward - the other's)).

    Half of the pairs are the same answer with a true value and with a false one: what is true is hard to see for a
    small model, and the wording of two answers would drown it.

    Source: Bradley and Terry 1952, with rewards as log-strengths.
    """
    if dice.chance(SAME_WORDING):
        wording, order = dice.number(0, MOST), (1.0, 0.0) if dice.chance(0.5) else (0.0, 1.0)
        first, second = (
            respond(Dice("wording", wording), instruction, replace(quality, truth=truth)) for truth in order
        )
    else:
        first = second = respond(dice, instruction, quality)
        while second == first:
            second = respond(dice, instruction, quality)
    gain = reward(instruction, first) - reward(instruction, second)
    if dice.chance(1 / (1 + math.exp(-sharpness * gain))):
        return Comparison(instruction.prompt, first, second, gain)
    return Comparison(instruction.prompt, second, first, -gain)
