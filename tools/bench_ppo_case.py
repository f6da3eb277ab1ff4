"""What both sides of `python -m tools.bench ppo` are given: sizes, prompts, and weights that stop at a known rate."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

PAD, STOP = 0, 1
"""Ids that no prompt holds."""
_FIRST = 2

_KIND = 0.35
"""The embeddings' second column: of tokens that lead to short answers, and less it of those that lead to long ones."""
_COMMON = 0.4
"""The embeddings' first column, of all tokens alike: the stop token's row meets it in every hidden state."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
      shape: fields of a `DecoderConfig`, of policy, value network, reference and reward model alike.
      episodes: answers a rollout.
      prompt_tokens: longest prompt; lengths are drawn evenly from 4 up.
      new_tokens: of an answer, at most.
      mean_tokens: what an answer would have on average without that limit: 1 / the chance to stop.
      long_share: of the prompts, whose answers go to the limit.
      epochs: passes over a rollout, one minibatch each.
      warm, rollouts: not timed, then timed.
      temperature: of the policy.
      bonus: what the stop token's row has more than the others, so that it stops; `calibrated` finds it.
      seed: of prompts and weights.
    """

    shape: dict[str, Any]
    episodes: int = 64
    prompt_tokens: int = 64
    new_tokens: int = 64
    mean_tokens: float = 24.0
    long_share: float = 0.0
    epochs: int = 4
    warm: int = 3
    rollouts: int = 5
    temperature: float = 0.7
    bonus: float = 0.0
    seed: int = 0

    @classmethod
    def read(cls, folder: Path) -> "Case":
        """That of `folder`."""
        return cls(**json.loads((folder / "case.json").read_text()))

    def write(self, folder: Path) -> None:
        """Into `folder`, whose `model` holds the weights."""
        (folder / "case.json").write_text(json.dumps(dataclasses.asdict(self)))

    @property
    def middle(self) -> int:
        """The first of the ids that lead to long answers."""
        return (_FIRST + self.shape["vocab_size"]) // 2

    @property
    def prompts(self) -> list[list[int]]:
        """Ids of each episode's prompt; every rollout has the same."""
        rng = np.random.default_rng(self.seed)
        vocabulary = self.shape["vocab_size"]
        middle = self.middle
        lengths = rng.integers(4, self.prompt_tokens + 1, self.episodes)
        slow = np.arange(self.episodes) < round(self.long_share * self.episodes)
        rng.shuffle(slow)
        return [
            (rng.integers(middle, vocabulary, length) if long else rng.integers(_FIRST, middle, length)).tolist()
            for length, long in zip(lengths, slow, strict=True)
        ]

    def steered(self, embed_VD: np.ndarray) -> np.ndarray:
        """The embeddings, which are the output head too, with which the stop token is drawn as often as asked."""
        embed_VD = np.array(embed_VD, np.float32)
        embed_VD[:, 0] = _COMMON
        if self.long_share:
            embed_VD[:, 1] = np.where(np.arange(len(embed_VD)) < self.middle, _KIND, -_KIND)
        embed_VD[STOP, 0] += self.bonus
        return embed_VD

    def calibrated(self, hidden_ND: np.ndarray, embed_VD: np.ndarray) -> "Case":
        """The case with the bonus that gives hidden states, those after prompts' tokens, the wanted chance to stop."""
        logits_NV = hidden_ND @ self.steered(embed_VD).T / self.temperature
        stop_N = logits_NV[:, STOP].copy()
        logits_NV[:, STOP] = -np.inf
        rest_N = np.logaddexp.reduce(logits_NV, axis=1)
        low, high = 0.0, 100.0
        for _ in range(40):
            middle = (low + high) / 2
            odds_N = stop_N - rest_N + middle * hidden_ND[:, 0] / self.temperature
            chance = float(np.mean(1 / (1 + np.exp(-np.clip(odds_N, -50, 50)))))
            low, high = (middle, high) if chance < 1 / self.mean_tokens else (low, middle)
        return dataclasses.replace(self, bonus=(low + high) / 2)
