"""The reward model's objective: of two answers, the one that was preferred scores higher."""

import dataclasses
from collections.abc import Collection

import jax
import jax.numpy as jnp

from hcxjax.checks import number
from hcxjax.models.config import DecoderConfig
from hcxjax.models.scalar import flops_per_token, init_scalar, score
from hcxjax.objectives.comparisons import less, measured, texts
from hcxjax.protocols import Array, Batch, Metrics, Params


@dataclasses.dataclass(frozen=True)
class PairwiseReward:
    """Bradley-Terry over comparisons, the scores read at the last token of each answer, once however often compared.

    loss = −log σ(r_chosen − r_rejected − margin_scale · margin) + centering · (r_chosen + r_rejected)²

    A batch is as `hcxjax.objectives.comparisons` says.

    Source: Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155, eq. 1; margins: Touvron et al. 2023 (Llama 2),
    arXiv:2307.09288, eq. 2; centering: Eisenstein et al. 2023, arXiv:2312.09244. Deviation: every comparison weighs the
    same, where InstructGPT's eq. 1 lets every prompt weigh the same.

    Attributes:
      model: the decoder's sizes; the head is `hcxjax.models.scalar`'s.
      margin_scale: what margins of the data are multiplied with; 0 leaves them out.
      centering: weight of what keeps scores near 0; 0 leaves it out, 0.01 is usual.
      sources: names of the batch's sources (a mapping's keys will do), which `source_B` numbers in alphabetical order;
        empty: no metrics by source.
    """

    model: DecoderConfig
    margin_scale: float = 0.0
    centering: float = 0.0
    sources: Collection[str] = ()

    def __post_init__(self):
        number(self, "margin_scale", "centering")
        for name in ("margin_scale", "centering"):
            if getattr(self, name) < 0:
                raise ValueError(f"PairwiseReward.{name} is {getattr(self, name)}; it must not be negative")
        # Hashable, because an objective is static under jit.
        object.__setattr__(self, "sources", tuple(sorted(self.sources)))

    def init(self, rng: Array) -> Params:
        """Boxed parameters."""
        return init_scalar(self.model, rng)

    def rewards(self, params: Params, batch: Batch) -> Array:
        """reward_BK: the score of each text, float32."""
        given = texts(batch)
        score_B = score(self.model, params, given.tokens_BT, given.segment_ids_BT, given.positions_BT, given.end_B)
        return score_B.reshape(batch["end_BK"].shape)

    def loss(self, params: Params, batch: Batch, rng: Array) -> tuple[Array, Array, Metrics]:
        """(sum, weight, metrics) over the comparisons. The rng is not used: there is no dropout."""
        del rng
        reward_BK = self.rewards(params, batch)
        preferred_BKK, difference_BKK = batch["preferred_BKK"], less(reward_BK)
        sum_BKK = reward_BK[:, :, None] + reward_BK[:, None, :]
        loss_BKK = -jax.nn.log_sigmoid(difference_BKK - self.margin_scale * batch["margin_BKK"])
        numbers = {
            "loss": loss_BKK,
            "accuracy": (difference_BKK > 0).astype(jnp.float32),
            "margin": difference_BKK,
            "reward": sum_BKK / 2,
        }
        total = jnp.sum((loss_BKK + self.centering * jnp.square(sum_BKK)) * preferred_BKK)
        return total, jnp.sum(preferred_BKK), measured(batch, tuple(self.sources), numbers)

    def flops(self, batch: Batch) -> float:
        """Model FLOPs of one update on the whole batch."""
        rows, count, length = batch["tokens_BKT"].shape
        return flops_per_token(self.model, length) * rows * count * length
