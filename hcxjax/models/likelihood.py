"""Log-probabilities of given tokens: the same function for the trainer's loss, for scoring and for what is written."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from hcxjax.models.decoder import Decoder
from hcxjax.models.int8 import Int8Weight
from hcxjax.models.vocabulary_scores import target_scores
from hcxjax.protocols import Array
from hcxjax.shapes import shaped

R = TypeVar("R")


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
def token_logprobs(
    decoder: Decoder, x_BTD: Array, targets_BT: Array, *, chunk: int | None = None, temperature: float = 1.0
) -> TokenScores:
    """Scores of `targets_BT` under the logits of `x_BTD`; `decoder` is bound (inside its own apply).

    Args:
      chunk: positions whose logits exist at a time (recomputed in the backward pass); None: the whole row.
      temperature: divides the logits first.
    """
    table, config = decoder.output_table, decoder.config
    if not isinstance(table, Int8Weight):
        multiplier = config.logits_multiplier / temperature
        settings = {"dtype": config.dtype, "multiplier": multiplier, "chunk": chunk}
        return TokenScores(*target_scores(table, x_BTD, targets_BT, **settings))

    def score(x_BTD: Array, targets_BT: Array) -> TokenScores:
        return scores_under(decoder.logits(x_BTD) / temperature, targets_BT)

    return _by_chunks(score, chunk, x_BTD, targets_BT)


@shaped
def token_entropies(decoder: Decoder, x_BTD: Array, *, chunk: int | None = None, temperature: float = 1.0) -> Array:
    """entropy_BT of the next token, in nats; arguments as for `token_logprobs`."""

    def entropy(x_BTD: Array) -> Array:
        logprobs_BTV = jax.nn.log_softmax(decoder.logits(x_BTD) / temperature, axis=-1)
        return -jnp.sum(jnp.exp(logprobs_BTV) * logprobs_BTV, axis=-1)

    return _by_chunks(entropy, chunk, x_BTD)


def _by_chunks(score: Callable[..., R], chunk: int | None, *columns: Array) -> R:
    """`score` of all columns, or of some at a time; the last may be fewer."""
    length = columns[0].shape[1]
    if chunk is None or chunk >= length:
        return score(*columns)
    score = jax.checkpoint(score)
    parts = [score(*(column[:, at : at + chunk] for column in columns)) for at in range(0, length, chunk)]
    return jax.tree.map(lambda *found: jnp.concatenate(found, axis=1), *parts)
