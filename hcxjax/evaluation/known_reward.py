"""What a policy's answers to held-out instructions of the small world are worth, by the reward that is known."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import jax
import numpy as np

from hcxjax.checks import number, whole
from hcxjax.evaluation.answers import AnswerWriter, Writes
from hcxjax.inference.requests import Continuation
from hcxjax.mesh import Layout
from hcxjax.protocols import Params
from hcxjax.text.vocabulary import Vocabulary
from hcxjax.world import Instruction, KnownReward
from hcxjax.world.known_reward import repeated_share

FOLDER = "known_reward"
"""Of the files, in RUN_DIR."""


class Asked(Protocol):
    """Prompts of a split; `hcxjax.data.prompts.PromptSet` is one. Fields as there."""

    @property
    def tokens(self) -> Sequence[Sequence[int]]: ...
    @property
    def texts(self) -> Sequence[str]: ...
    @property
    def sources(self) -> Sequence[str]: ...
    @property
    def instructions(self) -> Sequence[Instruction | None]: ...
    @property
    def stop_ids(self) -> tuple[int, ...]: ...
    @property
    def vocabulary(self) -> Vocabulary: ...
    def __len__(self) -> int: ...
    def batch(self, update: int, size: int, seed: int) -> Sequence[int]: ...


class Reader(Protocol):
    """What gives prompts; `hcxjax.data.prompts.Prompts` is one."""

    def load(self, split: str) -> Asked: ...


@dataclasses.dataclass
class KnownRewardOfAnswers:
    """Answers held-out instructions and judges the answers. The same prompts are asked at every measurement.

    Attributes:
      objective: whose policy answers.
      prompts: gives the prompts; those of the split "validation" are asked.
      every: updates between measurements.
      count: prompts, drawn from all sources alike; fewer where there are fewer.
      new_tokens: of an answer, at most.
      temperature: of sampling; 0 takes the likeliest token.
      reward: judges.
      seed: of the prompts that are drawn.
    """

    objective: Writes
    prompts: Reader
    every: int
    count: int = 512
    new_tokens: int = 40
    temperature: float = 0.7
    reward: KnownReward = dataclasses.field(default_factory=KnownReward)
    seed: int = 0

    def __post_init__(self):
        whole(self, 1, "every", "count", "new_tokens")
        whole(self, 0, "seed")
        number(self, "temperature")

    def start(self, layout: Layout, run_dir: str) -> None:
        """Reads the prompts. ValueError where one of them is no instruction."""
        self._asked = asked = self.prompts.load("validation")
        self._numbers = sorted(asked.batch(0, min(self.count, len(asked)), self.seed))
        if other := [asked.sources[number] for number in self._numbers if asked.instructions[number] is None]:
            raise ValueError(
                f"the prompts of {other[0]!r} have no known reward; KnownRewardOfAnswers.prompts must be instructions "
                "of the small world alone (instructions:LANGUAGE)"
            )
        tokens = [asked.tokens[number] for number in self._numbers]
        self._write = AnswerWriter(self.objective, tokens, asked.stop_ids, self.new_tokens, self.temperature)
        self._folder = Path(run_dir) / FOLDER

    def evaluate(self, params: Params, step: int) -> dict[str, float]:
        """`eval/world/NAME`, means over the answers, and `eval/world/SOURCE/NAME` by source; and a file of each answer.

        Names: reward, truth, form, polite, repetition (`KnownReward.parts`), length (tokens, what ends the answer
        among them), stop_rate, seq_rep_4 (share of repeated 4-grams of tokens).
        """
        lines = [
            self._judged(number, answer) for number, answer in zip(self._numbers, self._write(params), strict=True)
        ]
        if jax.process_index() == 0:
            self._keep(lines, step)
        results = _means(lines, "eval/world")
        for source in sorted({line["source"] for line in lines}):
            results |= _means([line for line in lines if line["source"] == source], f"eval/world/{source}")
        return results

    def _judged(self, number: int, answer: Continuation) -> dict:
        asked = self._asked
        instruction = asked.instructions[number]
        assert instruction is not None  # `start` has looked
        text = asked.vocabulary.decode(answer.tokens)
        parts = self.reward.parts(instruction, text)
        return {
            "prompt": number,
            "source": asked.sources[number],
            "asked": asked.texts[number],
            "answer": text,
            "reward": parts.pop("total"),
            **parts,
            "length": len(answer.tokens),
            "stop_rate": float(answer.finish == "stop"),
            "seq_rep_4": repeated_share(answer.tokens),
        }

    def _keep(self, lines: list[dict], step: int) -> None:
        """Writes `known_reward/STEP.jsonl`, a line a prompt, so that runs can be compared prompt by prompt."""
        self._folder.mkdir(exist_ok=True, parents=True)
        path = self._folder / f"{step:08d}.jsonl"
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        os.replace(partial, path)


def _means(lines: list[dict], prefix: str) -> dict[str, float]:
    names = [name for name, value in lines[0].items() if isinstance(value, float | int) and name != "prompt"]
    return {f"{prefix}/{name}": float(np.mean([line[name] for line in lines])) for name in names}
