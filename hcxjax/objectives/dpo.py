"""Direct preference optimisation: a policy learns from comparisons without a reward model."""

import dataclasses
from collections.abc import Collection

import jax
import jax.numpy as jnp

from hcxjax.checks import number
from hcxjax.models.config import DecoderConfig
from hcxjax.models.decoder import Decoder, apply
from hcxjax.models.likelihood import token_logprobs
from hcxjax.objectives.comparisons import Texts, less, measured, texts
from hcxjax.objectives.language_model import LanguageModel
from hcxjax.protocols import Array, Batch, Metrics, Params


@dataclasses.dataclass(frozen=True)
class DPO:
    """The policy's log-ratio to the reference takes the reward's place in Bradley-Terry.

    r(y) = beta · (log π(y) − log π_ref(y))
    loss = −(1 − s) log σ(r_chosen − r_rejected) − s log σ(r_rejected − r_chosen)

    where log π(y) sums over the answer's tokens, what ends it included, and s is `label_smoothing`. A batch is as
    `hcxjax.objectives.comparisons` says, with the reference's sums as `reference_BK`.

    Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7; smoothing: Mitchell 2023, "A note on DPO with noisy
    preferences"; by token: the reward of Meng et al. 2024 (SimPO), arXiv:2405.14734, with the reference that they drop.

    Attributes:
      model: the policy's sizes, which are the reference's.
      beta: how dear it is to leave the reference.
      label_smoothing: the share of comparisons that are taken to be the wrong way round.
      by_token: divide log-ratios by the number of the answer's tokens; `beta` has to be larger then.
      loss_chunk: positions whose logits exist at a time, None for all.
      sources: names of the batch's sources, as in `PairwiseReward`.
    """

    model: DecoderConfig
    beta: float = 0.1
    label_smoothing: float = 0.0
    by_token: bool = False
    loss_chunk: int | None = None
    sources: Collection[str] = ()

    def __post_init__(self):
        number(self, "beta", "label_smoothing")
        if not self.beta > 0:
            raise ValueError(f"DPO.beta is {self.beta}; it must be positive")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"DPO.label_smoothing is {self.label_smoothing}; it must lie in [0, 0.5)")
        # Hashable, because an objective is static under jit.
        object.__setattr__(self, "sources", tuple(sorted(self.sources)))

    def init(self, rng: Array) -> Params:
        """Boxed parameters."""
        return LanguageModel(self.model).init(rng)

    def policy(self, params: Params) -> Params:
        """The parameters of the decoder that writes: all of them."""
        return params

    def logprobs(self, params: Params, batch: Batch) -> Array:
        """logprob_BK: log π of each answer, summed over its tokens; float32, in nats."""
        logprob_B = apply(self.model, params, _answer_logprobs, texts(batch), self.loss_chunk)
        return logprob_B.reshape(batch["end_BK"].shape)

    def rewards(self, params: Params, batch: Batch) -> Array:
        """reward_BK: what the policy pays for each answer, r above."""
        ratio_BK = self.logprobs(params, batch) - batch["reference_BK"]
        if self.by_token:
            # A missing text has no token, and no comparison either.
            ratio_BK = ratio_BK / jnp.maximum(batch["end_BK"] - batch["start_B"][:, None] + 1, 1)
        return self.beta * ratio_BK

    def loss(self, params: Params, batch: Batch, rng: Array) -> tuple[Array, Array, Metrics]:
        """(sum, weight, metrics) over the comparisons. The rng is not used: there is no dropout."""
        del rng
        reward_BK, preferred_BKK = self.rewards(params, batch), batch["preferred_BKK"]
        difference_BKK = less(reward_BK)
        right_BKK, wrong_BKK = jax.nn.log_sigmoid(difference_BKK), jax.nn.log_sigmoid(-difference_BKK)
        loss_BKK = -(1 - self.label_smoothing) * right_BKK - self.label_smoothing * wrong_BKK
        numbers = {
            "loss": loss_BKK,
            "accuracy": (difference_BKK > 0).astype(jnp.float32),
            "margin": difference_BKK,
            "reward/chosen": reward_BK[:, :, None],
            "reward/rejected": reward_BK[:, None, :],
        }
        total = jnp.sum(loss_BKK * preferred_BKK)
        return total, jnp.sum(preferred_BKK), measured(batch, tuple(self.sources), numbers)

    def flops(self, batch: Batch) -> float:
        """Model FLOPs of one update on the whole batch; those of the reference are not among them."""
        rows, count, length = batch["tokens_BKT"].shape
        return self.model.flops_per_token(length) * rows * count * length


def _answer_logprobs(decoder: Decoder, given: Texts, chunk: int | None) -> Array:
    """logprob_B: a text's tokens are the targets of those before them; the first, a prompt's, is the target of none."""
    x_BTD = decoder.hidden(given.tokens_BT, given.segment_ids_BT, given.positions_BT)
    targets_BT = jnp.roll(given.tokens_BT, -1, axis=1)
    answer_BT = jnp.roll(given.answer_BT, -1, axis=1)
    scores = token_logprobs(decoder, x_BTD, targets_BT, chunk=chunk)
    return jnp.sum(scores.logprob_BT * answer_BT, axis=1)
