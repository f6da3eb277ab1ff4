"""The card beside a reward model's weights: on what scale its scores are, and how often it is right."""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from hcxjax.checks import number, whole
from hcxjax.protocols import Array, Params

FILE = "reward_card.json"
"""In the RUN_DIR of the run that trained the weights."""
_FORMAT = 1


class Scale(NamedTuple):
    """Scores of the answers to one source's prompts.

    Attributes:
      mean, std: of the scores.
      count: how many there were.
    """

    mean: float
    std: float
    count: int


@dataclasses.dataclass(frozen=True)
class RewardCard:
    """What turns raw scores into rewards: clip((r − mean) / std, −clip, clip).

    A reward model's scores have no zero and no unit of their own, and differ from source to source.

    Source: HyperCLOVA X, arXiv:2404.01954, on the reward model: normalised and clipped at inference; δ is not
    disclosed.

    Attributes:
      mean, std: of the scores of `count` answers.
      clip: δ, in standard deviations.
      count: answers scored.
      samples: who wrote them: a policy's FOLDER@STEP, or 'demonstrations' for held-out answers that were preferred.
      accuracy: share of held-out comparisons that the weights put right.
      sources: name → mean, std and count of the answers to this source's prompts.
      weights: `fingerprint` of the parameters.
      step: of their checkpoint.
      folder: where the card was read from or written to, for messages.
    """

    mean: float
    std: float
    clip: float
    count: int
    samples: str
    accuracy: float
    sources: Mapping[str, Scale]
    weights: str
    step: int
    folder: str = dataclasses.field(default="", compare=False)

    def __post_init__(self):
        number(self, "mean", "std", "clip", "accuracy")
        whole(self, 1, "count")
        if not self.clip > 0:
            raise ValueError(f"RewardCard.clip is {self.clip}; it must be positive")
        for name, scale in {"all samples": self._whole, **self.sources}.items():
            if not (math.isfinite(scale.mean) and math.isfinite(scale.std) and scale.std > 0):
                raise ValueError(
                    f"RewardCard: the scores of {name} have mean {scale.mean} and std {scale.std}; a reward cannot be "
                    "made of scores that are all alike or not finite"
                )

    @property
    def _whole(self) -> Scale:
        return Scale(self.mean, self.std, self.count)

    @classmethod
    def read(cls, folder: str) -> "RewardCard":
        """The card in a run's folder.

        Raises:
          ValueError: there is none, or it is damaged.
        """
        path = Path(folder) / FILE
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            if fields.pop("format") != _FORMAT:
                raise ValueError("another format")
            sources = {name: Scale(**scale) for name, scale in fields.pop("sources").items()}
            return cls(**fields, sources=sources, folder=folder)
        except FileNotFoundError as error:
            raise ValueError(
                f"{folder} has no {FILE}, so its scores have no scale; a reward model's run writes one at its end "
                "(CalibrateReward among Experiment.evaluators)"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error

    def write(self, folder: str) -> None:
        """Puts the card into a run's folder; a reader finds all of it, or what was there before."""
        fields = {name: value for name, value in vars(self).items() if name != "folder"}
        fields["sources"] = {name: scale._asdict() for name, scale in self.sources.items()}
        path = Path(folder) / FILE
        partial = path.with_suffix(".partial")
        with partial.open("w", encoding="utf-8") as file:
            json.dump({"format": _FORMAT, **fields}, file, indent=2, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def check(self, params: Params) -> None:
        """ValueError unless the card is of these weights, as they were trained: not cast to another dtype."""
        found = fingerprint(params)
        if found != self.weights:
            raise ValueError(
                f"{Path(self.folder) / FILE} does not belong to the weights: it is of {self.weights}, they are "
                f"{found}. Name the checkpoint that the card was made of, {self.folder or 'RUN_DIR'}@{self.step}; or "
                "let that run train on (STEPS), which writes a card of its last weights"
            )

    def scale(self, source: str | None = None) -> Scale:
        """Of one source's prompts, or of all samples. ValueError where the card does not know the source."""
        if source is not None and source not in self.sources:
            known = ", ".join(self.sources) or "none"
            raise ValueError(f"{Path(self.folder) / FILE} knows no source {source!r}; it knows {known}")
        return self._whole if source is None else self.sources[source]

    def normalised(self, score_B: Array | np.ndarray, source: str | None = None) -> Array:
        """reward_B, float32: clip((score − mean) / std, −clip, clip).

        Args:
          source: whose mean and std; None takes those of all samples.
        Raises:
          ValueError: the card does not know the source.
        """
        scale = self.scale(source)
        reward_B = (jnp.asarray(score_B, jnp.float32) - scale.mean) / scale.std
        return jnp.clip(reward_B, -self.clip, self.clip)


def fingerprint(params: Params) -> str:
    """Stands for a scalar model's weights: a hash of its head and last norm, which every update changes.

    The other leaves may be too large to be fetched.

    Args:
      params: on the mesh or on the host, float32.
    """
    leaves = (params["head"]["weight"], params["head"]["bias"], params["decoder"]["norm"]["weight"])
    digest = hashlib.sha256()
    for leaf in leaves:
        digest.update(_fetched(leaf).astype("<f4").tobytes())
    return digest.hexdigest()[:16]


def _fetched(leaf: Array | np.ndarray) -> np.ndarray:
    """A whole leaf on the host of every process."""
    if isinstance(leaf, np.ndarray) or leaf.is_fully_addressable:
        return np.asarray(leaf)
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
