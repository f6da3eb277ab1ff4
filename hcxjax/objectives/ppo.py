"""Proximal policy optimisation with a critic, and unlikelihood of repetition inside its minibatches."""

import dataclasses

import jax
import jax.numpy as jnp

from hcxjax.checks import number
from hcxjax.models.config import DecoderConfig
from hcxjax.models.decoder import Decoder, apply
from hcxjax.models.likelihood import token_entropies, token_logprobs
from hcxjax.models.scalar import flops_per_token, init_scalar, scalars
from hcxjax.objectives.clipping import LARGEST_LOG_RATIO, policy_loss, value_loss
from hcxjax.objectives.language_model import LanguageModel
from hcxjax.objectives.unlikelihood import unlikelihood
from hcxjax.protocols import Array, Batch, Maximum, Mean, Metrics, Params


@dataclasses.dataclass(frozen=True)
class PPO:
    """The clipped losses of policy and value, and the unlikelihood of repeated n-grams, over a minibatch of episodes.

    loss = Σ_t m_t (w_t policy_t + value_coefficient · value_t + unlikelihood · r_t · (−log(1 − p(y_t)))) / Σ_t m_t

    m is the mask of the answers' tokens, r marks those that belong to a repeated n-gram, w is 1 for tokens that the
    present policy drew (see `Rollouts`). All log-probabilities are those of the logits divided by `temperature`, from
    which the rollouts were drawn.

    Parameters are `{"policy": a decoder's, "value": a scalar model's}`. A batch holds `tokens_BT`, `targets_BT`,
    `segment_ids_BT`, `positions_BT` (int32), and float32 `mask_BT`, `old_logprob_BT`, `old_value_BT`, `advantage_BT`,
    `return_BT`, `repeated_BT`, `weight_BT`; the last seven are 0 where the mask is. `critic_mean_BT` and
    `critic_std_BT` may be there (see `values`). Several episodes may share a row, as segments.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 9, with the values' clipping and the defaults of Huang et al.
    2024, arXiv:2403.17031; unlikelihood in the minibatch: HyperCLOVA X, arXiv:2404.01954, after Welleck et al. 2020,
    arXiv:1908.04319, eq. 6; its weight is not disclosed.

    Attributes:
      model: sizes of the policy.
      value_model: sizes of the value network, which are those of the reward model it starts from; None: the policy's.
      temperature: of the policy, in rollouts and here.
      clip: how far a token's ratio counts from 1.
      value_clip: how far values count from what they were.
      value_coefficient: weight of the values' loss.
      dual_clip: bound of the loss where the advantage is negative (see `policy_loss`); None: no bound.
      unlikelihood: weight α; 0 is plain PPO, bit for bit.
      most_ratio: a batch of which a microbatch has a mean ratio above this, or below its inverse, is skipped and
        counted: its episodes were not drawn from anything near the policy.
      loss_chunk: positions whose logits exist at a time, None for all.
    """

    model: DecoderConfig
    value_model: DecoderConfig | None = None
    temperature: float = 0.7
    clip: float = 0.2
    value_clip: float = 0.2
    value_coefficient: float = 0.1
    dual_clip: float | None = None
    unlikelihood: float = 0.0
    most_ratio: float = 10.0
    loss_chunk: int | None = None

    def __post_init__(self):
        number(self, "temperature", "clip", "value_clip", "value_coefficient", "unlikelihood", "most_ratio")
        for name in ("temperature", "clip", "value_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"PPO.{name} is {getattr(self, name)}; it must be positive")
        for name in ("value_coefficient", "unlikelihood"):
            if getattr(self, name) < 0:
                raise ValueError(f"PPO.{name} is {getattr(self, name)}; it must not be negative")
        if self.dual_clip is not None and not self.dual_clip > 1:
            raise ValueError(f"PPO.dual_clip is {self.dual_clip}; it must be above 1, or None")
        if not self.most_ratio > 1:
            raise ValueError(f"PPO.most_ratio is {self.most_ratio}; it must be above 1")

    @property
    def critic(self) -> DecoderConfig:
        """Sizes of the value network."""
        return self.value_model or self.model

    def init(self, rng: Array) -> Params:
        """Boxed parameters."""
        policy, value = jax.random.split(rng)
        return {"policy": LanguageModel(self.model).init(policy), "value": init_scalar(self.critic, value)}

    def policy(self, params: Params) -> Params:
        """The decoder's parameters, for those who let it write."""
        return params["policy"]

    def logprobs(self, policy: Params, batch: Batch) -> Array:
        """logprob_BT of the targets under a policy's (or the reference's) parameters."""
        return apply(self.model, policy, _logprobs, batch, self.loss_chunk, self.temperature)

    def judged(self, params: Params, batch: Batch) -> tuple[Array, Array, Array]:
        """(logprob_BT, entropy_BT, value_BT) of a rollout's targets, before it is learnt from."""
        logprob_BT, entropy_BT = apply(
            self.model, params["policy"], _logprobs_and_entropies, batch, self.loss_chunk, self.temperature
        )
        return logprob_BT, entropy_BT, self.values(params, batch)

    def values(self, params: Params, batch: Batch) -> Array:
        """value_BT, float32: what the critic expects before target t is known, from the tokens that stand before it.

        A critic that starts from a reward model is on the scale of its raw scores, rewards are on that of its card. So
        values are taken to the latter as scores are: a batch says by which `critic_mean_BT` and `critic_std_BT`. Where
        no episode stands, the deviation may be 0.
        """
        value_BT = scalars(self.critic, params["value"], batch)
        if "critic_std_BT" not in batch:
            return value_BT
        std_BT = jnp.where(batch["critic_std_BT"] > 0, batch["critic_std_BT"], 1.0)
        return (value_BT - batch["critic_mean_BT"]) / std_BT

    def loss(self, params: Params, batch: Batch, rng: Array) -> tuple[Array, Array, Metrics]:
        """(sum, weight, metrics) over the answers' tokens. The rng is not used."""
        del rng
        mask_BT, old_BT, value_old_BT = batch["mask_BT"], batch["old_logprob_BT"], batch["old_value_BT"]
        # Outside the answers new is made equal to old: whatever the models say there, nothing infinite is masked later.
        logprob_BT = jnp.where(mask_BT > 0, self.logprobs(params["policy"], batch), old_BT)
        value_BT = jnp.where(mask_BT > 0, self.values(params, batch), value_old_BT)
        policy_BT = policy_loss(logprob_BT, old_BT, batch["advantage_BT"], self.clip, self.dual_clip)
        critic_BT = value_loss(value_BT, value_old_BT, batch["return_BT"], self.value_clip)
        policy, weight = jnp.sum(policy_BT * batch["weight_BT"] * mask_BT), jnp.sum(mask_BT)
        value = jnp.sum(critic_BT * mask_BT)
        total = policy + self.value_coefficient * value
        metrics: dict[str, Mean | Maximum] = {}
        if self.unlikelihood:
            repetition = jnp.sum(unlikelihood(logprob_BT) * batch["repeated_BT"] * mask_BT)
            total = total + self.unlikelihood * repetition
            metrics["loss/unlikelihood"] = Mean(repetition, weight)
        change_BT = (logprob_BT - old_BT) * mask_BT
        ratio_BT = jnp.exp(jnp.clip(change_BT, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))
        ratio = jnp.sum(ratio_BT * mask_BT) / jnp.maximum(weight, 1.0)
        far = (weight > 0) & ((ratio > self.most_ratio) | (ratio < 1 / self.most_ratio))
        metrics |= {
            "loss": Mean(total, weight),
            "loss/policy": Mean(policy, weight),
            "loss/value": Mean(value, weight),
            "policy/approxkl": Mean(jnp.sum(jnp.square(change_BT)) / 2, weight),
            "policy/clipfrac": Mean(jnp.sum((jnp.abs(ratio_BT - 1) > self.clip) * mask_BT), weight),
            "policy/ratio_mean": Mean(jnp.sum(ratio_BT * mask_BT), weight),
            "policy/ratio_max": Maximum(jnp.max(ratio_BT * mask_BT)),
            "value/clipfrac": Mean(jnp.sum((jnp.abs(value_BT - value_old_BT) > self.value_clip) * mask_BT), weight),
            "skip/most_ratio": Maximum(far.astype(jnp.float32)),
        }
        return total, weight, metrics

    def flops(self, batch: Batch) -> float:
        """Model FLOPs of one update on the whole batch: policy and value network."""
        rows, length = batch["tokens_BT"].shape
        per_token = self.model.flops_per_token(length) + flops_per_token(self.critic, length)
        return per_token * rows * length


def _logprobs(decoder: Decoder, batch: Batch, chunk: int | None, temperature: float) -> Array:
    x_BTD = decoder.hidden(batch["tokens_BT"], batch["segment_ids_BT"], batch["positions_BT"])
    return token_logprobs(decoder, x_BTD, batch["targets_BT"], chunk=chunk, temperature=temperature).logprob_BT


def _logprobs_and_entropies(
    decoder: Decoder, batch: Batch, chunk: int | None, temperature: float
) -> tuple[Array, Array]:
    x_BTD = decoder.hidden(batch["tokens_BT"], batch["segment_ids_BT"], batch["positions_BT"])
    scores = token_logprobs(decoder, x_BTD, batch["targets_BT"], chunk=chunk, temperature=temperature)
    return scores.logprob_BT, token_entropies(decoder, x_BTD, chunk=chunk, temperature=temperature)
