"""The frozen models of reinforcement learning: a reference that gives log-probabilities, a reward model that scores."""

import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from hcxjax.data.kept_tokenizer import check_same
from hcxjax.mesh import Layout
from hcxjax.models.config import DecoderConfig
from hcxjax.models.scalar import init_scalar, score
from hcxjax.objectives.language_model import LanguageModel
from hcxjax.objectives.lora import LoRA
from hcxjax.objectives.ppo import PPO
from hcxjax.objectives.reward_card import RewardCard
from hcxjax.partition import fingerprint
from hcxjax.protocols import Array, Batch, Params
from hcxjax.text.vocabulary import Vocabulary
from hcxjax.warm_start import Origin, read_frozen

_log = logging.getLogger(__name__)


class Judge(Protocol):
    """What scores whole answers: a reward model, or a rule."""

    fingerprint: str
    """Of whatever its scores depend on; a run goes on only with the same."""

    def scores(self, batch: Mapping[str, np.ndarray], last_B: np.ndarray) -> Array:
        """score_B of episodes, given as `Episodes.batch` and the place of each row's last token."""
        ...

    def rewards(self, score_B: np.ndarray, sources: Sequence[str]) -> np.ndarray:
        """reward_B: the scores on the scale that the policy learns from; `sources` are those of the prompts."""
        ...

    def scales(self, sources: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(mean_B, std_B) that take raw scores to that scale; 0 and 1 where they are on it."""
        ...


class Reference:
    """What the policy shall not go far from.

    Args:
      objective: gives the log-probabilities.
      layout: the devices that it lies on.
    """

    def __init__(self, objective: PPO | LoRA, layout: Layout):
        self._objective, self._layout = objective, layout
        self._logprobs = jax.jit(objective.logprobs, out_shardings=layout.sharding())

    def read(self, folder: str, vocabulary: Vocabulary) -> Params:
        """Its parameters. ValueError where they know another vocabulary."""
        check_same(vocabulary, Origin.parse(folder).folder)
        return read_frozen(LanguageModel(self._objective.model).init, folder, self._layout)

    def fingerprint(self, params: Params) -> int:
        """Stands for the parameters' values."""
        with self._layout.active():
            return fingerprint(params)

    def logprobs(self, params: Params, batch: Mapping[str, np.ndarray]) -> Array:
        """logprob_BT of the targets, being computed when this returns."""
        with self._layout.active():
            return self._logprobs(params, _placed(batch, self._layout))


class Reward:
    """A reward model with its card.

    Args:
      model: its sizes.
      folder: the RUN_DIR of the run that trained it.
      vocabulary: that of the policy.
      layout: the devices that it lies on.
    Raises:
      ValueError: it knows another vocabulary, or has no card, or one that does not belong to its weights.
    """

    def __init__(self, model: DecoderConfig, folder: str, vocabulary: Vocabulary, layout: Layout):
        place = Origin.parse(folder).folder
        check_same(vocabulary, place)
        self._layout = layout
        self._params = read_frozen(lambda rng: init_scalar(model, rng), folder, layout)
        self.card = RewardCard.read(place)
        self.card.check(self._params)
        self.fingerprint = self.card.weights
        self._unknown: set[str] = set()

        def scores(params: Params, batch: Batch, end_B: Array) -> Array:
            return score(model, params, batch["tokens_BT"], batch["segment_ids_BT"], batch["positions_BT"], end_B)

        self._scores = jax.jit(scores, out_shardings=layout.sharding())

    def scores(self, batch: Mapping[str, np.ndarray], last_B: np.ndarray) -> Array:
        """score_B at the place of each row's last token, being computed when this returns."""
        with self._layout.active():
            placed = dict(_placed({**batch, "last_B": last_B}, self._layout))
            end_B = placed.pop("last_B")
            return self._scores(self._params, placed, end_B)

    def rewards(self, score_B: np.ndarray, sources: Sequence[str]) -> np.ndarray:
        """Scores on the card's scale, each by the mean and deviation of its prompt's source, where the card has it."""
        reward_B = np.zeros(len(score_B), np.float32)
        for source in sorted(set(sources)):
            here_B = np.array([name == source for name in sources])
            reward_B[here_B] = np.asarray(self.card.normalised(jnp.asarray(score_B[here_B]), self._known(source)))
        return reward_B

    def scales(self, sources: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(mean_B, std_B) of the card for prompts of these sources."""
        scales = {name: self.card.scale(self._known(name)) for name in set(sources)}
        mean_B, std_B = np.array([[scales[name].mean, scales[name].std] for name in sources], np.float32).T
        return mean_B, std_B

    def _known(self, source: str) -> str | None:
        """The source, or None where the card has none of this name: that is told once."""
        if source in self.card.sources:
            return source
        if source not in self._unknown:
            self._unknown.add(source)
            _log.warning(
                "the reward model's card has no scale of its own for prompts of %s; that of all is taken", source
            )
        return None


def _placed(arrays: Mapping[str, np.ndarray], layout: Layout) -> Batch:
    count = len(next(iter(arrays.values())))
    return layout.shard_batch(lambda start, stop: {name: rows[start:stop] for name, rows in arrays.items()}, count)
