"""Layers divided over devices in stages, and rows that pass through them in microbatches, all stages at work at once.

A stage holds its layers throughout a batch; rows come to it from the stage before, in a ring. With several repeats a
stage holds as many groups of layers that do not follow one another, and rows go round as often, which fills and empties
the pipeline in smaller steps (Narayanan et al. 2021, arXiv:2104.04473, section 2.2). All microbatches go forwards
before any goes back, as in GPipe (Huang et al. 2019, arXiv:1811.06965): the backward pass is the gradient of the loop,
and what it needs of a row is kept until then, as it is without stages.

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

    Of the S R groups of layers, stage s holds s, S + s, 2 S + s, ... Microbatches enter S at a time; these go round R
    times before the next S enter, so that none ever waits for a stage that is taken.

    Attributes:
      stages, repeats, microbatches: S, R, M.
    """

    stages: int
    repeats: int
    microbatches: int

    @property
    def steps(self) -> int:
        """Steps from the first microbatch's start to the last one's end; in each, a stage passes a group once."""
        whole, rest = divmod(self.microbatches - 1, self.stages)
        return (whole + 1) * self.repeats * self.stages + rest

    @property
    def bubble(self) -> float:
        """The share of its steps that a stage works for nothing: (S - 1) / (R M + S - 1), where R is 1 or S divides M.

        Else it is more: the last microbatches, fewer than S, go round with gaps between them.
        """
        return 1 - self.repeats * self.microbatches / self.steps

    def at(self, step: Array, stage: Array) -> tuple[Array, Array]:
        """(repeat, microbatch) that a stage has; in steps for nothing, numbers that can be, but mean nothing."""
        whole, rest = jnp.divmod(step - stage, self.stages * self.repeats)
        repeat, place = jnp.divmod(rest, self.stages)
        return repeat, jnp.clip(whole * self.stages + place, 0, self.microbatches - 1)

    @property
    def transfers(self) -> list[np.ndarray]:
        """Rounds [R, S] that bring groups from where they are stored to where they are used, by the stages that send.

        Group g is stored by stage g // R, and used by stage g mod S in repeat g // S. In each round every stage sends
        one group and receives one.
        """
        groups = np.arange(self.stages * self.repeats)
        rounds = (groups + groups // math.lcm(self.repeats, self.stages)) % self.repeats
        return [groups[rounds == number] for number in range(self.repeats)]


def stages_of(config: DecoderConfig) -> int:
    """Stages that layers are divided into on the mesh that is set; 1 where there is none.

    Raises:
      ValueError: the layers are no multiple of the groups.
    """
    axes = axes_of("layers")
    stages = math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in axes)
    groups = stages * config.pipe_repeats
    if axes and config.num_layers % groups:
        raise ValueError(
            f"DecoderConfig.num_layers is {config.num_layers}; it must be a multiple of {groups} "
            f"(Layout.{', '.join(axes)} {stages} x DecoderConfig.pipe_repeats {config.pipe_repeats})"
        )
    return stages


def pipelined(
    layer: Layer, weights: Params, x_BTD: Array, angles: Angles, plan: AttentionPlan, config: DecoderConfig
) -> Array:
    """x_BTD after all layers, of which every device holds its stage's.

    The devices of a stage have rows and places of their own. So its weights are gathered once over the axes that divide
    these, and their gradients are summed over them once, however many microbatches there are; over other axes, such as
    tensor, a layer is divided as it is without stages.

    Args:
      layer: (x_BTD, its weights, (angles, plan)) → x_BTD.
      weights: of all layers, stacked in their own order.
    Raises:
      ValueError: the rows of a device are no multiple of `pipe_rows`.
    """
    axes, length = axes_of("layers"), "length" if len(plan.q_places_I) > 1 else None
    x_spec = spec_of(x_BTD.shape, "batch", length, None)
    by_stage, of_angles = PartitionSpec(axes, *x_spec), PartitionSpec(*x_spec[:2])
    run = jax.shard_map(
        functools.partial(_stage, layer, axes, config),
        in_specs=(PartitionSpec(axes), by_stage, (of_angles, of_angles), plan_specs(plan, x_spec)),
        out_specs=by_stage,
        axis_names={*axes, *jax.tree.leaves(tuple(x_spec))},
        check_vma=False,
    )
    # Every stage is given a copy and returns an array, of which one is not 0: sums inside, in bfloat16, make XLA's CPU
    # compiler abort (jax 0.10.2).
    x_SBTD = jnp.broadcast_to(x_BTD, (stages_of(config), *x_BTD.shape))
    return jax.lax.reduce_sum(run(weights, x_SBTD, angles, plan), (0,))


def _stage(
    layer: Layer, axes: Axes, config: DecoderConfig, weights: Params, x_1BTD: Array, angles: Angles, plan: AttentionPlan
) -> Array:
    """A device's part: its rows through all stages and back to the last, which alone does not return 0."""
    stages, me = jax.lax.axis_size(axes), jax.lax.axis_index(axes)
    schedule = Schedule(stages, config.pipe_repeats, _microbatches(x_1BTD.shape[1], config))
    layers = config.num_layers // (stages * schedule.repeats)

    def divided(rows: Array) -> Array:
        return rows.reshape(schedule.microbatches, -1, *rows.shape[1:])

    given = jax.tree.map(divided, angles), parted(plan, schedule.microbatches)
    weights = _at_their_stages(weights, axes, schedule)
    visit, constants = visiting(layer), jax.lax.stop_gradient(weights)
    onwards = [(stage, (stage + 1) % stages) for stage in range(stages)]

    def step(carry: tuple[Array, Array, Params], number: Array) -> tuple[tuple[Array, Array, Params], None]:
        x_BTD, rows_MBTD, tally = carry
        repeat, microbatch = schedule.at(number, me)
        new_BTD, rows_MBTD = picked(rows_MBTD, microbatch)
        x_BTD = jnp.where((me == 0) & (repeat == 0), new_BTD, x_BTD)

        def through(carry: tuple[Array, Params], place: Array) -> tuple[tuple[Array, Params], None]:
            return visit(*carry, constants, given, repeat * layers + place, microbatch), None

        (x_BTD, tally), _ = jax.lax.scan(through, (x_BTD, tally), jnp.arange(layers), unroll=config.scan_unroll)
        # What a stage has made takes the place of what entered; what the last one made of a row in the end comes last.
        rows_MBTD = rows_MBTD.at[microbatch].set(x_BTD)
        return (jax.lax.ppermute(x_BTD, axes, onwards), rows_MBTD, tally), None

    rows_MBTD = divided(x_1BTD[0])
    start = (jnp.zeros_like(rows_MBTD[0]), rows_MBTD, weights)
    (_, rows_MBTD, _), _ = jax.lax.scan(step, start, jnp.arange(schedule.steps))
    return jnp.where(me == stages - 1, rows_MBTD, 0).reshape(x_1BTD.shape)


def _microbatches(rows: int, config: DecoderConfig) -> int:
    if rows % config.pipe_rows:
        raise ValueError(
            f"a device has {rows} rows at a time (of BATCH / ACCUMULATE, divided over Layout.data x Layout.fsdp); they "
            f"must be a multiple of DecoderConfig.pipe_rows, {config.pipe_rows}"
        )
    return rows // config.pipe_rows


def _at_their_stages(weights: Params, axes: Axes, schedule: Schedule) -> Params:
    """A stage's groups of layers in the order of the repeats, brought from where they are stored.

    Without repeats they are there. Else a device sends and receives at most as much as it holds, once a batch, and the
    gradients once more.
    """
    if schedule.repeats == 1:
        return weights
    stages, repeats, me = schedule.stages, schedule.repeats, jax.lax.axis_index(axes)

    def brought(leaf: Array) -> Array:
        stored = leaf.reshape(repeats, -1, *leaf.shape[1:])
        groups = jnp.zeros_like(stored)
        for sent in schedule.transfers:
            received = sent[np.argsort(sent % stages)]
            to = [(int(group) // repeats, int(group) % stages) for group in sent]
            one = jax.lax.dynamic_index_in_dim(stored, jnp.asarray(sent % repeats)[me], keepdims=False)
            groups = groups.at[jnp.asarray(received // stages)[me]].set(jax.lax.ppermute(one, axes, to))
        return groups.reshape(leaf.shape)

    return jax.tree.map(brought, weights)
