"""The reward model's objective: of two answers, the one that was preferred scores higher."""

import dataclasses
from collections.abc import Collection

import jax
import jax.numpy as jnp

from hcxjax.checks import number
from hcxjax.models.config import DecoderConfig
from hcxjax.models.scalar import flops_per_token, init_scalar, score
from hcxjax.objectives.comparisons import apart, measured, texts
from hcxjax.protocols import Array, Batch, Metrics, Params


@dataclasses.dataclass(frozen=True)
class PairwiseReward:
    """Bradley-Terry over comparisons, the scores read at the last token of each answer.

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

    def rewards(self, params: Params, batch: Batch) -> tuple[Array, Array]:
        """(chosen_B, rejected_B): the scores of both answers, float32."""
        both = texts(batch)
        return apart(score(self.model, params, both.tokens_BT, both.segment_ids_BT, both.positions_BT, both.end_B))

    def loss(self, params: Params, batch: Batch, rng: Array) -> tuple[Array, Array, Metrics]:
        """(sum, weight, metrics) over the comparisons. The rng is not used: there is no dropout."""
        del rng
        chosen_B, rejected_B = self.rewards(params, batch)
        weight_B, difference_B = batch["weight_B"], chosen_B - rejected_B
        loss_B = -jax.nn.log_sigmoid(difference_B - self.margin_scale * batch["margin_B"])
        centered_B = self.centering * jnp.square(chosen_B + rejected_B)
        numbers = {
            "loss": loss_B,
            "accuracy": (difference_B > 0).astype(jnp.float32),
            "margin": difference_B,
            "reward": (chosen_B + rejected_B) / 2,
        }
        total = jnp.sum((loss_B + centered_B) * weight_B)
        return total, jnp.sum(weight_B), measured(batch, tuple(self.sources), numbers)

    def flops(self, batch: Batch) -> float:
        """Model FLOPs of one update on the whole batch."""
        rows, length = batch["chosen_tokens_BT"].shape
        return flops_per_token(self.model, length) * 2 * rows * length
