"""Unlikelihood of repetition: which tokens of an answer repeat themselves, and what they cost.

Source: Welleck et al. 2020, arXiv:1908.04319, section 5.2 (sequence level). The report uses 4-grams inside PPO.
"""

import functools

import jax
import jax.numpy as jnp

from hcxjax.protocols import Array
from hcxjax.shapes import shaped

LEAST_REST = 1e-5
"""1 − p is taken to be at least this, so that a certain token costs 11.5 nats and not ∞."""

STEEPEST = 20.0
"""Largest slope in log p. Where the floor alone held 1 − p, the slope would be 0 just where repetition is worst."""


@jax.custom_jvp
def log1mexp(logprob: Array) -> Array:
    """log(1 − e^logprob), float32; 1 − p at least 1e-5, the slope −p/(1 − p) at least −20."""
    logprob = jnp.asarray(logprob, jnp.float32)
    unlikely = jnp.log1p(-jnp.exp(jnp.minimum(logprob, -0.5)))
    likely = jnp.log(jnp.maximum(-jnp.expm1(logprob), LEAST_REST))
    # Each side loses the digits of what the other gets right: 1 − p near 1, and p near 1.
    return jnp.where(logprob < -0.5, unlikely, likely)


@log1mexp.defjvp
def _slope(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (logprob,), (tangent,) = primals, tangents
    logprob = jnp.asarray(logprob, jnp.float32)
    odds = jnp.exp(logprob) / jnp.maximum(-jnp.expm1(logprob), LEAST_REST)
    return log1mexp(logprob), -jnp.minimum(odds, STEEPEST) * tangent


@shaped
def unlikelihood(logprob_BT: Array) -> Array:
    """loss_BT = −log(1 − p(y_t)), in nats: what it costs to write each token; the caller picks the repeated ones."""
    return -log1mexp(logprob_BT)


@shaped
def repeated_ngrams(tokens_BT: Array, mask_BT: Array, n: int) -> Array:
    """repeated_BT: True at every token of an n-gram that stands earlier in the row, too; its first occurrence is free.

    An n-gram counts only where all its tokens are in the mask; occurrences may overlap. All pairs of places are
    compared: n·B·T² work and, unless the compiler fuses it away, B·T² bytes.

    Raises:
      ValueError: n is below 1.
    """
    repeats_BT, _ = _repeats(tokens_BT, mask_BT, n)
    length = tokens_BT.shape[1]
    later = [jnp.pad(repeats_BT, ((0, 0), (at, 0)))[:, :length] for at in range(n)]
    return functools.reduce(jnp.logical_or, later)


@shaped
def sequence_repetition(tokens_BT: Array, mask_BT: Array, n: int) -> Array:
    """share_B = 1 − distinct n-grams / n-grams of each row's mask, in [0, 1); 0 where the mask holds no n-gram.

    Source: Welleck et al. 2020, arXiv:1908.04319, section 6 (seq-rep-n). Memory and errors as `repeated_ngrams`.
    """
    repeats_BT, whole_BT = _repeats(tokens_BT, mask_BT, n)
    count_B = jnp.sum(whole_BT, axis=1)
    return jnp.sum(repeats_BT, axis=1) / jnp.maximum(count_B, 1).astype(jnp.float32)


def _repeats(tokens_BT: Array, mask_BT: Array, n: int) -> tuple[Array, Array]:
    """(places where an n-gram begins that began earlier, too; places where any whole n-gram begins)."""
    if n < 1:
        raise ValueError(f"n is {n}; an n-gram has at least 1 token")
    length = tokens_BT.shape[1]

    def ahead(x_BT: Array) -> list[Array]:
        return [jnp.pad(x_BT[:, at:], ((0, 0), (0, min(at, length)))) for at in range(n)]

    whole_BT = functools.reduce(jnp.logical_and, ahead(jnp.asarray(mask_BT, bool)))
    earlier_TS = jnp.arange(length)[:, None] > jnp.arange(length)
    same_BTS = earlier_TS & whole_BT[:, :, None] & whole_BT[:, None, :]
    for x_BT in ahead(jnp.asarray(tokens_BT)):
        same_BTS &= x_BT[:, :, None] == x_BT[:, None, :]
    return jnp.any(same_BTS, axis=2), whole_BT
