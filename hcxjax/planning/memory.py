"""Bytes on a chip by kind: exactly where shardings say it, by estimate where only the compiler knows."""

import dataclasses
import math

import jax

from hcxjax.models.config import DecoderConfig
from hcxjax.planning.flops import TILE
from hcxjax.planning.step import Step
from hcxjax.planning.topology import PodLayout
from hcxjax.protocols import PyTree
from hcxjax.update import TrainState


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one of jax's devices while an update runs.

    Attributes:
      parameters, optimizer: the state between updates (statistics and counters count to the optimizer).
      batch: the rows that are read.
      activations: what forward keeps for backward, of all layers.
      gradients: of the parameters that train.
      temporaries: all else that is alive at the fullest moment.
    """

    parameters: float
    optimizer: float
    batch: float
    activations: float
    gradients: float
    temporaries: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(dataclasses.astuple(self))


def sharded_bytes(tree: PyTree) -> float:
    """Bytes on one device of abstract arrays with shardings; exact, padding aside."""
    return float(
        sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    )


def state_bytes(state: TrainState) -> tuple[float, float]:
    """(bytes of the parameters, bytes of the optimizer and the counters) on one device."""
    parameters = sharded_bytes(state.whole)
    return parameters, sharded_bytes(state.saved()) + sharded_bytes(state.frozen) - parameters


def estimated_memory(step: Step, layout: PodLayout, state: TrainState) -> Memory:
    """By arithmetic, for a language model.

      parameters, optimizer, batch   as they are sharded: exact
      activations   L · tokens · kept(remat), tokens = B·T / (shards of the batch · microbatches)
      gradients     the bytes of the parameters that train, twice where microbatches are summed
      temporaries   the larger of what the head and what one block needs at once (`_head`, `_block`)

    Tests compare it with compiled programs; docs/planning.md says how far off it was.

    Args:
      state: abstract, with the layout's shardings.
    """
    parameters, optimizer = state_bytes(state)
    batch = sharded_bytes(layout.abstract_batch(step.shapes))
    model, tensor = step.model, layout.sizes["tensor"]
    tokens = step.tokens / layout.batch_shards / step.recipe.accumulate
    return Memory(
        parameters,
        optimizer,
        batch,
        activations=model.num_layers * tokens * kept_bytes(model, step.length, tensor),
        gradients=sharded_bytes(state.params) * (2 if step.recipe.accumulate > 1 else 1),
        temporaries=max(_head(step, tokens, tensor), _block(model, step.length, tokens, tensor)),
    )


def kept_bytes(model: DecoderConfig, length: int, tensor: int) -> float:
    """Bytes that forward keeps of a token and a block, w bytes a number of the compute dtype, heads and F split over t:

      full        w·D                                      the block's input
      attention   w·(D + N·H/t)                            and the attention's output
      dots        w·(2D + (N + 2K)·H/t + 2F/t), + w·D with post-norms: outputs of matmuls that backward needs
      none        14·norms·D + w·(2N·H/t + (1 + tiles)·K·H/t + 6F/t): norms keep float32, and attention keys and values
                  up to the end of each tile
    """
    width = compute_width(model)
    queries = model.num_heads * model.head_dim / tensor
    keys = model.num_kv_heads * model.head_dim / math.gcd(tensor, model.num_kv_heads)
    wide, embed = model.mlp_dim / tensor, model.embed_dim
    if model.remat == "full":
        return width * embed
    if model.remat == "attention":
        return width * (embed + queries)
    if model.remat == "dots":
        outputs = 3 if model.post_norms else 2
        return width * (outputs * embed + queries + 2 * keys + 2 * wide)
    tiles = -(-length // TILE)
    norms = 4 if model.post_norms else 2
    return 14 * norms * embed + width * (2 * queries + (1 + tiles) * keys + 6 * wide)


def _head(step: Step, tokens: float, tensor: int) -> float:
    """Logits in float32 and the tables that are gathered to make them."""
    model, chunk = step.model, step.objective.loss_chunk
    share = min(1.0, (chunk or step.length) / step.length)
    logits = 4.0 * tokens * share * model.vocab_size / tensor
    table = 4.0 * model.vocab_size * model.embed_dim / tensor
    return 3 * logits + 3 * table


def _block(model: DecoderConfig, length: int, tokens: float, tensor: int) -> float:
    """Activations of one block as if nothing were computed again, scores of a tile, and gathered weights."""
    everything = dataclasses.replace(model, remat="none")
    scores = 3 * 4.0 * tokens * model.num_heads / tensor * min(length, TILE)
    weights = compute_width(model) * (model.parameters - 2 * model.vocab_size * model.embed_dim) / model.num_layers / tensor
    return tokens * kept_bytes(everything, length, tensor) + scores + 2 * weights


def compute_width(model: DecoderConfig) -> int:
    """Bytes of a number in the compute dtype."""
    return 4 if model.dtype == "float32" else 2
