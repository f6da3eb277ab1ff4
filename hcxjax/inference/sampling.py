"""From logits to a token: temperature, top-k, top-p, with randomness that depends on (seed, row, position) alone."""

import dataclasses

import jax
import jax.numpy as jnp

from hcxjax.protocols import Array
from hcxjax.shapes import shaped


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
      temperature: divides the logits; 0 takes the most likely token.
      top_k: keep this many of the most likely tokens; 0 keeps all.
      top_p: keep the fewest of the most likely tokens whose probabilities reach this sum, in (0, 1]
        (Holtzman et al. 2020, arXiv:1904.09751, section 3.1).
      seed: of all draws.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or more, and finite")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")


@shaped
def sample(logits_BV: Array, positions_B: Array, sampling: Sampling) -> Array:
    """tokens_B drawn from softmax(logits / temperature) over the tokens that top-k and top-p keep."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1)
    logits_BV = keep_top(logits_BV / sampling.temperature, sampling.top_k, sampling.top_p)
    seed = jax.random.key(sampling.seed)

    def draw(row: Array, position: Array, logits_V: Array) -> Array:
        key = jax.random.fold_in(jax.random.fold_in(seed, row), position)
        return jax.random.categorical(key, logits_V)

    return jax.vmap(draw)(jnp.arange(len(positions_B)), positions_B, logits_BV)


@shaped
def keep_top(logits_BV: Array, top_k: int, top_p: float) -> Array:
    """Logits with −inf where top-k or top-p drop a token; the most likely token always stays."""
    if top_k == 0 and top_p == 1:
        return logits_BV
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    kept_BV = jnp.ones_like(sorted_BV, bool)
    if top_k:
        kept_BV &= jnp.arange(sorted_BV.shape[-1]) < top_k
    if top_p < 1:
        probabilities_BV = jax.nn.softmax(jnp.where(kept_BV, sorted_BV, -jnp.inf), axis=-1)
        before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV
        kept_BV &= before_BV < top_p
    least_B1 = jnp.min(jnp.where(kept_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
