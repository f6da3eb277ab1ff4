"""Any objective as its low-rank adaptation: what is trained, what stays, and what the update costs."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hcxjax.mesh import Layout, unbox
from hcxjax.models.config import MATRICES
from hcxjax.models.low_rank import LowRankWeight
from hcxjax.objectives.dpo import DPO
from hcxjax.objectives.language_model import LanguageModel
from hcxjax.objectives.lora import LoRA
from hcxjax.objectives.reward_model import PairwiseReward
from hcxjax.optim import SpikeGuard, SpikeStatistics
from hcxjax.partition import by_path, split
from hcxjax.update import Recipe, TrainState, abstract_state, compiled_update, update
from tests.test_update import KeepsGradient, assert_close

RANK = 3


@pytest.fixture(scope="module")
def model(tiny):
    """Sizes that every mesh axis of two divides."""
    return LanguageModel(dataclasses.replace(tiny, vocab_size=62), z_loss=0.01)


@pytest.fixture(scope="module")
def lora(model):
    return LoRA(model, RANK, alpha=6.0)


@pytest.fixture(scope="module")
def params(lora, random_params):
    """A base and an adapter that has learnt something, drawn by numpy."""
    rng = np.random.default_rng(0)
    shapes = abstract(lora)["adapter"]
    adapter = jax.tree.map(lambda leaf: jnp.asarray(0.1 * rng.normal(size=leaf.shape), jnp.float32), shapes)
    return {"base": random_params(lora.model), "adapter": adapter}


@pytest.fixture(scope="module")
def batch(packed):
    return packed(8, 12, 62, 3)


def abstract(objective):
    return unbox(jax.eval_shape(objective.init, jax.random.key(0)))


def adapted(objective):
    """Paths of the weights that have an adapter."""
    return {path.removesuffix("/a") for path in by_path(abstract(objective)["adapter"]) if path.endswith("/a")}


def matrices(prefix=""):
    attention, mlp = ("query", "key", "value", "output"), ("gate", "up", "down")
    layers = [f"attention/{name}" for name in attention] + [f"mlp/{name}" for name in mlp]
    return {f"{prefix}layers/{name}/weight" for name in layers}


def test_an_adapter_lies_beside_every_matrix_of_whatever_is_trained(model, tiny):
    assert adapted(LoRA(model, RANK, 1.0)) == adapted(LoRA(DPO(model.model), RANK, 1.0)) == matrices()
    assert adapted(LoRA(PairwiseReward(tiny), RANK, 1.0, also=("head",))) == matrices("decoder/")
    only = LoRA(model, RANK, 1.0, targets=["query", "down"])
    assert adapted(only) == {"layers/attention/query/weight", "layers/mlp/down/weight"}

    @dataclasses.dataclass(frozen=True)
    class Both:
        def init(self, rng):
            return {"policy": model.init(rng), "value": PairwiseReward(tiny).init(rng)}

    assert adapted(LoRA(Both(), RANK, 1.0)) == matrices("policy/") | matrices("value/decoder/")


def test_every_weight_has_draws_of_its_own_and_no_change_yet(lora):
    leaves = by_path(unbox(jax.jit(lambda rng: lora.init(rng)["adapter"])(jax.random.key(4))))
    assert not any(np.any(leaf) for name, leaf in leaves.items() if name.endswith("/b"))
    drawn = {name: np.asarray(leaf) for name, leaf in leaves.items() if name.endswith("/a")}
    for name, a in drawn.items():
        inputs = np.prod(a.shape[1:-1])
        assert a.std() == pytest.approx(inputs**-0.5, rel=0.25), name
    assert len({a.flat[0] for a in drawn.values()}) == len(MATRICES)


@dataclasses.dataclass(frozen=True)
class Recorder:
    """An objective of policy and value whose every answer is the parameters that it was given."""

    model: object = "sizes"
    critic: object = "sizes of the critic"
    temperature: float = 0.7

    def policy(self, params):
        return params["policy"]

    def scores(self, params, batch):
        return params

    loss = judged = rewards = logprobs = lambda self, params, *_: params


def test_the_objective_s_own_functions_are_given_low_rank_weights_in_their_places(lora, params):
    ours = dataclasses.replace(lora, objective=Recorder())
    pair = {part: {"policy": params[part], "value": {}} for part in ("base", "adapter")}
    for placed in (ours.scores(pair, {}), ours.loss(pair, {}, None), ours.judged(pair, {}), ours.rewards(pair, {})):
        weight = placed["policy"]["layers"]["mlp"]["up"]["weight"]
        assert isinstance(weight, LowRankWeight)
        assert weight.weight is params["base"]["layers"]["mlp"]["up"]["weight"]
        assert weight.b is params["adapter"]["layers"]["mlp"]["up"]["weight"]["b"]
        assert weight.scale == 6.0 / RANK
        assert placed["policy"]["embed"] is params["base"]["embed"]
    assert (ours.model, ours.critic, ours.temperature) == ("sizes", "sizes of the critic", 0.7)
    assert ours.logprobs(params["base"], {}) is ours.reference(pair) is params["base"]


def test_a_policy_is_merged_and_found_within_what_is_trained(lora, params):
    whole = lora.policy(params)
    flat = {name: np.asarray(leaf, np.float64) for name, leaf in by_path(params).items() if "mlp/up" in name}
    a, b = (flat[f"adapter/layers/mlp/up/weight/{thin}"] for thin in ("a", "b"))
    up = flat["base/layers/mlp/up/weight"] + 6.0 / RANK * a @ b
    np.testing.assert_allclose(whole["layers"]["mlp"]["up"]["weight"], up, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(whole["embed"], params["base"]["embed"])
    assert lora.reference(params) is params["base"]
    pair = {part: {"policy": params[part], "value": {}} for part in ("base", "adapter")}
    found = dataclasses.replace(lora, objective=Recorder()).policy(pair)
    jax.tree.map(np.testing.assert_array_equal, found, whole)


def recipe_of(objective, accumulate=1):
    return Recipe(objective, KeepsGradient(), SpikeGuard(warmup=1), accumulate, 0, objective.trainable)


def started(recipe, params, layout):
    """The state of these parameters on a mesh."""
    trained, frozen = split(jax.tree.map(jnp.copy, params), recipe.trainable)
    counts = [jnp.zeros((), jnp.int32) for _ in range(3)]
    optimizer = recipe.optimizer.transformation().init(trained)
    state = TrainState(trained, optimizer, SpikeStatistics.empty(), *counts, frozen)
    return jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), state, abstract_state(recipe, layout))


step = compiled_update()
ONE, CUBE = Layout(devices=(0, 1)), Layout(data=2, fsdp=2, tensor=2)


@pytest.fixture(scope="module")
def updated(lora, params, batch):
    """(state before, state after an update of the adapter alone, metrics) on one device."""
    with ONE.active():
        before = started(recipe_of(lora), params, ONE)
        after, metrics = step(recipe_of(lora), before, batch)
    return before, after, metrics


def test_an_update_differentiates_and_optimises_the_adapter_alone(params, updated):
    before, after, metrics = updated
    gradient = after.optimizer[0].trace
    assert gradient.keys() == after.params.keys() == {"adapter"}
    assert after.frozen is before.frozen
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
    jax.tree.map(np.testing.assert_array_equal, after.frozen["base"], params["base"])

    assert metrics["grad_norm"].sum == pytest.approx(float(optax.global_norm(gradient)), rel=1e-6)
    moved = jax.tree.map(lambda leaf, slope: leaf - np.float32(0.1) * slope, params["adapter"], gradient["adapter"])
    assert_close(after.params["adapter"], moved, 1e-6)
    assert after.whole["base"] is after.frozen["base"]


def test_an_update_that_is_skipped_changes_nothing(lora, params, batch):
    with ONE.active():
        before = started(recipe_of(lora), params, ONE)
        poison = batch | {"weights_BT": np.full_like(batch["weights_BT"], np.nan)}
        after, metrics = step(recipe_of(lora), before, poison)
    assert metrics["skipped"].sum == 1
    jax.tree.map(np.testing.assert_array_equal, after.whole, params)


def test_eight_devices_and_microbatches_equal_one_device(lora, params, batch, updated):
    _, alone, known = updated
    with CUBE.active():
        rows = CUBE.shard_batch(lambda start, stop: {name: value[start:stop] for name, value in batch.items()}, 8)
        recipe = recipe_of(lora, accumulate=2)
        after, metrics = step(recipe, started(recipe, params, CUBE), rows)
    assert_close(after.optimizer[0].trace, alone.optimizer[0].trace, 1e-5)
    assert_close(after.params, alone.params, 1e-5)
    np.testing.assert_allclose(metrics["loss"], known["loss"], rtol=1e-5)
    thin = after.params["adapter"]["layers"]["mlp"]["up"]["weight"]
    assert {shard.data.shape for shard in thin["a"].addressable_shards} == {(2, 16, RANK)}
    assert {shard.data.shape for shard in thin["b"].addressable_shards} == {(2, RANK, 20)}


def lowered(recipe, batch):
    with ONE.active():
        traced = jax.jit(functools.partial(update, recipe), donate_argnums=0)
        return traced.lower(abstract_state(recipe, ONE), batch)


def weight_gradients(text):
    """Sizes of all products that have the dimensions of a weight, or of the embedding, in whatever order."""
    found = re.findall(r"dot_general .*-> tensor<([\dx]+)xf32>", text)
    shapes = {tuple(sorted(map(int, dims.split("x")))) for dims in found}
    known = {(32, 4, 16), (32, 2, 16), (4, 16, 32), (32, 40), (62, 32)}
    return shapes & {tuple(sorted(shape)) for shape in known}


def test_no_gradient_of_a_frozen_weight_is_computed(lora, model, batch):
    batch = {name: rows[:2, :4] if name.endswith("_BT") else rows[:2] for name, rows in batch.items()}
    whole = lowered(Recipe(model, KeepsGradient(), SpikeGuard(), 1, 0), batch)
    thin = lowered(recipe_of(lora), batch)
    assert len(weight_gradients(whole.as_text())) == 4
    assert weight_gradients(thin.as_text()) == set()


def test_what_trains_beside_the_adapter(model, tiny):
    also = LoRA(model, RANK, 6.0, targets=("query",), also=("norm", "/layers/mlp/up/"))
    assert also.trainable == ("adapter", "base/norm", "base/layers/mlp/up")
    state = abstract_state(recipe_of(also), ONE)
    trained = {name for name in by_path(state.params) if name.startswith("base")}
    assert trained == {"base/norm/weight", "base/layers/mlp/up/weight"}
    assert "base/layers/mlp/up/weight" not in by_path(state.frozen)
    state = abstract_state(recipe_of(LoRA(PairwiseReward(tiny), RANK, 3.0, also=("head",))), ONE)
    assert {name for name in by_path(state.params) if "base" in name} == {"base/head/weight", "base/head/bias"}


def test_flops_leave_out_the_gradients_of_frozen_weights(lora, model, tiny, batch, comparisons):
    config = model.model
    block = config.num_layers * (2 * 32 * 16 * (4 + 2) + 3 * 32 * 40)
    thin = config.num_layers * RANK * (2 * (32 + 64) + 2 * (32 + 32) + 3 * (32 + 40))
    tokens = 8 * 12
    frozen = block + 62 * 32
    assert lora.flops(batch) == model.flops(batch) + tokens * (6 * thin - 2 * frozen)
    also = dataclasses.replace(lora, also=("embed", "layers/mlp"))
    kept = config.num_layers * 2 * 32 * 16 * (4 + 2)
    assert also.flops(batch) == model.flops(batch) + tokens * (6 * thin - 2 * kept)
    untied = dataclasses.replace(model, model=dataclasses.replace(config, tie_embeddings=False))
    assert LoRA(untied, RANK, 6.0).flops(batch) - untied.flops(batch) == lora.flops(batch) - model.flops(batch)
    reward, pairs = PairwiseReward(config), comparisons(4, 10, 62)
    both = pairs["tokens_BKT"].size
    ours = LoRA(reward, RANK, 6.0, also=("head",)).flops(pairs)
    assert ours == reward.flops(pairs) + both * (6 * thin - 2 * block), "its decoder makes no logits"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, r"LoRA\.rank is 0"),
        ({"alpha": 0.0}, r"LoRA\.alpha is 0\.0; it must be positive"),
        ({"alpha": "1"}, r"LoRA\.alpha is '1'; it must be a number"),
        ({"targets": ("query", "head")}, r"LoRA\.targets is .*'head'.*; it must name some of query, key"),
        ({"targets": ()}, r"LoRA\.targets is \(\)"),
        ({"targets": "query"}, r"LoRA\.targets is 'query'; it must be a tuple"),
        ({"also": "head"}, r"LoRA\.also is 'head'; it must be a tuple"),
    ],
)
def test_fields_that_cannot_be_are_named(model, fields, message):
    with pytest.raises(ValueError, match=message):
        LoRA(model, **{"rank": 2, "alpha": 1.0} | fields)


def test_what_is_not_there_cannot_train(model):
    with pytest.raises(ValueError, match=r"LoRA\.also names 'head', but the parameters are embed, layers, norm"):
        abstract(LoRA(model, 2, 1.0, also=("head",)))
