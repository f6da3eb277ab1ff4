"""The reward that is known: what an answer to an instruction is worth, for any text."""

import collections
from dataclasses import dataclass

from hcxjax.checks import number
from hcxjax.world.instructions import Instruction

_GRAM = 4


def repetition(text: str) -> float:
    """Share of 4-grams of characters that occurred before, in [0, 1); 0 for fewer than five characters but spaces."""
    letters = "".join(text.split()).lower()
    grams = collections.Counter(letters[at : at + _GRAM] for at in range(len(letters) - _GRAM + 1))
    total = grams.total()
    return 1 - len(grams) / total if total else 0.0


@dataclass(frozen=True)
class KnownReward:
    """truth · [is true] + form · [is of the form] + polite · [is polite] + repetition · (share of repeated 4-grams).

    Attributes:
      truth, form, polite: what each is worth.
      repetition: weight of the share of repeated 4-grams; negative.
    """

    truth: float = 1.0
    form: float = 0.5
    polite: float = 0.5
    repetition: float = -1.0

    def __post_init__(self):
        number(self, "truth", "form", "polite", "repetition")

    def parts(self, instruction: Instruction, answer: str) -> dict[str, float]:
        """`truth`, `form` and `polite` as 0 or 1, `repetition` as a share, and their weighted sum `total`."""
        parts = {
            "truth": float(instruction.is_true(answer)),
            "form": float(instruction.is_of_the_form(answer)),
            "polite": float(instruction.is_polite(answer)),
            "repetition": repetition(answer),
        }
        return parts | {"total": sum(getattr(self, name) * value for name, value in parts.items())}

    def __call__(self, instruction: Instruction, answer: str) -> float:
        """The weighted sum alone."""
        return self.parts(instruction, answer)["total"]
