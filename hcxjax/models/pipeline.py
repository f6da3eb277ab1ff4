"""Layers divided over devices in stages, and rows that pass through them in microbatches, all stages at work at once.

A stage holds its layers from the beginning of a batch to its end; rows come to it from the stage before, in a ring. With
several repeats a stage holds as many groups of layers that do not follow one another and rows go round as often, which
fills and empties the pipeline in smaller steps (Narayanan et al. 2021, arXiv:2104.04473, section 2.2). All microbatches
go forwards before any goes back, as in GPipe (Huang et al. 2019, arXiv:1811.06965): the backward pass is the gradient of
the forward loop, and what it needs of a row is kept until then, as it is without stages.

Layers are stored in their own order, [L, ...] over the mesh axis of 'layers', so that a checkpoint knows of no stages.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from hcxjax.kernels.plan import AttentionPlan
from hcxjax.kernels.rotary import Angles
from hcxjax.mesh import axes_of, spec_of
from hcxjax.models.config import DecoderConfig
from hcxjax.models.context import parted, plan_specs
from hcxjax.models.stacked import Layer, picked, visiting
from hcxjax.protocols import Array, Params

Axes = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Which microbatch meets which group of layers, where and when.

    Of S stages, stage s holds the groups s, S + s, 2S + s, ... Microbatches enter S at a time; these go round R times
    before the next S enter, so that none ever waits for a stage that is taken.

    Attributes:
      stages, repeats, microbatches: S, R, M.
    """

    stages: int
    repeats: int
    microbatches: int

    @property
    def steps(self) -> int:
        """Steps from the first microbatch's start to the last one's end; in each, every stage passes one group."""
        whole, rest = divmod(self.microbatches - 1, self.stages)
        return (whole * self.repeats + self.repeats) * self.stages + rest

    @property
    def bubble(self) -> float:
        """The share of its steps in which a stage works for nothing: (S - 1) / (R M + S - 1) where R is 1 or S divides M.

        Else it is more: the last microbatches go round with gaps between them.
        """
        return 1 - self.repeats * self.microbatches / self.steps

    def at(self, step: Array, stage: Array) -> tuple[Array, Array]:
        """(repeat, microbatch) that a stage has; in steps for nothing, numbers that can be, but mean nothing."""
        whole, rest = jnp.divmod(step - stage, self.stages * self.repeats)
        repeat, place = jnp.divmod(rest, self.stages)
        return repeat, jnp.clip(whole * self.stages + place, 0, self.microbatches - 1)


def stages_of(config: DecoderConfig) -> int:
    """Stages that the layers are divided into on the mesh that is set; 1 where there is none.

    Raises:
      ValueError: the layers cannot be divided so.
    """
    axes = axes_of("layers")
    stages = math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in axes)
    if axes and config.num_layers % (stages * config.pipe_repeats):
        raise ValueError(
            f"DecoderConfig.num_layers is {config.num_layers}; it must be a multiple of {stages * config.pipe_repeats} "
            f"(stages {stages}, Layout.{', '.join(axes)} x groups of each {config.pipe_repeats}, "
            "DecoderConfig.pipe_repeats)"
        )
    return stages


def pipelined(
    layer: Layer, weights: Params, x_BTD: Array, angles: Angles, plan: AttentionPlan, config: DecoderConfig
) -> Array:
    """x_BTD after all layers, of which each device holds its stage's.

    Devices that share a stage do not share rows or places: the weights of a stage are gathered once over the axes that
    divide these, and their gradient is summed over them once, however many microbatches there are.

    Args:
      layer: (x_BTD, its weights, (angles, plan)) → x_BTD.
      weights: of all layers, stacked in their own order.
    Raises:
      ValueError: the rows of a device are no multiple of `pipe_rows`.
    """
    axes = axes_of("layers")
    length = "length" if len(plan.q_places_I) > 1 else None
    x_spec = spec_of(x_BTD.shape, "batch", length, None)
    rows = PartitionSpec(*x_spec[:2])
    copies = PartitionSpec(axes, *x_spec)
    specs = (PartitionSpec(axes), copies, (rows, rows), plan_specs(plan, x_spec))
    taken = {*axes, *jax.tree.leaves(tuple(x_spec))}
    run = functools.partial(_stage, layer, axes, config)
    run = jax.shard_map(run, in_specs=specs, out_specs=copies, axis_names=taken, check_vma=False)
    # A copy for every stage and a result of every stage, all but one of them 0, in place of sums inside: of sums there in
    # bfloat16 XLA's CPU compiler dies (jax 0.10.2).
    x_SBTD = jnp.broadcast_to(x_BTD, (stages_of(config), *x_BTD.shape))
    x_SBTD = run(weights, x_SBTD, angles, plan)
    return jax.lax.reduce_sum(x_SBTD, (0,))


def _stage(
    layer: Layer, axes: Axes, config: DecoderConfig, weights: Params, x_1BTD: Array, angles: Angles, plan: AttentionPlan
) -> Array:
    """What one device does, with the rows that it shares with nobody but the other stages; 0 but from the last."""
    stages, me = jax.lax.axis_size(axes), jax.lax.axis_index(axes)
    schedule = Schedule(stages, config.pipe_repeats, _microbatches(x_1BTD.shape[1], config))

    def divided(rows: Array) -> Array:
        return rows.reshape(schedule.microbatches, -1, *rows.shape[1:])

    group = config.num_layers // (stages * schedule.repeats)
    weights, given = (
        _dealt(weights, axes, schedule),
        (jax.tree.map(divided, angles), parted(plan, schedule.microbatches)),
    )
    visit, onwards = visiting(layer), [(stage, (stage + 1) % stages) for stage in range(stages)]

    def step(carry: tuple[Array, Array, Params], number: Array) -> tuple[tuple[Array, Array, Params], None]:
        x_BTD, rows_MBTD, tally = carry
        repeat, microbatch = schedule.at(number, me)
        new_BTD, rows_MBTD = picked(rows_MBTD, microbatch)
        x_BTD = jnp.where((me == 0) & (repeat == 0), new_BTD, x_BTD)

        def through(carry: tuple[Array, Params], place: Array) -> tuple[tuple[Array, Params], None]:
            fixed = jax.lax.stop_gradient(weights)
            return visit(*carry, fixed, given, repeat * group + place, microbatch), None

        (x_BTD, tally), _ = jax.lax.scan(through, (x_BTD, tally), jnp.arange(group), unroll=config.scan_unroll)
        # What a stage makes takes the place of what entered. Of the last stage's, the last repeat's is written last.
        rows_MBTD = rows_MBTD.at[microbatch].set(x_BTD)
        return (jax.lax.ppermute(x_BTD, axes, onwards), rows_MBTD, tally), None

    rows_MBTD = divided(x_1BTD[0])
    start = (jnp.zeros_like(rows_MBTD[0]), rows_MBTD, weights)
    (_, rows_MBTD, _), _ = jax.lax.scan(step, start, jnp.arange(schedule.steps))
    return jnp.where(me == stages - 1, rows_MBTD, 0).reshape(x_1BTD.shape)


def _microbatches(rows: int, config: DecoderConfig) -> int:
    if rows % config.pipe_rows:
        raise ValueError(
            f"a device has {rows} rows of a batch at a time; that must be a multiple of DecoderConfig.pipe_rows, "
            f"{config.pipe_rows} (the rows are BATCH / ACCUMULATE / (Layout.data x Layout.fsdp))"
        )
    return rows // config.pipe_rows


def _dealt(weights: Params, axes: Axes, schedule: Schedule) -> Params:
    """Groups of layers from where they are stored to the stages that use them, in the order of the repeats.

    Without repeats both are the same. Else every device sends and receives at most as much as it holds, once a batch.
    """
    stages, repeats = schedule.stages, schedule.repeats
    if repeats == 1:
        return weights
    # Group g is stored by stage g // R and used by stage g mod S, in repeat g // S. In each of R rounds a stage sends one
    # group and receives one: round c moves the groups g with c = (g + g // lcm(R, S)) mod R.
    groups, me = np.arange(stages * repeats), jax.lax.axis_index(axes)
    rounds = (groups + groups // math.lcm(repeats, stages)) % repeats

    def moved(leaf: Array) -> Array:
        stored = leaf.reshape(repeats, -1, *leaf.shape[1:])
        dealt = jnp.zeros_like(stored)
        for number in range(repeats):
            sent = groups[rounds == number]  # by the stages in their order
            received = sent[np.argsort(sent % stages)]
            to = [(int(group) // repeats, int(group) % stages) for group in sent]
            one = jax.lax.dynamic_index_in_dim(stored, jnp.asarray(sent % repeats)[me], keepdims=False)
            dealt = dealt.at[jnp.asarray(received // stages)[me]].set(jax.lax.ppermute(one, axes, to))
        return dealt.reshape(leaf.shape)

    return jax.tree.map(moved, weights)
