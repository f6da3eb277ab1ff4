"""What chips send each other and their memories in an update, by arithmetic: what a program would say, compiled."""

import math
from collections.abc import Mapping

from hcxjax.placement import across_slices
from hcxjax.planning.collectives import Collective, ring_share
from hcxjax.planning.flops import recomputed
from hcxjax.planning.memory import kept_bytes
from hcxjax.planning.pods import Pod
from hcxjax.planning.shares import Share
from hcxjax.planning.step import Step
from hcxjax.planning.topology import PodLayout

ARITHMETIC = "arithmetic"
"""Stands for the place in the program."""


def estimated_collectives(step: Step, pod: Pod, layout: PodLayout) -> tuple[Collective, ...]:
    """By mesh axis, for a language model; w bytes a number, P the blocks' weights, V·D a table, t, c, p the sizes of
    tensor, context and pipe.

    For each microbatch:

      fsdp and context   gathers w·P/t twice (forward, backward), half as much again of what is computed again, and
                         scatters their gradient, as much; gathers the head, w·V·D/(t·p), and the embedding,
                         4·V·D/(t·p); reduces the gradients of both in float32
      data               reduces the gradients of what a device holds, w·P/t and 8·V·D/(t·p) over fsdp·context
      context            gathers the keys and values of whole rows in every block, 2w·c·tokens·K·H/t, forward and, since
                         no policy of remat keeps them, backward; scatters their gradients
      tensor             reduces w·tokens·D, twice a block forward, twice backward, for `output` and `down` computed
                         again, and for the embedding; 4·tokens·D for the head
      pipe               sends w·D of a row on after every step, forward and backward, and sums w·tokens·D at the end;
                         a stage's weights, 4·P/(t·p), are gathered once and their gradient reduced once

    Along axes that take up a whole closed 3D torus, XLA reduces where it would gather or scatter, and so sends twice as
    much (libtpu 0.0.42, v5p:4x4x4 and larger; axes that leave some of the torus to another are gathered). So it does
    with gradients that are summed over data too, and on all TPUs with those of keys and values.
    """
    share, sizes = Share.of(step, layout), layout.sizes
    parts = sizes["fsdp"] * sizes["context"]
    torus = pod.chip.torus == 3 and pod.rings(0) and parts == pod.devices
    gather = "all-reduce" if torus else "all-gather"
    scatter = "all-reduce" if torus or sizes["data"] > 1 or share.stages > 1 else "reduce-scatter"
    divided = tuple(axis for axis in ("fsdp", "context") if sizes[axis] > 1)
    blocks = (4 if share.stages > 1 else share.width) * share.weights
    gathers = 1.0 if share.stages > 1 else 2 + share.computed_again / 2
    found = [
        (divided, gather, blocks, gathers),
        (divided, scatter, blocks, 1),
        (divided, gather, (share.width + 4) * share.table, 1),
        (divided, "all-reduce", 8 * share.table, 1),
        (("data",), "all-reduce", (blocks + 8 * share.table) / parts, 1),
        *_of_blocks(share, reduces=bool(pod.chip.torus)),
    ]
    across = across_slices(sizes, pod.parts)
    made = (
        _along(axes, kind, payload, times * share.microbatches, sizes, across) for axes, kind, payload, times in found
    )
    return tuple(one for one in made if one.total > 0)


def _of_blocks(share: Share, reduces: bool) -> list[tuple[tuple[str, ...], str, float, float]]:
    """(axes, kind, payload, times a microbatch) of what the blocks of a device send.

    Args:
      reduces: are gradients of keys and values reduced, and not scattered?
    """
    again, embed = recomputed(share.model), share.model.embed_dim
    keys, residual = 2 * share.width * share.context * share.tokens * share.keys, share.width * share.tokens * embed
    visits = share.layers * share.waiting
    steps, a_row = share.schedule.steps, residual / share.schedule.microbatches
    return [
        (("context",), "all-gather", keys, visits * (1 if share.model.remat == "none" else 2)),
        (("context",), "all-reduce" if reduces else "reduce-scatter", keys, visits),
        (("tensor",), "all-reduce", residual, visits * (4 + len(again & {"output", "down"}))),
        (("tensor",), "all-reduce", residual + 4 * share.tokens * embed, 1),
        (("pipe",), "collective-permute", a_row, 2 * steps),
        (("pipe",), "all-reduce", residual, 2),
    ]


def _along(
    axes: tuple[str, ...],
    kind: str,
    payload: float,
    times: float,
    sizes: Mapping[str, int],
    across: Mapping[str, int],
) -> Collective:
    members = math.prod(sizes[axis] for axis in axes)
    sent = payload * ring_share(kind, members) if members > 1 else 0.0
    slices = math.prod(across[axis] for axis in axes)
    return Collective(kind, axes, True, payload, sent, times, "", ARITHMETIC, slices)


def moved_bytes(step: Step, layout: PodLayout, trained: float) -> float:
    """Bytes that must pass between a device's HBM and its cores in an update, for a language model; m microbatches.

      weights       m·w·P/(t·p) for each of forward, backward and what is computed again; of stages, in each visit anew
      optimizer     28 for each number that trains and that the device holds: gradient, parameter and Adam's two moments
                    read, three of them written; 8·m for the gradient's sum
      activations   m·L/p·tokens·(2·kept + 2·dots·passes): what is kept is written and read, and every matmul of a block
                    writes what `remat='dots'` would keep and the next one reads it, forward, again, and twice backward;
                    of a stage's steps for nothing as much

    Logits and scores are left out: a kernel need not write them. So it is a lower bound.

    Args:
      trained: bytes of the parameters that train on one device.
    """
    share = Share.of(step, layout)
    again = share.computed_again
    visits = share.schedule.steps / share.schedule.repeats if share.stages > 1 else 1
    weights = visits * share.width * share.weights * (2 + again)
    a_token = 2 * kept_bytes(share, share.model.remat) + 2 * (3 + again) * kept_bytes(share, "dots")
    activations = share.layers * share.waiting * share.tokens * a_token
    return share.microbatches * (weights + activations) + trained / 4 * (28 + 8 * share.microbatches)
