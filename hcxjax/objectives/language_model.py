"""Next-token prediction: pretraining and, with prompt weights of 0 in the data, supervised fine-tuning."""

import dataclasses
from collections.abc import Collection

import jax.numpy as jnp

from hcxjax.models.config import DecoderConfig
from hcxjax.models.decoder import Decoder, apply, init_decoder
from hcxjax.models.likelihood import TokenScores, token_logprobs
from hcxjax.protocols import Array, Batch, Mean, Metrics, Params


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """Cross-entropy of each next token, weighted, plus z-loss.

    loss = Σ_t w_t (−log p(y_t) + z_loss · (log Z_t)²) / Σ_t w_t

    Attributes:
      model: the decoder's sizes.
      z_loss: weight of the squared log-normaliser (Chowdhery et al. 2022, arXiv:2204.02311, section 5; they use 1e-4).
      loss_chunk: positions whose logits exist at a time, None for all.
      sources: names of the batch's sources (a mapping's keys will do), which `source_B` numbers in alphabetical order,
        for `loss/NAME` and `share/NAME`; empty: none of these.
    """

    model: DecoderConfig
    z_loss: float = 0.0
    loss_chunk: int | None = None
    sources: Collection[str] = ()

    def __post_init__(self):
        # Hashable, because an objective is static under jit.
        object.__setattr__(self, "sources", tuple(sorted(self.sources)))

    def init(self, rng: Array) -> Params:
        """Boxed parameters."""
        return init_decoder(self.model, rng)

    def policy(self, params: Params) -> Params:
        """The parameters of the decoder that writes: all of them."""
        return params

    def scores(self, params: Params, batch: Batch) -> TokenScores:
        """What the model says of every target of `batch`."""
        return apply(self.model, params, _scores, batch, self.loss_chunk)

    def loss(self, params: Params, batch: Batch, rng: Array) -> tuple[Array, Array, Metrics]:
        """(sum, weight, metrics) over the weighted targets. The rng is not used: there is no dropout."""
        del rng
        weights_BT = batch["weights_BT"]
        scores = self.scores(params, batch)
        nll_BT = -scores.logprob_BT * weights_BT
        z_BT = jnp.square(scores.normaliser_BT) * weights_BT
        weight = jnp.sum(weights_BT)
        nll, z = jnp.sum(nll_BT), jnp.sum(z_BT)
        padding_BT = (batch["segment_ids_BT"] == 0).astype(jnp.float32)
        metrics: dict[str, Mean] = {
            "loss": Mean(nll, weight),
            "z_loss": Mean(self.z_loss * z, weight),
            "padding": Mean(jnp.sum(padding_BT), jnp.float32(padding_BT.size)),
        }
        for number, name in enumerate(self.sources):
            here_B1 = (batch["source_B"] == number)[:, None]
            share = jnp.sum(weights_BT * here_B1)
            metrics[f"loss/{name}"] = Mean(jnp.sum(nll_BT * here_B1), share)
            metrics[f"share/{name}"] = Mean(share, weight)
        return nll + self.z_loss * z, weight, metrics

    def flops(self, batch: Batch) -> float:
        """Model FLOPs of one update on the whole batch."""
        rows, length = batch["tokens_BT"].shape
        return self.model.flops_per_token(length) * rows * length


def _scores(decoder: Decoder, batch: Batch, chunk: int | None) -> TokenScores:
    x_BTD = decoder.hidden(batch["tokens_BT"], batch["segment_ids_BT"], batch["positions_BT"])
    return token_logprobs(decoder, x_BTD, batch["targets_BT"], chunk=chunk)
