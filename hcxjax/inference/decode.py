"""Prompts in, tokens out: one prefill of a padded batch, then a token a row at a time."""

import dataclasses
import functools
from collections.abc import Collection, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from hcxjax.inference.sampling import Sampling, sample
from hcxjax.mesh import constrain
from hcxjax.models.attention import KVCache
from hcxjax.models.config import DecoderConfig
from hcxjax.models.decoder import Decoder, apply
from hcxjax.protocols import Array, Params
from hcxjax.shapes import shaped

BUCKET = 64
"""Prompts and caches are padded to multiples of this, so that few lengths are compiled."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Where a continuation ends.

    Attributes:
      new_tokens: at most this many; the model's context limits them too.
      stop_ids: tokens after which a row is finished; the stop token is part of the result.
    """

    new_tokens: int = 128
    stop_ids: tuple[int, ...] = ()


def decode(
    model: DecoderConfig, params: Params, prompts: Sequence[Sequence[int]], limits: Limits, sampling: Sampling
) -> Iterator[list[int | None]]:
    """Yields, step by step, the next token of every row; None where a row is finished.

    Raises:
      ValueError: no prompt, an empty one, an id outside the vocabulary, or one that leaves no room to write.
    """
    _check(model, prompts, limits)
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    longest = int(lengths.max())
    width = min(model.max_length, -(-longest // BUCKET) * BUCKET)
    capacity = min(model.max_length, -(-(longest + limits.new_tokens) // BUCKET) * BUCKET)
    padded = np.zeros((len(prompts), width), np.int32)
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt)] = prompt
    token_B, cache = _prefill(model, params, jnp.asarray(padded), jnp.asarray(lengths), capacity, sampling)
    position_B, running = jnp.asarray(lengths), np.ones(len(prompts), bool)
    room = np.minimum(limits.new_tokens, model.max_length - lengths)
    for count in range(1, int(room.max()) + 1):
        tokens = np.asarray(token_B)
        yield [int(token) if alive else None for token, alive in zip(tokens, running, strict=True)]
        running &= ~np.isin(tokens, limits.stop_ids) & (count < room)
        if not running.any():
            return
        token_B, cache = _step(model, params, token_B, position_B, cache, sampling)
        position_B = position_B + 1


def continuations(
    model: DecoderConfig, params: Params, prompts: Sequence[Sequence[int]], limits: Limits, sampling: Sampling
) -> list[list[int]]:
    """The whole continuation of every prompt, without its stop token."""
    written: list[list[int]] = [[] for _ in prompts]
    for tokens in decode(model, params, prompts, limits, sampling):
        for row, token in zip(written, tokens, strict=True):
            if token is not None and token not in limits.stop_ids:
                row.append(token)
    return written


def _check(model: DecoderConfig, prompts: Sequence[Collection[int]], limits: Limits) -> None:
    if not prompts:
        raise ValueError("no prompt was given")
    if limits.new_tokens < 1:
        raise ValueError(f"new_tokens is {limits.new_tokens}; it must be at least 1")
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {number} has no token; begin it with the end-of-text token")
        if len(prompt) >= model.max_length:
            raise ValueError(
                f"prompt {number} has {len(prompt)} tokens; the model's context is {model.max_length} "
                "(DecoderConfig.max_length), prompt and answer together"
            )
        if min(prompt) < 0 or max(prompt) >= model.vocab_size:
            raise ValueError(f"prompt {number} has an id outside 0..{model.vocab_size - 1}: another model's tokenizer?")


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
@shaped
def _prefill(
    model: DecoderConfig, params: Params, tokens_BT: Array, lengths_B: Array, capacity: int, sampling: Sampling
) -> tuple[Array, KVCache]:
    batch, length = tokens_BT.shape
    positions_BT = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    cache = KVCache.empty(model, batch, capacity)
    # What the padding writes lies behind the prompt, where no query looks before a real token overwrites it.
    x_BTD, cache = apply(model, params, Decoder.extend, tokens_BT, positions_BT, cache)
    last_B1D = jnp.take_along_axis(x_BTD, (lengths_B - 1)[:, None, None], axis=1)
    logits_BV = apply(model, params, Decoder.logits, last_B1D)[:, 0]
    # Every process reads every row's token, so they are held whole everywhere.
    return constrain(sample(logits_BV, lengths_B, sampling), None), cache


@functools.partial(jax.jit, static_argnums=(0, 5), donate_argnums=4)
@shaped
def _step(
    model: DecoderConfig, params: Params, token_B: Array, position_B: Array, cache: KVCache, sampling: Sampling
) -> tuple[Array, KVCache]:
    x_B1D, cache = apply(model, params, Decoder.extend, token_B[:, None], position_B[:, None], cache)
    logits_BV = apply(model, params, Decoder.logits, x_B1D)[:, 0]
    return constrain(sample(logits_BV, position_B + 1, sampling), None), cache
