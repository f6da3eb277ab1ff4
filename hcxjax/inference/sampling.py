"""From logits to a token, each row by its own settings; random numbers are a function of (seed, stream, position)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hcxjax.checks import number, whole
from hcxjax.protocols import Array
from hcxjax.shapes import shaped

MOST_SEEDS, MOST_IDS = 2**32, 2**31
LEAST_REACH = 1e-30
"""A smaller top-p would be 0 in float32 and drop every token."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Logits of tokens that were there before are penalised, then divided by the temperature; then top-k, top-p and min-p
    drop tokens, each looking at the probabilities that the one before leaves.

    Attributes:
      temperature: divides the logits; 0 takes the most likely token.
      top_k: keep this many of the most likely tokens; 0 keeps all.
      top_p: keep the fewest of the most likely tokens whose probabilities reach this sum, in (0, 1]
        (Holtzman et al. 2020, arXiv:1904.09751, section 3.1).
      min_p: keep tokens at least this many times as likely as the most likely one, in [0, 1]
        (Nguyen et al. 2024, arXiv:2407.01082, section 3).
      repetition_penalty: divides positive logits, and multiplies negative ones, of every token that the prompt or the
        continuation holds; 1 leaves them (Keskar et al. 2019, arXiv:1909.05858, section 4.1; negative logits as in
        transformers).
      seed: of all draws, below 2^32.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self):
        number(self, "temperature", "top_p", "min_p", "repetition_penalty")
        whole(self, 0, "top_k", "seed")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or more, and finite")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p is {self.min_p}; it must be between 0 and 1")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}; it must be above 0 and finite")
        if self.seed >= MOST_SEEDS:
            raise ValueError(f"seed is {self.seed}; it must be below 2^32")
        if self.top_k >= MOST_IDS:
            raise ValueError(f"top_k is {self.top_k}; it must be below 2^31")


class Draws(NamedTuple):
    """The settings of every row, as arrays; `stream_B` numbers rows of one seed."""

    temperature_B: Array | np.ndarray
    top_k_B: Array | np.ndarray
    top_p_B: Array | np.ndarray
    min_p_B: Array | np.ndarray
    penalty_B: Array | np.ndarray
    seed_B: Array | np.ndarray
    stream_B: Array | np.ndarray

    @classmethod
    def of(cls, sampling: Sampling, stream: int) -> "Draws":
        """One row's."""

        def one(value: float, dtype: type) -> np.ndarray:
            return np.array([value], dtype)

        return cls(
            one(sampling.temperature, np.float32),
            one(sampling.top_k, np.int32),
            one(sampling.top_p, np.float32),
            one(sampling.min_p, np.float32),
            one(sampling.repetition_penalty, np.float32),
            one(sampling.seed, np.uint32),
            one(stream, np.uint32),
        )


@shaped
def sample(logits_BV: Array, seen_BV: Array, positions_B: Array, running_B: Array, draws: Draws) -> Array:
    """tokens_B: the argmax of what is left of the logits plus Gumbel noise, which draws from their softmax.

    What no running row asks for is not computed; a row's token does not depend on what other rows ask for.

    Args:
      seen_BV: which tokens the row already holds.
      positions_B: of the token to be drawn.
      running_B: rows whose result is wanted.
    """
    warm_B, penalised_B = draws.temperature_B > 0, draws.penalty_B != 1
    logits_BV = jax.lax.cond(jnp.any(running_B & penalised_B), _penalise, lambda x, *_: x, logits_BV, seen_BV, draws)

    def noisy(logits_BV: Array) -> Array:
        scaled_BV = logits_BV / jnp.where(warm_B, draws.temperature_B, 1.0)[:, None]
        filters_B = warm_B & ((draws.top_k_B > 0) | (draws.top_p_B < 1) | (draws.min_p_B > 0))
        kept_BV = jax.lax.cond(jnp.any(running_B & filters_B), filtered, lambda x, _: x, scaled_BV, draws)
        noise_BV = jax.vmap(_noise, in_axes=(0, 0, 0, None))(
            draws.seed_B, draws.stream_B, positions_B, logits_BV.shape[-1]
        )
        return jnp.where(warm_B[:, None], kept_BV + noise_BV, logits_BV)

    perturbed_BV = jax.lax.cond(jnp.any(running_B & warm_B), noisy, lambda x: x, logits_BV)
    return jnp.argmax(perturbed_BV, axis=-1).astype(jnp.int32)


def _noise(seed: ArrayLike, stream: ArrayLike, position: Array, size: int) -> Array:
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), position)
    return jax.random.gumbel(key, (size,))


def _penalise(logits_BV: Array, seen_BV: Array, draws: Draws) -> Array:
    penalty_B1 = draws.penalty_B[:, None]
    penalised_BV = jnp.where(logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1)
    return jnp.where(seen_BV & (penalty_B1 != 1), penalised_BV, logits_BV)


@shaped
def filtered(logits_BV: Array, draws: Draws) -> Array:
    """Logits with −inf where top-k, top-p or min-p drop a token; the most likely one, and what ties with it, stays."""
    vocabulary = logits_BV.shape[-1]
    top_k_B = jnp.where(draws.top_k_B > 0, jnp.minimum(draws.top_k_B, vocabulary), vocabulary).astype(jnp.float32)
    logits_BV = _keep_from(logits_BV, jnp.ones_like(logits_BV), top_k_B)
    chances_BV = jax.nn.softmax(logits_BV, axis=-1)
    top_p_B = jnp.where(draws.top_p_B < 1, jnp.maximum(draws.top_p_B, LEAST_REACH), jnp.inf)
    logits_BV = _keep_from(logits_BV, chances_BV, top_p_B)
    least_B1 = jnp.max(logits_BV, axis=-1, keepdims=True) + jnp.log(draws.min_p_B)[:, None]
    return jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)


def _keep_from(logits_BV: Array, weights_BV: Array, reach_B: Array) -> Array:
    """Keeps, from the highest logit down, as many as it takes for their weights to reach `reach_B`; all if none do.

    The lowest logit kept is found by bisection over the order of float32's bit patterns, without sorting.
    """
    order_BV = _ordered(logits_BV)

    def halve(_: int, span: tuple[Array, Array]) -> tuple[Array, Array]:
        low_B, high_B = span
        span_B = high_B - low_B
        middle_B = low_B + span_B // 2 + span_B % 2  # rounded up, without overflow
        reached_B = jnp.sum(weights_BV * (order_BV >= middle_B[:, None]), axis=-1) >= reach_B
        return jnp.where(reached_B, middle_B, low_B), jnp.where(reached_B, high_B, middle_B - 1)

    low_B = jnp.zeros(len(logits_BV), jnp.uint32)
    least_B, _ = jax.lax.fori_loop(0, 32, halve, (low_B, jnp.full_like(low_B, 2**32 - 1)))
    return jnp.where(order_BV >= least_B[:, None], logits_BV, -jnp.inf)


def _ordered(x: Array) -> Array:
    """uint32 in the order of the float32 values."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))
