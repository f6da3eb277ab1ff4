"""What one device has of a step, by arithmetic: how a mesh divides rows, places, heads and weights."""

import dataclasses
import math

from hcxjax.models.config import DecoderConfig
from hcxjax.models.pipeline import Schedule
from hcxjax.planning.flops import (
    block_weights,
    hardware_flops_per_token,
    head_flops_per_token,
    matmul_weights,
    recomputed,
)
from hcxjax.planning.step import Step
from hcxjax.planning.topology import PodLayout


@dataclasses.dataclass(frozen=True)
class Share:
    """One device's part of a microbatch of a language model.

    Attributes:
      model: the whole decoder.
      length: of a whole row (T).
      microbatches: of an update (m).
      tokens: that the device computes.
      tensor, context, stages: sizes of the axes tensor, context and pipe (t, c, p).
      width: bytes of a number in the compute dtype (w).
      heads, keys: numbers of a token's queries, N·H/t, and of its keys, K·H/t, or one head's where K is less than t.
      wide: of its feed-forward, F/t.
    """

    model: DecoderConfig
    length: int
    microbatches: int
    tokens: float
    tensor: int
    context: int
    stages: int
    width: int
    heads: float
    keys: float
    wide: float

    @classmethod
    def of(cls, step: Step, layout: PodLayout) -> "Share":
        """Of a step on a mesh."""
        model, sizes = step.model, layout.sizes
        if sizes["pipe"] > 1 and model.remat == "none":  # there it keeps what dots keeps (`hcxjax.models.remat`)
            model = dataclasses.replace(model, remat="dots")
        tensor, context, microbatches = sizes["tensor"], sizes["context"], step.recipe.accumulate
        return cls(
            model=model,
            length=step.length,
            microbatches=microbatches,
            tokens=step.tokens / layout.batch_shards / context / microbatches,
            tensor=tensor,
            context=context,
            stages=sizes["pipe"],
            width=4 if model.dtype == "float32" else 2,
            heads=model.num_heads * model.head_dim / tensor,
            keys=model.num_kv_heads * model.head_dim / math.gcd(tensor, model.num_kv_heads),
            wide=model.mlp_dim / tensor,
        )

    @property
    def layers(self) -> float:
        """Of the device's stage, L/p."""
        return self.model.num_layers / self.stages

    @property
    def weights(self) -> float:
        """Of the blocks that the device runs, gathered: P/(t·p)."""
        return block_weights(self.model) / self.tensor / self.stages

    @property
    def table(self) -> float:
        """Numbers of the embedding or the head, gathered: V·D/(t·p)."""
        return self.model.vocab_size * self.model.embed_dim / self.tensor / self.stages

    @property
    def schedule(self) -> Schedule:
        """Of the device's rows through the stages."""
        rows = max(1, round(self.tokens * self.context / self.length / self.model.pipe_rows))
        return Schedule(self.stages, self.model.pipe_repeats, rows)

    @property
    def waiting(self) -> float:
        """Times that a stage works for each time that it works for something: 1/(1 − bubble)."""
        return 1.0 if self.stages == 1 else 1 / (1 - self.schedule.bubble)

    @property
    def turns(self) -> int:
        """Of the loop that lays down what backward needs of the blocks: over layers, or over a pipeline's steps."""
        return self.model.num_layers // self.model.scan_unroll if self.stages == 1 else self.schedule.steps

    @property
    def flops(self) -> float:
        """That the device runs in an update, those of stages that work for nothing included."""
        head = head_flops_per_token(self.model)
        blocks = hardware_flops_per_token(self.model, self.length) - head
        return self.microbatches * self.tokens * (blocks * self.waiting + head) / (self.tensor * self.stages)

    @property
    def computed_again(self) -> float:
        """Share of the blocks' weights whose matmuls the backward pass runs again."""
        again, weights = recomputed(self.model), matmul_weights(self.model)
        return sum(size for name, size in weights.items() if name in again) / sum(weights.values())
