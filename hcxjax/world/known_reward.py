"""The reward that is known: what an answer to an instruction is worth, for any text."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from hcxjax.checks import number
from hcxjax.world.instructions import Instruction

_GRAM = 4


def repeated_share(sequence: Sequence[Hashable], n: int = _GRAM) -> float:
    """Share of n-grams that occurred before, in [0, 1); 0 where there is none.

    Source: Welleck et al. 2020, arXiv:1908.04319, section 6 (seq-rep-n).
    """
    grams = [tuple(sequence[at : at + n]) for at in range(len(sequence) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def repetition(text: str) -> float:
    """Share of repeated 4-grams of characters, whatever their case; spaces count for nothing."""
    return repeated_share("".join(text.split()).lower())


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
