"""From what a policy wrote to what it is to learn: rewards, advantages and returns of every token.

Column t of a `*_BT` array is about `targets_BT[:, t]`, the token that was drawn after `tokens_BT[:, : t + 1]`. Results
are float32, and 0 where the mask is False; what lies there, infinite or NaN too, changes nothing.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hcxjax.checks import number
from hcxjax.protocols import Array
from hcxjax.shapes import shaped

LEAST_VARIANCE = 1e-8
"""Added to a variance before its root is divided by: advantages that are all the same stay near 0."""

LARGEST_ERROR = 0.2
"""How far off its target a KL divergence counts at most (Ziegler et al. 2019, arXiv:1909.08593, section 2.2)."""


@shaped
def up_to_stop(targets_BT: Array, answer_BT: Array, stop_ids: tuple[int, ...]) -> Array:
    """mask_BT: the answer's places up to and including its first stop token; the whole answer where it has none.

    Args:
      answer_BT: True where a target is part of the answer. Stop tokens elsewhere, in a prompt say, do not count.
      stop_ids: any of these ends an answer.
    """
    answer_BT = jnp.asarray(answer_BT, bool)
    stops_W = jnp.asarray(stop_ids, jnp.int32)
    stop_BT = answer_BT & jnp.any(jnp.asarray(targets_BT)[..., None] == stops_W, axis=-1)
    earlier_BT = jnp.cumsum(stop_BT, axis=1) - stop_BT
    return answer_BT & (earlier_BT == 0)


@shaped
def last_place(mask_BT: Array) -> Array:
    """place_B, int32: the column of the row's last True; 0 for a row without one."""
    columns_T = jnp.arange(mask_BT.shape[1], dtype=jnp.int32)
    return jnp.max(jnp.where(mask_BT, columns_T, 0), axis=1)


@shaped
def kl_terms(logprob_BT: Array, reference_BT: Array, mask_BT: Array) -> tuple[Array, Array, Array]:
    """(k1_BT, k2_BT, k3_BT): three estimates of KL(π ‖ π_ref), in nats, from tokens that π drew.

    With d = log π(y_t) − log π_ref(y_t): k1 = d, k2 = d²/2, k3 = e^(−d) − 1 + d. k1 and k3 are unbiased, k2 and k3 are
    never negative. Only k1 belongs into a reward: with the others another policy is the best one.

    Source: Schulman 2020, "Approximating KL divergence", joschu.net/blog/kl-approx.html.
    """
    k1_BT = _kept(logprob_BT, mask_BT) - _kept(reference_BT, mask_BT)
    return k1_BT, jnp.square(k1_BT) / 2, jnp.expm1(-k1_BT) + k1_BT


@shaped
def penalised(score_B: Array, stopped_B: Array, penalty: ArrayLike) -> Array:
    """score_B − penalty where an answer ended without a stop token; for normalised scores, before the KL is taken off.

    Deviation: Huang et al. 2024, arXiv:2403.17031, section 7, put −1 in the score's place. Taking off keeps the order
    of answers that did not stop.

    Args:
      penalty: 0 or more, in units of the score.
    """
    return jnp.asarray(score_B, jnp.float32) - jnp.where(stopped_B, 0.0, penalty)


@shaped
def token_rewards(logprob_BT: Array, reference_BT: Array, mask_BT: Array, score_B: Array, beta: ArrayLike) -> Array:
    """reward_BT: −β (log π − log π_ref) at every token of the answer, plus the score at its last one.

    Σ_t reward = score − β Σ_t k1. A row whose mask is empty has no rewards, its score included.

    Source: Ziegler et al. 2019, arXiv:1909.08593, eq. 2; InstructGPT, arXiv:2203.02155, eq. 2.
    """
    k1_BT, _, _ = kl_terms(logprob_BT, reference_BT, mask_BT)
    columns_T = jnp.arange(mask_BT.shape[1], dtype=jnp.int32)
    last_BT = mask_BT & (columns_T == last_place(mask_BT)[:, None])
    # The score takes the type of the log-probabilities, never that of token ids, which would cut its fraction off.
    score_B1 = jnp.asarray(score_B, jnp.float32)[:, None]
    return jnp.where(last_BT, score_B1, 0.0) - beta * k1_BT


@shaped
def gae(
    reward_BT: Array, value_BT: Array, mask_BT: Array, discount: ArrayLike, decay: ArrayLike
) -> tuple[Array, Array]:
    """(advantage_BT, return_BT) by generalised advantage estimation, from the last token back.

    δ_t = r_t + γ V_(t+1) − V_t;  A_t = δ_t + γ λ A_(t+1);  return_t = A_t + V_t. After a row's last place V and A are
    0; places that are masked inside a row are passed over, as if they were not there.

    Args:
      value_BT: what the critic expected of the rest of the answer before token t was drawn.
      discount: γ, in [0, 1].
      decay: λ, in [0, 1]; 0 trusts the critic alone, 1 the rewards alone.

    Source: Schulman et al. 2016, arXiv:1506.02438, eq. 16.
    """
    reward_BT, value_BT = _kept(reward_BT, mask_BT), _kept(value_BT, mask_BT)

    def step(after: tuple[Array, Array], column: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], Array]:
        advantage_B, value_B = after
        reward_B, here_B, mask_B = column
        delta_B = reward_B + discount * value_B - here_B
        advantage_B = jnp.where(mask_B, delta_B + discount * decay * advantage_B, advantage_B)
        return (advantage_B, jnp.where(mask_B, here_B, value_B)), advantage_B

    nothing_B = jnp.zeros_like(reward_BT[:, 0])
    columns = (reward_BT.T, value_BT.T, jnp.asarray(mask_BT, bool).T)
    _, advantage_TB = jax.lax.scan(step, (nothing_B, nothing_B), columns, reverse=True)
    advantage_BT = _kept(advantage_TB.T, mask_BT)
    return advantage_BT, advantage_BT + value_BT


@shaped
def whitened(x_BT: Array, mask_BT: Array) -> Array:
    """x_BT with mean 0 and variance 1 over all the tokens of the mask, whatever devices they lie on; 0 elsewhere.

    (x − mean) / √(variance + 1e-8), with the population's variance: divided by n, not by n − 1. To be called with a
    whole rollout: whitening each minibatch by itself would weigh the same answer differently by its company.

    Source: Huang et al. 2024, arXiv:2403.17031, section 7.
    """
    x_BT, mask_BT = _kept(x_BT, mask_BT), jnp.asarray(mask_BT, bool)
    count = jnp.maximum(jnp.sum(mask_BT, dtype=jnp.float32), 1.0)
    centred_BT = _kept(x_BT - jnp.sum(x_BT) / count, mask_BT)
    variance = jnp.sum(jnp.square(centred_BT)) / count
    return centred_BT * jax.lax.rsqrt(variance + LEAST_VARIANCE)


@dataclasses.dataclass(frozen=True)
class AdaptiveKL:
    """A KL coefficient that follows the divergence: up where it is above the target, down where it is below.

    e = clip(KL / target − 1, ±0.2);  β ← β (1 + e · episodes / horizon)

    Source: Ziegler et al. 2019, arXiv:1909.08593, section 2.2. The report holds β fixed.

    Attributes:
      target: nats an answer, summed over its tokens.
      horizon: episodes in which β could about double or vanish, were e 1.
    """

    target: float
    horizon: float

    def __post_init__(self):
        number(self, "target", "horizon")
        for name in ("target", "horizon"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"AdaptiveKL.{name} is {getattr(self, name)}; it must be positive and finite")

    def following(self, beta: float, kl: float, episodes: int) -> float:
        """The β of the next rollout, after one of `episodes` answers whose mean summed divergence was `kl` nats.

        Raises:
          ValueError: so many episodes that β could reach 0, or a divergence that is no number.
        """
        if episodes * LARGEST_ERROR >= self.horizon:
            raise ValueError(
                f"AdaptiveKL.horizon is {self.horizon}; with {episodes} episodes a rollout it must be above "
                f"{episodes * LARGEST_ERROR:g}"
            )
        if math.isnan(kl):
            raise ValueError("the KL divergence of the rollout is NaN; AdaptiveKL cannot follow it")
        error = min(max(kl / self.target - 1, -LARGEST_ERROR), LARGEST_ERROR)
        return beta * (1 + error * episodes / self.horizon)


def _kept(x_BT: Array, mask_BT: Array) -> Array:
    return jnp.where(mask_BT, jnp.asarray(x_BT, jnp.float32), 0.0)
