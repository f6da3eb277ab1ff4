"""Bytes on a chip by kind: exactly where shardings say it, by estimate where only the compiler knows."""

import dataclasses
import math
from typing import NamedTuple

import jax

from hcxjax.planning.flops import recomputed
from hcxjax.planning.shares import Share
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
      gradients: of the blocks' parameters that train.
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


class Held(NamedTuple):
    """Bytes on one device of what an update is given, exactly.

    Attributes:
      parameters: all of them.
      trained: those that train.
      optimizer: its state, and the counters.
      batch: the rows.
    """

    parameters: float
    trained: float
    optimizer: float
    batch: float

    @classmethod
    def of(cls, state: TrainState, batch: PyTree) -> "Held":
        """Of abstract arrays with shardings."""
        trained, frozen = sharded_bytes(state.params), sharded_bytes(state.frozen)
        return cls(trained + frozen, trained, sharded_bytes(state.saved()) - trained, sharded_bytes(batch))


def estimated_memory(step: Step, layout: PodLayout, held: Held) -> Memory:
    """By arithmetic, for a language model.

      parameters, optimizer, batch   as they are sharded: exact
      activations   L/p · tokens · `kept_bytes`, and of a stage's steps for nothing as much
      gradients     the bytes of the parameters that train, twice where microbatches are summed
      temporaries   the larger of what the head and what one block needs at once (`_head`, `_block`); what waits for
                    every microbatch (`_outside`); and, where gradients are summed over data and divided over fsdp or
                    stages, whole weights (`_whole`)

    Tests compare it with compiled programs; docs/planning.md says how far off it was.
    """
    share = Share.of(step, layout)
    return Memory(
        held.parameters,
        held.optimizer,
        held.batch,
        activations=share.layers * share.waiting * share.tokens * kept_bytes(share, share.model.remat),
        gradients=held.trained * (2 if share.microbatches > 1 else 1),
        temporaries=max(_head(share, step.objective.loss_chunk), _block(share))
        + _outside(share, layout)
        + _whole(share, layout),
    )


def kept_bytes(share: Share, remat: str | tuple[str, ...]) -> float:
    """Bytes that forward keeps of a token and a block, w bytes a number of the compute dtype, heads and F split over t:

      its input, w·D, and of what a policy keeps: query and attention w·N·H/t each, attention_lse 4·N/t, key and value
      w·K·H/t each, output w·D, gate and up w·F/t each, down w·D where a post-norm follows
      none   14·norms·D + w·(3N·H/t + 2c·K·H/t + 6F/t): norms keep float32; keys and values are whole rows'

    What is offloaded lies with the host.
    """
    model, width = share.model, share.width
    if remat == "none":
        norms = 4 if model.post_norms else 2
        keys = 2 * share.keys * share.context
        return 14 * norms * model.embed_dim + width * (3 * share.heads + keys + 6 * share.wide)
    again = recomputed(dataclasses.replace(model, remat=remat, offload=()))
    sizes = dict.fromkeys(("query", "attention"), width * share.heads)
    sizes |= dict.fromkeys(("key", "value"), width * share.keys)
    sizes |= dict.fromkeys(("gate", "up"), width * share.wide)
    sizes |= {"output": width * model.embed_dim, "attention_lse": 4 * share.heads / model.head_dim}
    if model.post_norms:
        sizes["down"] = width * model.embed_dim
    return width * model.embed_dim + sum(size for name, size in sizes.items() if name not in again)


def _head(share: Share, chunk: int | None) -> float:
    """Logits of a chunk and their gradient in float32, the gathered head, and its gradient in float32."""
    part = min(share.tokens, share.tokens * (chunk or share.length) * share.context / share.length)
    logits = 4.0 * part * share.model.vocab_size / share.tensor
    return 2.5 * logits + (share.width + 8) * share.table


def _block(share: Share) -> float:
    """Activations of one block as if nothing were computed again, and gathered weights. Kernels keep scores to
    themselves."""
    rows = share.tokens if share.stages == 1 else share.tokens / share.schedule.microbatches
    return rows * kept_bytes(share, "none") + 2 * share.width * share.weights / share.layers


def _outside(share: Share, layout: PodLayout) -> float:
    """What XLA for TPUs takes out of the loop over microbatches: the blocks' weights as they are stored, in the compute
    dtype, and the gradient of an embedding that is not the head, whole and in float32, to be divided once."""
    parts = layout.sizes["fsdp"] * layout.sizes["context"]
    divided = parts > 1 and share.microbatches > 1 and share.stages == 1
    embedding = 4 * share.table if divided and not share.model.tie_embeddings else 0.0
    return share.width * share.weights / parts + embedding


def _whole(share: Share, layout: PodLayout) -> float:
    """Weights and gradients that are whole along fsdp and context for longer than a block.

    A pipeline gathers a stage's weights once, in float32, and sums their gradient beside. XLA for TPUs does not scatter
    what it also has to sum over a second axis: it sums it whole, and then cuts.
    """
    if share.stages > 1:
        return 12 * share.weights
    if layout.sizes["data"] == 1 or layout.sizes["fsdp"] * layout.sizes["context"] == 1:
        return 0.0
    return 4 * share.table + 2 * share.width * share.weights / share.layers
