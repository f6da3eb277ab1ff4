"""What chips send each other and their memories in an update, by arithmetic: what a program would say, compiled."""

import math

from hcxjax.models.config import DecoderConfig
from hcxjax.planning.collectives import Collective
from hcxjax.planning.flops import block_weights
from hcxjax.planning.memory import compute_width, kept_bytes
from hcxjax.planning.pods import Pod
from hcxjax.planning.step import Step
from hcxjax.planning.topology import PodLayout

ARITHMETIC = "arithmetic"
"""Stands for the place in the program."""


def estimated_collectives(step: Step, pod: Pod, layout: PodLayout) -> tuple[Collective, ...]:
    """By mesh axis, for a language model; w bytes a number, P weights of all blocks, V·D a table, t tensor, m microbatches.

      fsdp    m times: gathers w·P/t twice (forward, backward), half as much again where blocks are computed again, and
              scatters as much gradient once; tables w·V·D/t, once for the embedding and once for each chunk of logits,
              and their gradients as often
      data    m times: the gradients of what a chip holds, w·P/(t·fsdp), and of the tables, reduced
      tensor  m times: w·tokens·D, 2 a block forward and 2 backward, and 2 where blocks are computed again

    Along an axis that is a whole closed 3D torus, XLA reduces where it would gather or scatter, and so sends twice as
    much (libtpu 0.0.42, v5p:4x4x4 and larger; an axis that leaves some of the torus to another is gathered).
    """
    sizes, model, times = layout.sizes, step.model, step.recipe.accumulate
    width, tensor = compute_width(model), sizes["tensor"]
    blocks = width * block_weights(model) / tensor
    table = width * model.vocab_size * model.embed_dim / tensor
    tokens = step.tokens / layout.batch_shards / times
    again = model.remat in ("full", "attention")
    chunks = math.ceil(step.length / (step.objective.loss_chunk or step.length))
    torus = pod.chip.torus == 3 and pod.rings(0) and sizes["fsdp"] == pod.devices
    gather, scatter = ("all-reduce", "all-reduce") if torus else ("all-gather", "reduce-scatter")
    found = [
        _along(("fsdp",), gather, blocks, times * (2.5 if again else 2.0), sizes),
        _along(("fsdp",), scatter, blocks, times, sizes),
        _along(("fsdp",), gather, table, times * (1 + chunks), sizes),
        _along(("fsdp",), "all-reduce", table, times * (1 + chunks), sizes),
        _along(("data",), "all-reduce", (blocks + table * (1 + chunks)) / sizes["fsdp"], times, sizes),
        _along(
            ("tensor",),
            "all-reduce",
            width * tokens * model.embed_dim,
            times * model.num_layers * (6 if again else 4),
            sizes,
        ),
    ]
    return tuple(one for one in found if one.total > 0)


def _along(axes: tuple[str, ...], kind: str, payload: float, times: float, sizes: dict[str, int]) -> Collective:
    members = math.prod(sizes[axis] for axis in axes)
    sent = payload * (members - 1) / members * (2 if kind == "all-reduce" else 1)
    return Collective(kind, axes, True, payload, sent, times, "", ARITHMETIC)


def moved_bytes(step: Step, layout: PodLayout, trained: float) -> float:
    """Bytes that must pass between a device's HBM and its cores in an update.

      weights       m·w·P/t for each of forward, backward and what is computed again
      optimizer     28 for each number that trains and that the device holds: gradient, parameter and Adam's two moments
                    read, three of them written; 8·m for the gradient's sum
      activations   m·L·tokens·(2·kept + 2·dots·passes): what is kept is written and read, and every matmul of a block
                    reads and writes what `remat='dots'` would keep, forward, again, and twice backward

    Logits and scores are left out: a kernel need not write them. So it is a lower bound.

    Args:
      trained: bytes of the parameters that train on one device.
    """
    model, times, tensor = step.model, step.recipe.accumulate, layout.sizes["tensor"]
    again = 1 if model.remat in ("full", "attention") else 0
    tokens = step.tokens / layout.batch_shards / times
    weights = compute_width(model) * block_weights(model) / tensor * (2 + again)
    activations = 2 * kept_bytes(model, step.length, tensor) + 2 * (3 + again) * matmul_bytes(model, tensor)
    optimizer = trained / 4 * (28 + 8 * times)
    return times * (weights + model.num_layers * tokens * activations) + optimizer


def matmul_bytes(model: DecoderConfig, tensor: int) -> float:
    """Bytes of what the matmuls of a block give out for a token."""
    heads = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    return compute_width(model) * (2 * model.embed_dim + (heads + 2 * model.mlp_dim) / tensor)
