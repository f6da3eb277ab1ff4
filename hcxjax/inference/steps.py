"""What runs on the device: prefill a part of a prompt, insert it into a slot, step all slots, release some.

All shapes are static, and arrays that are replaced are donated: the cache is updated in place, and each function is
compiled once (reading a prompt: once for each part length).
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hcxjax.inference.sampling import Draws, sample
from hcxjax.mesh import constrain
from hcxjax.models.attention import CACHE_AXES, KVCache
from hcxjax.models.config import DecoderConfig
from hcxjax.models.decoder import Decoder, apply
from hcxjax.models.likelihood import TokenScores, scores_under, token_logprobs
from hcxjax.protocols import Array, Params
from hcxjax.shapes import shaped

COPIED = 128
"""Places that an insert copies at a time."""

NO_TOKEN = -1
"""Fills up lists of token ids; no token equals it."""


class Ask(NamedTuple):
    """What slots were asked for.

    Attributes:
      draws: how they sample.
      divisor_B: temperature of the log-probabilities that are told.
      stops_BW, watched_BW: ids, filled up with `NO_TOKEN`.
    """

    draws: Draws
    divisor_B: Array | np.ndarray
    stops_BW: Array | np.ndarray
    watched_BW: Array | np.ndarray


class Slots(NamedTuple):
    """The state of all slots.

    Attributes:
      cache: keys and values; of a slot at position p, places below p count.
      token_B, position_B: the token to read next, and where it stands.
      left_B: tokens still to write; 0 where the slot is free.
      seen_BV: which tokens prompt and continuation hold.
      ask: settings.
    """

    cache: KVCache
    token_B: Array
    position_B: Array
    left_B: Array
    seen_BV: Array
    ask: Ask


class Start(NamedTuple):
    """Where a slot begins: arrays of one row, see `Slots`."""

    token_B: np.ndarray
    position_B: np.ndarray
    left_B: np.ndarray
    seen_BV: np.ndarray
    ask: Ask


class Written(NamedTuple):
    """What a round wrote, step by step; the letter T counts steps.

    Attributes:
      token_TB: ids; `NO_TOKEN` where a slot was not running.
      logprob_TB: log p of each token under the model, its logits divided as was asked.
      watched_TBW: log p of the watched ids.
    """

    token_TB: Array
    logprob_TB: Array
    watched_TBW: Array


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def free_slots(model: DecoderConfig, slots: int, capacity: int, cache_dtype: str | None, listed: int) -> Slots:
    """Slots that hold nothing."""

    def zeros(dtype: str) -> Array:
        return jnp.zeros(slots, dtype)

    ones = jnp.ones(slots, "float32")
    draws = Draws(zeros("float32"), zeros("int32"), ones, zeros("float32"), ones + 0, zeros("uint32"), zeros("uint32"))
    nothing_BW = jnp.full((slots, listed), NO_TOKEN, jnp.int32)
    ask = Ask(draws, ones * 1, nothing_BW, nothing_BW + 0)
    seen_BV = jnp.zeros((slots, model.vocab_size), bool)
    cache = KVCache.empty(model, slots, capacity, cache_dtype)
    return _laid_out(Slots(cache, zeros("int32"), zeros("int32"), zeros("int32"), seen_BV, ask))


def _laid_out(slots: Slots) -> Slots:
    """On the mesh as always: a result that lay elsewhere would make the next call another program."""
    rest = jax.tree.map(lambda leaf: constrain(leaf, *[None] * leaf.ndim), tuple(slots[1:]))
    return Slots(_cache_laid_out(slots.cache), *rest)


def _cache_laid_out(cache: KVCache) -> KVCache:
    return jax.tree.map(lambda leaf: constrain(leaf, *CACHE_AXES[: leaf.ndim]), cache)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def empty_row(model: DecoderConfig, capacity: int, cache_dtype: str | None) -> KVCache:
    """The cache of a prompt that is being prefilled."""
    return KVCache.empty(model, 1, capacity, cache_dtype)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
@shaped
def prefill(model: DecoderConfig, params: Params, row: KVCache, tokens_BT: Array, start: Array) -> KVCache:
    """`row` with the keys and values of `tokens_BT`, which stand at `start` and after."""
    return _cache_laid_out(_read(model, params, row, tokens_BT, start)[1])


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
@shaped
def prefill_scored(
    model: DecoderConfig, params: Params, row: KVCache, tokens_BT: Array, targets_BT: Array, start: Array
) -> tuple[KVCache, TokenScores]:
    """As `prefill`, with what the model says of the token that follows each."""
    x_BTD, row = _read(model, params, row, tokens_BT, start)
    scores = apply(model, params, token_logprobs, x_BTD, targets_BT)
    return _cache_laid_out(row), jax.tree.map(lambda column: constrain(column, None), scores)


def _read(model: DecoderConfig, params: Params, row: KVCache, tokens_BT: Array, start: Array) -> tuple[Array, KVCache]:
    positions_BT = start + jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None]
    return apply(model, params, Decoder.extend, tokens_BT, positions_BT, row)


@functools.partial(jax.jit, static_argnums=2)
def part_of(row: KVCache, start: Array, size: int) -> KVCache:
    """A copy of `size` places of a row."""
    part = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size, axis=3), row)
    return _cache_laid_out(part)


@functools.partial(jax.jit, donate_argnums=0)
def put(row: KVCache, part: KVCache, start: Array) -> KVCache:
    """`row` with `part` at `start`."""

    def into(leaf: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(leaf, new, start, axis=3)

    return _cache_laid_out(jax.tree.map(into, row, part))


@functools.partial(jax.jit, donate_argnums=0)
def insert(slots: Slots, row: KVCache, start: Start, slot: Array) -> Slots:
    """`slots` with a prefilled row in place `slot`, ready to step; the row's cache is copied as far as it was read."""
    size = math.gcd(COPIED, row.capacity)
    parts = (start.position_B[0] + size - 1) // size

    def copied(number: Array, cache: KVCache) -> KVCache:
        def into(leaf: Array, new: Array) -> Array:
            part = jax.lax.dynamic_slice_in_dim(new, number * size, size, axis=3)
            return jax.lax.dynamic_update_slice(leaf, part, (0, slot, 0, number * size, 0)[: leaf.ndim])

        return jax.tree.map(into, cache, row)

    def into(leaf: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(leaf, new, slot, axis=0)

    cache = jax.lax.fori_loop(0, parts, copied, slots.cache)
    return _laid_out(Slots(cache, *jax.tree.map(into, tuple(slots[1:]), tuple(start))))


@functools.partial(jax.jit, donate_argnums=0)
@shaped
def release(slots: Slots, keep_B: Array) -> Slots:
    """`slots` of which those not in `keep_B` are free."""
    return _laid_out(slots._replace(left_B=jnp.where(keep_B, slots.left_B, 0)))


@functools.partial(jax.jit, static_argnums=(0, 3), donate_argnums=2)
def step_all(model: DecoderConfig, params: Params, slots: Slots, steps: int) -> tuple[Slots, Written]:
    """Up to `steps` tokens for every running slot; fewer steps where all finish before."""
    rows, listed = slots.ask.watched_BW.shape
    written = Written(
        jnp.full((steps, rows), NO_TOKEN, jnp.int32),
        jnp.zeros((steps, rows), jnp.float32),
        jnp.zeros((steps, rows, listed), jnp.float32),
    )

    def more(carried: tuple[Array, Slots, Written]) -> Array:
        number, slots, _ = carried
        return (number < steps) & jnp.any(slots.left_B > 0)

    def step(carried: tuple[Array, Slots, Written]) -> tuple[Array, Slots, Written]:
        number, slots, written = carried
        slots, new = _step(model, params, slots)
        return number + 1, slots, jax.tree.map(lambda all_, one: all_.at[number].set(one), written, new)

    _, slots, written = jax.lax.while_loop(more, step, (jnp.int32(0), slots, written))
    # Every process reads what every slot wrote, so it is held whole everywhere.
    return _laid_out(slots), jax.tree.map(lambda column: constrain(column, *[None] * column.ndim), written)


def _step(model: DecoderConfig, params: Params, slots: Slots) -> tuple[Slots, Written]:
    """One token a running slot. A free slot reads its last token at place 0 of its own cache, which nobody sees."""
    running_B, rows_B = slots.left_B > 0, jnp.arange(len(slots.left_B))
    position_B = jnp.where(running_B, slots.position_B, 0)
    x_B1D, cache = apply(model, params, Decoder.extend, slots.token_B[:, None], position_B[:, None], slots.cache)
    logits_B1V = apply(model, params, Decoder.logits, x_B1D)
    token_B = sample(logits_B1V[:, 0], slots.seen_BV, position_B + 1, running_B, slots.ask.draws)
    told_B1V = logits_B1V / slots.ask.divisor_B[:, None, None]
    scores = scores_under(told_B1V, token_B[:, None])
    watched_BW = jnp.take_along_axis(told_B1V[:, 0], jnp.maximum(slots.ask.watched_BW, 0), axis=-1)
    new = Written(jnp.where(running_B, token_B, NO_TOKEN), scores.logprob_BT[:, 0], watched_BW - scores.normaliser_BT)
    stopped_B = jnp.any(token_B[:, None] == slots.ask.stops_BW, axis=-1)
    left_B = jnp.where(running_B & ~stopped_B, slots.left_B - 1, 0)
    seen_BV = slots.seen_BV.at[rows_B, token_B].max(running_B)
    return Slots(cache, token_B, position_B + 1, left_B, seen_BV, slots.ask), new
