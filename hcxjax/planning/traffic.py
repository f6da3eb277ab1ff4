"""What chips send each other and their memories in an update, by arithmetic: what a program would say, compiled."""

import math
from collections.abc import Mapping

from hcxjax.planning.collectives import Collective
from hcxjax.planning.flops import recomputed
from hcxjax.planning.memory import kept_bytes
from hcxjax.planning.pods import Pod
from hcxjax.planning.shares import Share
from hcxjax.planning.step import Step
from hcxjax.planning.topology import PodLayout

ARITHMETIC = "arithmetic"
"""Stands for the place in the program."""


def estimated_collectives(step: Step, pod: Pod, layout: PodLayout) -> tuple[Collective, ...]:
    """By mesh axis, for a language model; w bytes a number, P the blocks' weights, V·D a table, t tensor, c context.

    For each microbatch:

      fsdp and context   gathers w·P/t twice (forward, backward), half as much again of what is computed again, and
                         scatters their gradient, as much; gathers the head, w·V·D/t, and the embedding, 4·V·D/t;
                         reduces the gradients of both in float32
      data               reduces the gradients of what a device holds, w·P/t and 8·V·D/t over fsdp·context
      context            gathers the keys and values of whole rows in every block, 2w·c·tokens·K·H/t, forward and where
                         attention is computed again, and scatters their gradients
      tensor             reduces w·tokens·D, twice a block forward, twice backward, for `output` and `down` computed
                         again, and for the embedding; 4·tokens·D for the head

    Along axes that take up a whole closed 3D torus, XLA reduces where it would gather or scatter, and so sends twice as
    much (libtpu 0.0.42, v5p:4x4x4 and larger; axes that leave some of the torus to another are gathered). So it does
    with gradients that are summed over data too.
    """
    share, sizes = Share.of(step, layout), layout.sizes
    times, layers = share.microbatches, step.model.num_layers
    blocks, table = share.width * share.weights, share.table
    parts = sizes["fsdp"] * sizes["context"]
    torus = pod.chip.torus == 3 and pod.rings(0) and parts == pod.devices
    gather = "all-reduce" if torus else "all-gather"
    scatter = "all-reduce" if torus or sizes["data"] > 1 else "reduce-scatter"
    again = recomputed(step.model)
    divided = tuple(axis for axis in ("fsdp", "context") if sizes[axis] > 1)
    rows = 2 * share.width * share.context * share.tokens * share.keys
    of_tensor = share.width * share.tokens * step.model.embed_dim
    found = [
        _along(divided, gather, blocks, times * (2 + share.computed_again / 2), sizes),
        _along(divided, scatter, blocks, times, sizes),
        _along(divided, gather, (share.width + 4) * table, times, sizes),
        _along(divided, "all-reduce", 8 * table, times, sizes),
        _along(("data",), "all-reduce", (blocks + 8 * table) / parts, times, sizes),
        _along(("context",), "all-gather", rows, times * layers * (1 + ("attention" in again)), sizes),
        _along(("context",), "reduce-scatter", rows, times * layers, sizes),
        _along(("tensor",), "all-reduce", of_tensor, times * layers * (4 + len(again & {"output", "down"})), sizes),
        _along(("tensor",), "all-reduce", of_tensor + 4 * share.tokens * step.model.embed_dim, times, sizes),
    ]
    return tuple(one for one in found if one.total > 0)


def _along(axes: tuple[str, ...], kind: str, payload: float, times: float, sizes: Mapping[str, int]) -> Collective:
    members = math.prod(sizes[axis] for axis in axes)
    sent = payload * (members - 1) / members * (2 if kind == "all-reduce" else 1)
    return Collective(kind, axes, True, payload, sent, times, "", ARITHMETIC)


def moved_bytes(step: Step, layout: PodLayout, trained: float) -> float:
    """Bytes that must pass between a device's HBM and its cores in an update, for a language model; m microbatches.

      weights       m·w·P/t for each of forward, backward and what is computed again
      optimizer     28 for each number that trains and that the device holds: gradient, parameter and Adam's two moments
                    read, three of them written; 8·m for the gradient's sum
      activations   m·L·tokens·(2·kept + 2·dots·passes): what is kept is written and read, and every matmul of a block
                    writes what `remat='dots'` would keep and the next one reads it, forward, again, and twice backward

    Logits and scores are left out: a kernel need not write them. So it is a lower bound.

    Args:
      trained: bytes of the parameters that train on one device.
    """
    share = Share.of(step, layout)
    again = share.computed_again
    weights = share.width * share.weights * (2 + again)
    activations = 2 * kept_bytes(share, step.model.remat) + 2 * (3 + again) * kept_bytes(share, "dots")
    return share.microbatches * (weights + step.model.num_layers * share.tokens * activations) + trained / 4 * (
        28 + 8 * share.microbatches
    )
