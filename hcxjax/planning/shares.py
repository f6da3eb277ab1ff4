"""What one device has of a step, by arithmetic: how a mesh divides rows, places, heads and weights."""

import dataclasses
import math

from hcxjax.models.config import DecoderConfig
from hcxjax.planning.flops import block_weights, matmul_weights, recomputed
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
      tensor, context: sizes of these axes (t, c).
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
    width: int
    heads: float
    keys: float
    wide: float

    @classmethod
    def of(cls, step: Step, layout: PodLayout) -> "Share":
        """Of a step on a mesh."""
        model, sizes = step.model, layout.sizes
        tensor, context, microbatches = sizes["tensor"], sizes["context"], step.recipe.accumulate
        return cls(
            model=model,
            length=step.length,
            microbatches=microbatches,
            tokens=step.tokens / layout.batch_shards / context / microbatches,
            tensor=tensor,
            context=context,
            width=4 if model.dtype == "float32" else 2,
            heads=model.num_heads * model.head_dim / tensor,
            keys=model.num_kv_heads * model.head_dim / math.gcd(tensor, model.num_kv_heads),
            wide=model.mlp_dim / tensor,
        )

    @property
    def weights(self) -> float:
        """Of all blocks, gathered."""
        return block_weights(self.model) / self.tensor

    @property
    def table(self) -> float:
        """Numbers of the embedding or the head, gathered: V·D/t."""
        return self.model.vocab_size * self.model.embed_dim / self.tensor

    @property
    def computed_again(self) -> float:
        """Share of the blocks' weights whose matmuls the backward pass runs again."""
        again, weights = recomputed(self.model), matmul_weights(self.model)
        return sum(size for name, size in weights.items() if name in again) / sum(weights.values())
