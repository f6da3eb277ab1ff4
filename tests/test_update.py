import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from hcxjax.mesh import Layout
from hcxjax.models import attention, decoder, layers
from hcxjax.objectives.language_model import LanguageModel
from hcxjax.optim import SpikeGuard, SpikeStatistics
from hcxjax.protocols import Maximum, Mean
from hcxjax.update import Recipe, TrainState, abstract_state, compiled_update, initial_state, update
from hcxjax.update import lowered_update as program_of


@dataclasses.dataclass(frozen=True)
class KeepsGradient:
    """Plain descent whose state is the gradient, to look at it."""

    rate: float = 0.1

    def transformation(self):
        return optax.chain(optax.trace(decay=0.0), optax.scale(-self.rate))

    def learning_rate(self, step):
        return jnp.float32(self.rate)


@dataclasses.dataclass(frozen=True)
class Line:
    """loss = Σ w (slope·x + offset − y)² / Σ w. A batch asks to be skipped where any `veto_B` is above 0."""

    def init(self, rng):
        return {"slope": nn.LogicallyPartitioned(jnp.full((), 0.5), ()), "offset": jnp.zeros(())}

    def loss(self, params, batch, rng):
        error_B = params["slope"] * batch["x_B"] + params["offset"] - batch["y_B"]
        metrics = {
            "error": Mean(jnp.sum(batch["weights_B"] * jnp.abs(error_B)), jnp.sum(batch["weights_B"])),
            "worst": Maximum(jnp.max(jnp.abs(error_B))),
            "draw": Mean(jax.random.uniform(rng), 1.0),
            "skip/most_veto": Maximum(jnp.max(batch["veto_B"])),
        }
        return jnp.sum(batch["weights_B"] * error_B**2), jnp.sum(batch["weights_B"]), metrics

    def flops(self, batch):
        return 0.0


def recipe_of(objective, accumulate=1, seed=0, **guard):
    return Recipe(objective, KeepsGradient(), SpikeGuard(**guard), accumulate, seed)


def state_of(recipe, params):
    zero = jnp.int32(0)
    optimizer = recipe.optimizer.transformation().init(params)
    return TrainState(params, optimizer, SpikeStatistics.empty(), zero, zero, zero)


def line_batch(seed=0, size=8):
    rng = np.random.default_rng(seed)
    x_B, weights_B = rng.normal(size=size), rng.integers(1, 9, size=size)
    batch = {"x_B": x_B, "y_B": 2 * x_B + 1, "weights_B": weights_B, "veto_B": np.zeros(size)}
    return {name: np.float32(value) for name, value in batch.items()}


LINE = {"slope": jnp.float32(0.5), "offset": jnp.float32(0.0)}
step = jax.jit(update, static_argnums=0)


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_metrics_merge_over_microbatches(accumulate):
    recipe, batch = recipe_of(Line(), accumulate), line_batch()
    _, metrics = step(recipe, state_of(recipe, LINE), batch)
    error_B = np.abs(0.5 * batch["x_B"] - batch["y_B"])
    weight = batch["weights_B"].sum()
    np.testing.assert_allclose(metrics["error"], (np.sum(batch["weights_B"] * error_B), weight), rtol=1e-6)
    np.testing.assert_allclose(metrics["worst"].value, error_B.max(), rtol=1e-6)
    np.testing.assert_allclose(metrics["objective"], (np.sum(batch["weights_B"] * error_B**2), weight), rtol=1e-6)
    assert metrics["draw"].weight == accumulate
    assert metrics["weight"].sum == weight
    assert metrics["learning_rate"].sum == np.float32(0.1)


def test_draws_differ_by_step_seed_and_microbatch():
    def draws(recipe):
        state, found = state_of(recipe, LINE), []
        for _ in range(3):
            state, metrics = step(recipe, state, line_batch())
            found.append(float(metrics["draw"].sum) / recipe.accumulate)
        return found

    one, other, halves = draws(recipe_of(Line())), draws(recipe_of(Line(), seed=1)), draws(recipe_of(Line(), 2))
    assert one == draws(recipe_of(Line()))
    # Microbatches that drew alike would draw as the whole batch does.
    assert len({*one, *other, *halves}) == 9


def test_spikes_are_skipped_counted_and_leave_no_trace():
    recipe, batch = recipe_of(Line(), warmup=3), line_batch()
    state = state_of(recipe, LINE)
    for _ in range(4):
        before = state
        state, metrics = step(recipe, state, batch)
    assert metrics["skipped"].sum == 0
    assert float(state.params["slope"]) != float(before.params["slope"])
    spiking = batch | {"y_B": batch["y_B"] * 1000}
    for count in (1, 2):
        after, metrics = step(recipe, state, spiking)
        assert_same(after.params, state.params)
        assert_same(after.optimizer, state.optimizer)
        assert_same(after.spikes, state.spikes)
        assert (int(after.step), int(after.skipped), int(after.skipped_in_a_row)) == (4 + count, count, count)
        assert (metrics["skipped"].sum, metrics["skipped_in_a_row"].sum) == (count, count)
        state = after
    after, metrics = step(recipe, state, batch)
    assert (int(after.skipped), int(after.skipped_in_a_row), metrics["skipped_in_a_row"].sum) == (2, 0, 0)
    assert float(after.params["slope"]) != float(state.params["slope"])


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("poison", [{"y_B": np.nan}, {"x_B": np.inf}])
def test_a_loss_that_is_not_finite_changes_no_parameter(accumulate, poison):
    recipe, batch = recipe_of(Line(), accumulate), line_batch()
    state, _ = step(recipe, state_of(recipe, LINE), batch)
    (name, value), *_ = poison.items()
    after, metrics = step(recipe, state, batch | {name: np.where(np.arange(8) == 5, np.float32(value), batch[name])})
    assert_same((after.params, after.optimizer, after.spikes), (state.params, state.optimizer, state.spikes))
    assert int(after.skipped) == 1
    assert not np.isfinite(metrics["objective"].sum)


def test_an_objective_may_ask_to_skip():
    recipe, batch = recipe_of(Line(), accumulate=2), line_batch()
    state = state_of(recipe, LINE)
    after, _ = step(recipe, state, batch | {"veto_B": np.float32(np.arange(8) == 5)})
    assert_same(after.params, state.params)
    assert int(after.skipped) == 1


def test_a_batch_without_weight_changes_nothing_and_stays_finite():
    recipe, batch = recipe_of(Line()), line_batch()
    state = state_of(recipe, LINE)
    after, metrics = step(recipe, state, batch | {"weights_B": np.zeros(8, np.float32)})
    assert_same(after.params, state.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(metrics))


# The tests below are of the decoder: its gradients over microbatches, along a direction, and on a mesh.


@pytest.fixture(scope="module")
def model(tiny):
    """Sizes that every mesh axis of two divides."""
    return LanguageModel(dataclasses.replace(tiny, vocab_size=62), z_loss=0.01, sources=("ko", "en", "code"))


@pytest.fixture(scope="module")
def params(model, random_params):
    return random_params(model.model)


@pytest.fixture(scope="module")
def batch(packed):
    """Rows 1, 3, 5, 7 weigh much less than the others, so that microbatches are uneven."""
    batch = packed(8, 12, 62, 3)
    batch["weights_BT"][1::2] *= np.arange(12) == 2
    batch["weights_BT"][1::2, 2] = 1
    return batch


@pytest.fixture(scope="module")
def whole(model, params, batch):
    """(gradient, metrics) of the batch at once, on one device."""
    recipe = recipe_of(model)
    state, metrics = step(recipe, state_of(recipe, params), batch)
    return state.optimizer[0].trace, metrics


def assert_close(gradient, other, tolerance):
    for (path, one), leaf in zip(
        jax.tree_util.tree_flatten_with_path(gradient)[0], jax.tree.leaves(other), strict=True
    ):
        error, scale = np.abs(np.asarray(one) - np.asarray(leaf)).max(), np.abs(leaf).max()
        assert error <= tolerance * scale, f"{jax.tree_util.keystr(path)}: {error / scale:.1e}"


@pytest.mark.parametrize("accumulate", [2, 4])
def test_microbatches_of_uneven_weight_give_the_gradient_of_the_whole(model, params, batch, whole, accumulate):
    recipe = recipe_of(model, accumulate)
    state, metrics = step(recipe, state_of(recipe, params), batch)
    assert_close(state.optimizer[0].trace, whole[0], 2e-6)
    for name, metric in whole[1].items():
        np.testing.assert_allclose(metrics[name], metric, rtol=1e-5, err_msg=name)


def test_the_mean_of_microbatch_means_would_be_another_gradient(model, params, batch, whole):
    recipe = recipe_of(model)
    halves = [{name: value[part::2] for name, value in batch.items()} for part in (0, 1)]
    gradients = [step(recipe, state_of(recipe, params), half)[0].optimizer[0].trace for half in halves]
    wrong = jax.tree.map(lambda one, other: (one + other) / 2, *gradients)
    with pytest.raises(AssertionError):
        assert_close(wrong, whole[0], 1e-2)


def test_gradient_equals_finite_differences(model, params, batch, whole):
    recipe, rng = recipe_of(model), np.random.default_rng(0)
    leaves, structure = jax.tree.flatten(params)
    for kept in ({*range(len(leaves))}, {0}, {len(leaves) - 1}):
        pairs = [rng.normal(size=leaf.shape) * (i in kept) for i, leaf in enumerate(leaves)]
        direction = jax.tree.unflatten(structure, [np.float32(pair) for pair in pairs])

        def loss(distance, direction=direction):
            moved = optax.apply_updates(params, jax.tree.map(lambda along: distance * along, direction))
            metric = step(recipe, state_of(recipe, moved), batch)[1]["objective"]
            return float(metric.sum) / float(metric.weight)

        slope = (8 * (loss(1e-3) - loss(-1e-3)) - (loss(2e-3) - loss(-2e-3))) / 12e-3
        exact = sum(jax.tree.leaves(jax.tree.map(lambda one, other: float(np.vdot(one, other)), whole[0], direction)))
        assert slope == pytest.approx(exact, rel=2e-2, abs=2e-3)


def test_the_program_to_look_at_is_the_one_that_runs():
    recipe, batch = recipe_of(Line(), accumulate=2), line_batch()
    state = state_of(recipe, LINE)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.asarray(leaf).dtype), (state, batch))
    program = program_of(recipe, *shapes).compile()
    assert program.memory_analysis().alias_size_in_bytes > 0, "it takes over the state's memory, as training does"
    looked_at = program(jax.tree.map(jnp.array, state), {}, batch)
    assert_same(looked_at, compiled_update()(recipe, jax.tree.map(jnp.array, state), batch))


CUBE = Layout(data=2, fsdp=2, tensor=2)


def lowered_update(recipe, batch):
    """The update as lowered for the cube (traced anew at every call)."""
    with CUBE.active():
        rows = {
            name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=CUBE.sharding("batch"))
            for name, value in batch.items()
        }
        traced = jax.jit(functools.partial(update, recipe))
        return traced.lower(abstract_state(recipe, CUBE), rows)


@pytest.fixture(scope="module")
def on_the_cube(model, batch):
    return lowered_update(recipe_of(model, accumulate=2), batch)


def test_eight_devices_and_microbatches_equal_one_device(model, params, batch, whole, on_the_cube):
    recipe = recipe_of(model, accumulate=2)
    abstract = abstract_state(recipe, CUBE)
    state = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), state_of(recipe, params), abstract)
    rows = CUBE.shard_batch(lambda start, stop: {name: value[start:stop] for name, value in batch.items()}, 8)
    state, metrics = on_the_cube.compile()(state, rows)
    assert_close(state.optimizer[0].trace, whole[0], 1e-5)
    for name, metric in whole[1].items():
        np.testing.assert_allclose(metrics[name], metric, rtol=1e-5, err_msg=name)
    moved = jax.tree.map(lambda leaf, slope: leaf - np.float32(0.1) * slope, params, state.optimizer[0].trace)
    assert_close(state.params, moved, 1e-6)
    up = state.params["layers"]["mlp"]["up"]["weight"]
    assert {shard.data.shape for shard in up.addressable_shards} == {(2, 16, 20)}


# Rows over data and fsdp; heads, width of the MLP and vocabulary over tensor. Four rows of a microbatch, 12 tokens.
ROWS = '{"data", "fsdp"}'
PINNED = {
    "embedding table": ("62x32", '[{"tensor"}, {}]'),
    "residual stream": ("4x12x32", f"[{ROWS}, {{}}, {{}}]"),
    "queries, outputs": ("4x12x4x16", f'[{ROWS}, {{}}, {{"tensor"}}, {{}}]'),
    "keys, values": ("4x12x2x16", f'[{ROWS}, {{}}, {{"tensor"}}, {{}}]'),
    "hidden of the MLP": ("4x12x40", f'[{ROWS}, {{}}, {{"tensor"}}]'),
    "tokens of all microbatches": ("2x4x12", f"[{{}}, {ROWS}, {{}}]"),
}


def constraints(text):
    """{(shape, sharding)} of all sharding constraints in lowered StableHLO."""
    found = re.findall(r"sdy\.sharding_constraint %\S+ <@\w+, (\[.*?\])> : tensor<([\dx]+)x[a-z]\w+>", text)
    return {(shape, sharding) for sharding, shape in found}


def test_activations_are_pinned_to_the_mesh(on_the_cube):
    found = constraints(on_the_cube.as_text())
    assert {what: pair for what, pair in PINNED.items() if pair not in found} == {}


def test_the_table_is_pinned_just_before_it_is_read(on_the_cube):
    """Read by gather, a table that is split over its width too would be replicated whole."""
    text = on_the_cube.as_text()
    table = r'(%\d+) = sdy\.sharding_constraint %\S+ <@\w+, \[\{"tensor"\}, \{\}\]> : tensor<62x32xf32>'
    pinned = set(re.findall(table, text))
    (read,) = re.findall(r"\"stablehlo\.gather\"\((%\w+), .*\(tensor<62x32xf32>,", text)
    assert read in pinned


def test_each_device_holds_only_its_part_of_the_logits(on_the_cube):
    compiled = on_the_cube.compile().as_text()
    shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", compiled)}
    assert any(np.prod(shape) == 12 * 31 and 31 in shape for shape in shapes)
    assert not any(62 in shape and 12 in shape for shape in shapes)


def test_without_constrain_nothing_is_pinned(model, batch, monkeypatch):
    """That the test above would see it, should constraints vanish as they do under flax's legacy mesh."""
    for module in (attention, decoder, layers):
        monkeypatch.setattr(module, "constrain", lambda x, *axes: x)
    found = constraints(lowered_update(recipe_of(model, accumulate=2), batch).as_text())
    assert [what for what, pair in PINNED.items() if pair in found] == ["tokens of all microbatches"]


def test_new_state_lies_on_the_mesh_and_depends_on_the_seed_alone(model):
    recipe = recipe_of(model)
    abstract = abstract_state(recipe, CUBE)
    with CUBE.active():
        state = initial_state(recipe, abstract)
    for leaf, like in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (like.shape, like.dtype, like.sharding)
    up = state.params["layers"]["mlp"]["up"]["weight"]
    assert up.sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    assert state.optimizer[0].trace["layers"]["mlp"]["up"]["weight"].sharding == up.sharding
    alone = jax.jit(model.init)(jax.random.key(0))
    np.testing.assert_allclose(nn.meta.unbox(alone)["layers"]["mlp"]["up"]["weight"], up, rtol=1e-6)
