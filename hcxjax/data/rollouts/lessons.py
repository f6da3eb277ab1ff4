"""What is learnt from episodes: from rewards to advantages, in the order in which minibatches are dealt."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hcxjax.checks import number, whole
from hcxjax.data.conversation_batches import packed
from hcxjax.data.hashing import shuffled
from hcxjax.data.rollouts.episodes import Episodes
from hcxjax.objectives.returns import gae, kl_terms, penalised, token_rewards, whitened
from hcxjax.objectives.unlikelihood import repeated_ngrams, sequence_repetition
from hcxjax.protocols import Array


@dataclasses.dataclass(frozen=True)
class Lessons:
    """How rewards become advantages. Defaults: Huang et al. 2024, arXiv:2403.17031, and the report's β.

    Attributes:
      beta: weight of the KL divergence in the reward (HyperCLOVA X, arXiv:2404.01954: 0.04).
      discount, decay: γ and λ of the advantages.
      missing_stop_penalty: taken off the reward of an answer that does not stop.
      ngram: length of the n-grams whose repetition unlikelihood works against.
      most_weight: bound of the weight of a token that an earlier policy drew, which is the ratio of what the present
        policy and that one give it (Hilton et al. 2022, arXiv:2110.00641, eq. 3, decoupled; bounded as V-trace's ρ).
    """

    beta: float = 0.04
    discount: float = 1.0
    decay: float = 0.95
    missing_stop_penalty: float = 1.0
    ngram: int = 4
    most_weight: float = 2.0

    def __post_init__(self):
        number(self, "beta", "discount", "decay", "missing_stop_penalty", "most_weight")
        whole(self, 1, "ngram")
        for name in ("beta", "missing_stop_penalty"):
            if getattr(self, name) < 0:
                raise ValueError(f"Lessons.{name} is {getattr(self, name)}; it must not be negative")
        for name in ("discount", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Lessons.{name} is {getattr(self, name)}; it must lie between 0 and 1")
        if self.most_weight < 1:
            raise ValueError(f"Lessons.most_weight is {self.most_weight}; it must be at least 1")

    def learn(
        self,
        episodes: Episodes,
        judged: "Judged",
        stop_ids: tuple[int, ...],
        update: int,
        beta: float,
    ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """(what the objective is given of all episodes, numbers about them).

        Args:
          judged: what the policy and the critic that are about to learn say of the episodes.
          update: tokens of episodes whose version is another one were drawn by an earlier policy.
          beta: the weight of the KL divergence now.
        """
        batch = episodes.batch()
        width = batch["tokens_BT"].shape[1]
        mask_BT, stopped_B = episodes.answers(stop_ids)
        sampled_BT, reference_BT = episodes.sampled_BT[:, :width], episodes.reference_BT[:, :width]
        stale_B = episodes.version_B != update
        found, sums = _learnt(
            self,
            jnp.float32(beta),
            *(jnp.asarray(array) for array in (batch["targets_BT"], mask_BT, stopped_B, stale_B)),
            *(jnp.asarray(array) for array in (sampled_BT, reference_BT, episodes.score_B)),
            *(jnp.asarray(array_BT[:, :width]) for array_BT in judged),
        )
        lesson = {name: np.asarray(array) for name, array in found.items()}
        return {**batch, **lesson}, {name: float(value) for name, value in sums.items()} | {"objective/beta": beta}


class Judged(NamedTuple):
    """What the trained models say of a rollout's targets before they learn from it; host arrays."""

    logprob_BT: np.ndarray
    entropy_BT: np.ndarray
    value_BT: np.ndarray


@functools.partial(jax.jit, static_argnums=0)
def _learnt(
    lessons: Lessons,
    beta: Array,
    targets_BT: Array,
    mask_BT: Array,
    stopped_B: Array,
    stale_B: Array,
    sampled_BT: Array,
    reference_BT: Array,
    score_B: Array,
    logprob_BT: Array,
    entropy_BT: Array,
    value_BT: Array,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """(arrays of the objective's batch, measures as means over episodes or tokens)."""

    def kept(x_BT: Array) -> Array:
        return jnp.where(mask_BT, x_BT, 0.0)

    logprob_BT, value_BT = kept(logprob_BT), kept(value_BT)
    final_B = penalised(score_B, stopped_B, lessons.missing_stop_penalty)
    reward_BT = token_rewards(logprob_BT, reference_BT, mask_BT, final_B, beta)
    advantage_BT, return_BT = gae(reward_BT, value_BT, mask_BT, lessons.discount, lessons.decay)
    difference_BT = kept(logprob_BT - sampled_BT)
    weight_BT = jnp.minimum(jnp.exp(difference_BT), lessons.most_weight)
    weight_BT = kept(jnp.where(stale_B[:, None], weight_BT, 1.0))
    found = {
        "mask_BT": mask_BT.astype(jnp.float32),
        "old_logprob_BT": logprob_BT,
        "old_value_BT": value_BT,
        "advantage_BT": whitened(advantage_BT, mask_BT),
        "return_BT": return_BT,
        "repeated_BT": repeated_ngrams(targets_BT, mask_BT, lessons.ngram).astype(jnp.float32),
        "weight_BT": weight_BT,
    }
    k1_BT, _, k3_BT = kl_terms(logprob_BT, reference_BT, mask_BT)
    tokens = jnp.maximum(jnp.sum(mask_BT), 1)
    error_BT = kept(return_BT - value_BT)
    sums = {
        "objective/score": jnp.mean(score_B),
        "objective/rlhf_reward": jnp.mean(jnp.sum(reward_BT, axis=1)),
        "objective/kl": jnp.mean(jnp.sum(k1_BT, axis=1)),
        "objective/kl_k3": jnp.mean(jnp.sum(kept(k3_BT), axis=1)),
        "objective/entropy": jnp.sum(kept(entropy_BT)) / tokens,
        "value/explained_variance": 1 - _variance(error_BT, mask_BT) / (_variance(return_BT, mask_BT) + 1e-8),
        "rollout/length": jnp.mean(jnp.sum(mask_BT, axis=1)),
        "rollout/stop_rate": jnp.mean(stopped_B),
        f"rollout/seq_rep_{lessons.ngram}": jnp.mean(sequence_repetition(targets_BT, mask_BT, lessons.ngram)),
        "sampler_trainer_logp_diff": jnp.sum(jnp.abs(difference_BT)) / tokens,
    }
    return found, sums


def _variance(x_BT: Array, mask_BT: Array) -> Array:
    count = jnp.maximum(jnp.sum(mask_BT), 1)
    mean = jnp.sum(jnp.where(mask_BT, x_BT, 0.0)) / count
    return jnp.sum(jnp.where(mask_BT, jnp.square(x_BT - mean), 0.0)) / count


@dataclasses.dataclass(frozen=True)
class Deal:
    """The order in which the minibatches of a rollout are dealt.

    A fresh permutation for each epoch of each update, decided by (seed, update, epoch).

    Attributes:
      episodes: of a rollout.
      epochs: times that each is dealt.
      minibatches: parts of an epoch, each an update of the trainer.
      seed: of the permutations.
    """

    episodes: int
    epochs: int
    minibatches: int
    seed: int

    @property
    def hands(self) -> int:
        """Minibatches dealt of a rollout."""
        return self.epochs * self.minibatches

    def rows(self, update: int, hand: int) -> np.ndarray:
        """The episodes of a minibatch."""
        epoch, place = divmod(hand, self.minibatches)
        size = self.episodes // self.minibatches
        return shuffled(self.episodes, self.seed, update, epoch)[place * size : (place + 1) * size]


def minibatch(lesson: Mapping[str, np.ndarray], episodes: np.ndarray) -> dict[str, np.ndarray]:
    """Some episodes of a lesson, each a row."""
    return {name: array_BT[episodes] for name, array_BT in lesson.items()}


def packed_minibatch(
    lesson: Mapping[str, np.ndarray], episodes: np.ndarray, lengths_B: np.ndarray, width: int, multiple: int
) -> dict[str, np.ndarray]:
    """Some episodes of a lesson, one after the other in rows of `width` places: they do not see each other.

    What is learnt of them is the same but for rounding; padding is the rows' ends, and fewer than `multiple` rows.

    Args:
      lengths_B: places of each of the lesson's episodes.
      multiple: what the number of rows is rounded up to, so that few shapes are compiled.
    """
    rows = packed(episodes, lengths_B[episodes], width)
    count = -(-len(rows) // multiple) * multiple
    found = {name: np.zeros((count, width), array_BT.dtype) for name, array_BT in lesson.items()}
    for row, together in enumerate(rows):
        start = 0
        for segment, episode in enumerate(together, start=1):
            length = int(lengths_B[episode])
            for name, array_BT in lesson.items():
                found[name][row, start : start + length] = array_BT[episode, :length]
            found["segment_ids_BT"][row, start : start + length] = segment
            start += length
    return found
