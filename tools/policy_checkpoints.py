"""The checkpoints of a run of PPO, and what each of them answers to prompts that the run held out."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from hcxjax.checkpoint import CheckpointFolder, KeepPolicy
from hcxjax.data.prompts import PromptSet
from hcxjax.data.rollouts.episodes import Episodes
from hcxjax.data.rollouts.judges import Reference, Reward
from hcxjax.data.rollouts.player import Call, Player
from hcxjax.data.rollouts.source import Rollouts
from hcxjax.main import configure
from hcxjax.mesh import Layout
from hcxjax.objectives.ppo import PPO
from hcxjax.objectives.returns import kl_terms
from hcxjax.train import Experiment
from hcxjax.warm_start import read_frozen

ROWS = 16
"""Answers that are judged at once."""


class PolicyRun:
    """A run of PPO whose checkpoints answer held-out prompts, sampled as in training, with the same draws each.

    Args:
      run: its RUN_DIR.
      count: prompts of each source, at most.

    Attributes:
      source: of the run.
      layout: the devices that are here.
      prompts: those held out.
      numbers: of the prompts that are asked.
      sources: of these.
      judge: the run's own reward model.

    Raises:
      ValueError: it is no run of PPO with a reward model, or holds out too few prompts.
    """

    def __init__(self, run: Path, count: int):
        experiment, _ = configure([str(run / "config.gin")], [f"RUN_DIR={run}"])
        source = experiment.source if isinstance(experiment, Experiment) else None
        if not isinstance(source, Rollouts) or not isinstance(source.objective, PPO):
            raise ValueError(f"{run}/config.gin does not train a whole policy by PPO")
        if not isinstance(source.reward, str) or source.reference is None:
            raise ValueError(f"{run}/config.gin names no reward model's run (Rollouts.reward)")
        self._run, self._objective = run, source.objective
        self.source, self.layout = source, Layout()
        self.prompts = source.prompts.load("validation")
        self.numbers = chosen(self.prompts, count)
        self.sources = [self.prompts.sources[number] for number in self.numbers]
        self.judge = self.reward(source.reward)
        reference = Reference(self._objective, self.layout)
        self._reference = reference.read(source.reference, self.prompts.vocabulary)
        self._player = Player(
            self._objective.model,
            reference,
            self.judge,
            width=source.width,
            new_tokens=source.new_tokens,
            temperature=self._objective.temperature,
            stop_ids=self.prompts.stop_ids,
            seed=source.seed,
            rows=ROWS,
            settings=source.settings,
            layout=self.layout,
        )

    def reward(self, folder: str) -> Reward:
        """A reward model of the sizes of the run's own. ValueError where it does not fit."""
        model = self.source.reward_model or self._objective.critic
        return Reward(model, folder, self.prompts.vocabulary, self.layout)

    def steps(self) -> list[int]:
        """Checkpoints that are kept."""
        return CheckpointFolder(self._run / "checkpoints", KeepPolicy(), read_only=True).steps()

    def answers(self, step: int) -> Episodes:
        """What the policy of a checkpoint answers; 0: that which the run began from."""
        policy = self._reference
        if step:
            policy = self._objective.policy(read_frozen(self._objective.init, f"{self._run}@{step}", self.layout))
        prompts = [self.prompts.tokens[number] for number in self.numbers]
        call = Call(0, step, prompts, np.asarray(self.numbers, np.int32), self.sources)
        return self._player.play(call, policy, self._reference).episodes

    def kl(self, episodes: Episodes) -> np.ndarray:
        """kl_B, nats: log p of each answer less that of the reference, whose mean estimates the divergence."""
        mask_BT, _ = episodes.answers(self.prompts.stop_ids)
        width = mask_BT.shape[1]
        sampled_BT, reference_BT = episodes.sampled_BT[:, :width], episodes.reference_BT[:, :width]
        k1_BT, _, _ = kl_terms(jnp.asarray(sampled_BT), jnp.asarray(reference_BT), jnp.asarray(mask_BT))
        return np.asarray(k1_BT).sum(axis=1)

    def lines(self, episodes: Episodes) -> Iterator[dict]:
        """Answers for people."""
        for row, number in enumerate(self.numbers):
            tokens_T = episodes.tokens_BT[row, episodes.begins_B[row] : episodes.ends_B[row]]
            yield {
                "source": self.sources[row],
                "asked": self.prompts.texts[number],
                "answer": self.prompts.vocabulary.decode(tokens_T.tolist()),
                "score": float(episodes.score_B[row]),
            }


def chosen(prompts: PromptSet, count: int) -> list[int]:
    """Numbers of `count` prompts of each source, drawn; together a multiple of ROWS.

    Raises:
      ValueError: there are fewer than ROWS.
    """
    found: list[tuple[int, int]] = []
    taken: Counter[str] = Counter()
    for number in prompts.batch(0, len(prompts), 0):
        rank = taken[prompts.sources[number]]
        taken[prompts.sources[number]] += 1
        if rank < count:
            found.append((rank, number))
    kept = len(found) // ROWS * ROWS
    if not kept:
        raise ValueError(f"{len(found)} prompts are held out; {ROWS} are needed (Prompts.validation_share, --count)")
    # By rank: what is left over is taken from the sources that have the most.
    return sorted(number for _, number in sorted(found)[:kept])
