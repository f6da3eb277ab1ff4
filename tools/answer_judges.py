"""Judges of answers: a bag of bigrams that learns from comparisons when it is asked for, and reward models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from hcxjax.data.comparisons import HeldOutComparisons
from hcxjax.data.preferences import Preferences
from hcxjax.data.rollouts.episodes import Episodes
from hcxjax.data.rollouts.judges import Reward
from hcxjax.evaluation.intervals import share_between
from hcxjax.evaluation.pair_accuracy import answers_of, prompts_of
from hcxjax.evaluation.preference_floors import Bigrams, preferred
from hcxjax.mesh import Layout
from tools.curves import series

_ALL = 1_000_000


class Accuracy(NamedTuple):
    """Of comparisons that a judge has not learnt from, the share that it puts right, and its 95 % interval."""

    share: float
    low: float
    high: float


class Judge(Protocol):
    """What prefers one of two answers."""

    name: str
    accuracy: Accuracy

    def gains(self, before: Episodes, after: Episodes, sources: Sequence[str]) -> np.ndarray:
        """gain_B: above 0 where the answer in `after` is preferred to that in `before`, to the same prompts.

        Args:
          sources: names of the prompts' sources.
        """
        ...


class BagOfBigrams:
    """Bradley-Terry over bags of token bigrams (`hcxjax.evaluation.preference_floors.Bigrams`).

    Args:
      preferences: what it learns from, and by which its accuracy is measured: the prompts that are held out.
      layout: of the arrays that comparisons are read into.
    """

    name = "bigrams"

    def __init__(self, preferences: Preferences, layout: Layout):
        held_out = HeldOutComparisons(preferences, batch_tokens=16 * preferences.length, most=_ALL)
        self._bigrams = Bigrams(held_out.learnt(_ALL))
        batches = [rows for own in held_out.load(layout).values() for rows in own]
        pairs = [pair for rows in batches for pair in answers_of(rows)]
        prompts = np.concatenate([prompts_of(rows) for rows in batches])
        right = preferred(self._bigrams.differences(pairs))
        self.accuracy = Accuracy(*share_between(right, prompts))

    def gains(self, before: Episodes, after: Episodes, sources: Sequence[str]) -> np.ndarray:
        """w · x of the later answer against the earlier one, what ends them included."""
        del sources
        return self._bigrams.differences(list(zip(_answers(after), _answers(before), strict=True)))


class RewardModel:
    """A reward model with its card.

    Args:
      reward: the model.
      run: RUN_DIR of the run that trained it.
      rows: answers that are scored at once.
    """

    def __init__(self, reward: Reward, run: Path, rows: int):
        self.name, self._reward, self._rows = run.name, reward, rows
        told: Mapping[str, list[tuple[int, float]]] = series(run)
        bounds = [told.get(f"eval/preference/{bound}", [(0, np.nan)])[-1][1] for bound in ("low", "high")]
        self.accuracy = Accuracy(reward.card.accuracy, *bounds)

    def gains(self, before: Episodes, after: Episodes, sources: Sequence[str]) -> np.ndarray:
        """The difference between their rewards, on the card's scale."""
        return self.rewards(after, sources) - self.rewards(before, sources)

    def rewards(self, episodes: Episodes, sources: Sequence[str]) -> np.ndarray:
        """reward_B on the card's scale."""
        scores = []
        for start in range(0, len(episodes.prompt_B), self._rows):
            part = episodes.rows(start, start + self._rows)
            scores.append(np.asarray(self._reward.scores(part.batch(), part.ends_B - 1)))
        return self._reward.rewards(np.concatenate(scores), sources)


def _answers(episodes: Episodes) -> list[np.ndarray]:
    places = zip(episodes.tokens_BT, episodes.begins_B, episodes.ends_B, strict=True)
    return [tokens_T[begins:ends] for tokens_T, begins, ends in places]
