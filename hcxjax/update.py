"""One update: the state that it changes, its gradient over microbatches, and what it reports."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hcxjax.mesh import Layout, constrain, unbox
from hcxjax.optim import Optimizer, SpikeGuard, SpikeStatistics
from hcxjax.partition import joined, split
from hcxjax.protocols import VETO, Array, Batch, Maximum, Mean, Metrics, Objective, Params, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What an update changes, and the parameters that it leaves as they are.

    Attributes:
      params: those that train.
      optimizer: its state, of these alone.
      frozen: the others, by the same paths; {} where all train.
    """

    params: Params
    optimizer: PyTree
    spikes: SpikeStatistics
    step: Array
    skipped: Array
    skipped_in_a_row: Array
    frozen: Params = dataclasses.field(default_factory=dict)

    @property
    def whole(self) -> Params:
        """All parameters."""
        return joined(self.params, self.frozen)

    def saved(self) -> dict[str, PyTree]:
        """What a checkpoint holds of it, by field: all but what is frozen."""
        return {field: leaf for field, leaf in vars(self).items() if field != "frozen"}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The static part of an update; `trainable` are prefixes of the parameters that train, None for all."""

    objective: Objective
    optimizer: Optimizer
    spikes: SpikeGuard
    accumulate: int
    seed: int
    trainable: tuple[str, ...] | None = None


def update(recipe: Recipe, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Mean | Maximum]]:
    """One optimizer step: gradients of sums over microbatches, divided once by the summed weight.

    The mean over microbatches of uneven weight would be another gradient than that of the whole batch.
    """
    key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)
    gradient, loss_sum, weight, metrics = _gradient(recipe, state, batch, key)
    weight = jnp.maximum(weight, 1e-8)
    gradient = jax.tree.map(lambda leaf: leaf / weight, gradient)
    loss, norm = loss_sum / weight, optax.global_norm(gradient)
    skip, spikes = recipe.spikes.judge(state.spikes, loss, norm, _veto(metrics))
    changes, optimizer = recipe.optimizer.transformation().update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, changes)

    def keep(old: Array, new: Array) -> Array:
        return jnp.where(skip, old, new)

    skipped = skip.astype(jnp.int32)
    metrics |= {
        "objective": Mean(loss_sum, weight),
        "weight": Mean(weight, 1.0),
        "grad_norm": Mean(norm, 1.0),
        # Skipped updates do not advance the optimizer, nor its schedule.
        "learning_rate": Mean(recipe.optimizer.learning_rate(state.step - state.skipped), 1.0),
        "skipped": Mean(state.skipped + skipped, 1),
        "skipped_in_a_row": Mean(skipped * (state.skipped_in_a_row + 1), 1),
    }
    return TrainState(
        params=jax.tree.map(keep, state.params, params),
        optimizer=jax.tree.map(keep, state.optimizer, optimizer),
        spikes=spikes,
        step=state.step + 1,
        skipped=state.skipped + skipped,
        skipped_in_a_row=skipped * (state.skipped_in_a_row + 1),
        frozen=state.frozen,
    ), metrics


def compiled_update() -> Callable[[Recipe, TrainState, Batch], tuple[TrainState, dict[str, Mean | Maximum]]]:
    """`update`, compiled. It takes over the state's memory, but for what is frozen, which others may hold on to."""
    compiled = _jitted_update()

    def step(recipe: Recipe, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Mean | Maximum]]:
        after, metrics = compiled(recipe, dataclasses.replace(state, frozen={}), state.frozen, batch)
        return dataclasses.replace(after, frozen=state.frozen), metrics

    return step


def lowered_update(
    recipe: Recipe, state: TrainState, batch: Mapping[str, Any], platform: str | None = None
) -> jax.stages.Lowered:
    """The program that `compiled_update` runs, not yet compiled: for those who only want to look at it.

    Args:
      state, batch: abstract will do (`abstract_state`, `Layout.abstract_batch`); their shardings say for which devices.
      platform: 'tpu' or 'cuda', where that is not these devices' own; what is lowered for another only can be read.
    """
    traced = _jitted_update().trace(recipe, dataclasses.replace(state, frozen={}), state.frozen, batch)
    return traced.lower(lowering_platforms=None if platform is None else (platform,))


def _jitted_update() -> Any:
    """(recipe, state without what is frozen, what is frozen, batch) → (state without it, metrics)."""

    def changed(recipe: Recipe, state: TrainState, frozen: Params, batch: Batch) -> tuple[TrainState, dict]:
        state, metrics = update(recipe, dataclasses.replace(state, frozen=frozen), batch)
        return dataclasses.replace(state, frozen={}), metrics

    return jax.jit(changed, static_argnums=0, donate_argnums=1)


def _veto(metrics: Metrics) -> Array | bool:
    """Does the objective ask to skip this batch?"""
    vetoes = [metric for name, metric in metrics.items() if name.startswith(VETO)]
    asked: Array | bool = False
    for metric in vetoes:
        assert isinstance(metric, Maximum)
        asked |= metric.value > 0
    return asked


def _gradient(
    recipe: Recipe, state: TrainState, batch: Batch, key: Array
) -> tuple[Params, Array, Array, dict[str, Mean | Maximum]]:
    """(gradient of the summed loss by what trains, loss sum, weight, metrics), over all microbatches."""
    params = state.params

    def loss(params: Params, part: Batch, key: Array) -> tuple[Array, tuple[Array, Metrics]]:
        total, weight, metrics = recipe.objective.loss(joined(params, state.frozen), part, key)
        return total, (weight, metrics)

    differentiated = jax.value_and_grad(loss, has_aux=True)
    if recipe.accumulate == 1:
        (total, (weight, metrics)), gradient = differentiated(params, batch, key)
        return gradient, total, weight, dict(metrics)

    def divided(rows: Array) -> Array:
        # Every microbatch takes rows of every device: a reshape to (parts, rows) would gather a device's rows in one.
        parts = rows.reshape(-1, recipe.accumulate, *rows.shape[1:]).swapaxes(0, 1)
        return constrain(parts, None, "batch", *([None] * (rows.ndim - 1)))

    def add(sums: PyTree, numbered: tuple[Array, Batch]) -> tuple[PyTree, None]:
        number, part = numbered
        (total, (weight, metrics)), gradient = differentiated(params, part, jax.random.fold_in(key, number))
        gradients, totals, weights, known = sums
        merged = {name: _merge(known[name], metrics[name]) for name in known}
        return (jax.tree.map(jnp.add, gradients, gradient), totals + total, weights + weight, merged), None

    parts = jax.tree.map(divided, batch)
    first = jax.tree.map(lambda rows: rows[0], parts)
    (_, (_, shapes)) = jax.eval_shape(loss, params, first, key)
    empty = {name: _nothing(metric) for name, metric in shapes.items()}
    zeros = (jax.tree.map(jnp.zeros_like, params), jnp.float32(0), jnp.float32(0), empty)
    (gradient, total, weight, metrics), _ = jax.lax.scan(add, zeros, (jnp.arange(recipe.accumulate), parts))
    return gradient, total, weight, metrics


def _nothing(metric: Mean | Maximum) -> Mean | Maximum:
    """What leaves any metric of this kind as it is when merged."""
    return Mean(jnp.float32(0), jnp.float32(0)) if isinstance(metric, Mean) else Maximum(jnp.float32(-jnp.inf))


def _merge(one: Mean | Maximum, other: Mean | Maximum) -> Mean | Maximum:
    if isinstance(one, Mean):
        assert isinstance(other, Mean)
        return Mean(one.sum + other.sum, one.weight + other.weight)
    assert isinstance(other, Maximum)
    return Maximum(jnp.maximum(one.value, other.value))


def abstract_state(recipe: Recipe, layout: Layout) -> TrainState:
    """Shapes, dtypes and shardings of the whole state, without an array."""
    return laid_out(boxed_state(recipe), layout)


def boxed_state(recipe: Recipe) -> TrainState:
    """Shapes, dtypes and logical axes of the whole state; nothing is computed."""
    return jax.eval_shape(lambda: _state_of(recipe, recipe.objective.init(jax.random.key(recipe.seed))))


def laid_out(boxed: TrainState, layout: Layout) -> TrainState:
    """`boxed_state` with the shardings that a layout gives it, without its boxes."""
    shardings = layout.param_shardings(boxed)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), unbox(boxed), shardings
    )


def initial_state(
    recipe: Recipe, abstract: TrainState, given: Callable[[], Mapping[str, Array]] | None = None
) -> TrainState:
    """A new state, each device making its own part.

    Args:
      given: reads leaves of the parameters, by path, that are not made anew. Their memory becomes the state's, and what
        they would have been at random is never computed.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)

    def new(known: Mapping[str, Array]) -> TrainState:
        boxed = recipe.objective.init(jax.random.key(recipe.seed))
        if not known:
            return unbox(_state_of(recipe, boxed))
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: known.get(jax.tree_util.keystr(path, simple=True, separator="/"), leaf), unbox(boxed)
        )
        return _state_of(recipe, params)

    return jax.jit(new, out_shardings=shardings, donate_argnums=0)(dict(given()) if given else {})


def _state_of(recipe: Recipe, params: Params) -> TrainState:
    """The state before the first update of `params`, which are all parameters."""
    zero = jnp.zeros((), jnp.int32)
    trained, frozen = split(params, recipe.trainable)
    optimizer = recipe.optimizer.transformation().init(trained)
    return TrainState(trained, optimizer, SpikeStatistics.empty(), zero, zero, zero, frozen)
