"""Log-probabilities of given tokens: the same function for the trainer's loss, for scoring and for what is written."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hcxjax.models.decoder import Decoder
from hcxjax.protocols import Array
from hcxjax.shapes import shaped


class TokenScores(NamedTuple):
    """What the model says of each target token, float32.

    Attributes:
      logprob_BT: log p(target), in nats.
      normaliser_BT: log Σ exp(logits), which z-loss keeps near 0.
      top_BT: True where no token scores higher than the target (greedy decoding would choose it).
      likeliest_BT: the token that scores highest.
    """

    logprob_BT: Array
    normaliser_BT: Array
    top_BT: Array
    likeliest_BT: Array


@shaped
def scores_under(logits_BTV: Array, targets_BT: Array) -> TokenScores:
    """Scores of `targets_BT` under these logits."""
    target_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    normaliser_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    top_BT = target_BT >= jnp.max(logits_BTV, axis=-1)
    return TokenScores(target_BT - normaliser_BT, normaliser_BT, top_BT, jnp.argmax(logits_BTV, axis=-1))


@shaped
def token_logprobs(decoder: Decoder, x_BTD: Array, targets_BT: Array, *, chunk: int | None = None) -> TokenScores:
    """Scores of `targets_BT` under the logits of `x_BTD`; `decoder` is bound (inside its own apply).

    Args:
      chunk: positions whose logits exist at a time (recomputed in the backward pass); None: the whole row.
        ValueError unless it divides T.
    """

    def score(x_BTD: Array, targets_BT: Array) -> TokenScores:
        return scores_under(decoder.logits(x_BTD), targets_BT)

    length = targets_BT.shape[1]
    if chunk is None or chunk >= length:
        return score(x_BTD, targets_BT)
    if length % chunk:
        raise ValueError(f"LanguageModel.loss_chunk is {chunk}; it must divide the row length, {length}")
    score = jax.checkpoint(score)
    parts = [score(x_BTD[:, at : at + chunk], targets_BT[:, at : at + chunk]) for at in range(0, length, chunk)]
    return jax.tree.map(lambda *columns: jnp.concatenate(columns, axis=1), *parts)
