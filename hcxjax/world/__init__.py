"""A small bilingual world: the same facts and short stories in Korean, in English and as Python, any number of them.

Document `i` of a split is a pure function of (seed, split, language, i), and the three languages tell the same scene.
The people, places, things and events of the validation split never occur in training documents.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from hcxjax.world import code, english, korean
from hcxjax.world.demonstrations import Compared, Quality, compare, respond
from hcxjax.world.dialogues import converse
from hcxjax.world.dice import Dice
from hcxjax.world.document import write
from hcxjax.world.facts import Fact, Scene, sample_scene
from hcxjax.world.instructions import Instruction, pose
from hcxjax.world.known_reward import KnownReward
from hcxjax.world.names import SPLITS
from hcxjax.world.probes import PROBES, Probe, pose_probes

LANGUAGES = ("ko", "en", "code")
SPOKEN = LANGUAGES[:2]

__all__ = [
    "LANGUAGES",
    "PROBES",
    "SHARPNESS",
    "SPLITS",
    "SPOKEN",
    "Compared",
    "Fact",
    "Instruction",
    "KnownReward",
    "Probe",
    "Quality",
    "Scene",
    "World",
]

MIXED, COMPARED, REWARD = Quality(), Quality(truth=0.5), KnownReward()
"""Of demonstrations, of comparisons, and what judges these. Compared answers are wrong more often, so that comparisons
tell of truth; demonstrations are wrong less often, because a small model learns to copy from true answers alone."""
SHARPNESS = 5.0
"""Of comparisons, a unit of the known reward: the preferred answer is then the better one in 94 of 100, ties halved."""


def _require(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}, must be one of {', '.join(known)}")


@dataclass(frozen=True)
class World:
    """The world of a seed.

    Attributes:
      seed: worlds of different seeds tell different scenes with the same names and words.
      names: the split whose people instructions speak of; None takes that of the instruction, so that held-out ones
        speak of people whom training never mentions.
    """

    seed: int = 0
    names: str | None = None

    def __post_init__(self):
        if self.names is not None:
            _require("World.names", self.names, SPLITS)

    def scene(self, index: int, split: str = "train") -> Scene:
        """What document `index` tells of in every language."""
        _require("split", split, SPLITS)
        if index < 0:
            raise ValueError(f"index is {index}, must be 0 or more")
        return sample_scene(self.seed, split, index)

    def document(self, language: str, index: int, split: str = "train") -> str:
        """Document `index`. Raises ValueError for an unknown language or split, or a negative index."""
        _require("language", language, LANGUAGES)
        scene = self.scene(index, split)
        dice = Dice(self.seed, split, language, index)
        if language == "code":
            return code.write(dice, scene)
        return write(korean if language == "ko" else english, dice, scene)

    def documents(self, language: str, split: str = "train", start: int = 0, count: int = 1) -> Iterator[str]:
        """Documents `start` to `start + count - 1`."""
        return (self.document(language, index, split) for index in range(start, start + count))

    def dialogue(self, language: str, index: int, split: str = "train") -> list[str]:
        """Requests and answers about scene `index` in turn. Raises ValueError as `document`, and for code."""
        _require("language", language, SPOKEN)
        dice = Dice(self.seed, split, language, "dialogue", index)
        return converse(korean if language == "ko" else english, dice, self.scene(index, split))

    def instruction(self, language: str, index: int, split: str = "train") -> Instruction:
        """Instruction `index`. Raises ValueError as `dialogue`."""
        _require("language", language, SPOKEN)
        _require("split", split, SPLITS)
        if index < 0:
            raise ValueError(f"index is {index}, must be 0 or more")
        return pose(self.seed, split, language, index, self.names)

    def demonstration(
        self, language: str, index: int, split: str = "train", quality: Quality = MIXED
    ) -> tuple[str, str]:
        """(prompt, answer) of instruction `index`; the answer is of mixed quality. Raises ValueError as `dialogue`."""
        instruction = self.instruction(language, index, split)
        return instruction.prompt, respond(
            Dice(self.seed, split, language, "demonstration", index), instruction, quality
        )

    def comparison(
        self,
        language: str,
        index: int,
        split: str = "train",
        answers: int = 2,
        *,
        quality: Quality = COMPARED,
        reward: KnownReward = REWARD,
        sharpness: float = SHARPNESS,
    ) -> Compared:
        """Answers to instruction `index`, each compared with each other: preferred by `reward` with noise.

        Args:
          answers: how many, 2 or more.
          sharpness: of the choice, a unit of reward.
        Raises:
          ValueError: as `dialogue`.
        """
        instruction = self.instruction(language, index, split)
        dice = Dice(self.seed, split, language, "comparison", index, 0)
        return compare(dice, instruction, quality, reward, sharpness, answers)

    def probes(self, kind: str, count: int, split: str = "validation") -> list[Probe]:
        """The first `count` probes of a kind: always the same ones, and a longer list begins with the shorter."""
        _require("kind", kind, PROBES)
        _require("split", split, SPLITS)
        return pose_probes(self.seed, kind, count, split)
