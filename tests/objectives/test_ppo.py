"""PPO's loss and log-probabilities: padding, temperature, values, microbatches, meshes, gradients, what is skipped.

Where only the loss is looked at, policy and critic are tables of what they say of each token.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.data.rollouts.lessons import packed_minibatch
from hcxjax.inference.engine import Engine, EngineSettings
from hcxjax.inference.requests import Request
from hcxjax.inference.sampling import Sampling
from hcxjax.mesh import Layout, unbox
from hcxjax.models.scalar import init_scalar
from hcxjax.objectives.clipping import policy_loss, value_loss
from hcxjax.objectives.ppo import PPO
from hcxjax.objectives.returns import kl_terms, whitened
from hcxjax.objectives.unlikelihood import repeated_ngrams, unlikelihood
from hcxjax.update import abstract_state, update
from tests.test_update import assert_same, recipe_of, state_of

ROWS, WIDTH, VOCABULARY = 8, 16, 61
TEMPERATURE = 0.7


@dataclasses.dataclass(frozen=True)
class Tables(PPO):
    """Parameters are the log-probability and the value of each token: {"policy": logprob_BT, "value": value_BT}."""

    def logprobs(self, policy, batch):
        return policy

    def values(self, params, batch):
        return params["value"]


@pytest.fixture(scope="module")
def params(tiny, random_params):
    value = unbox(init_scalar(tiny, jax.random.key(1)))
    return {"policy": random_params(tiny), "value": value | {"decoder": random_params(tiny, 1)}}


def texts(seed=0, rows=ROWS, width=WIDTH):
    """(tokens of each row, where its answer begins)."""
    rng = np.random.default_rng(seed)
    ends = rng.integers(3, width + 1, size=rows)
    return [(rng.integers(1, VOCABULARY, size=end).tolist(), int(rng.integers(1, end))) for end in ends]


def batch_of(rows, width=WIDTH, fill=0, seed=0):
    """What the objective is given, padded to `width`; numbers of the rollout are drawn for each row and place."""
    shape = (len(rows), width)
    batch = {name: np.zeros(shape, np.int32) for name in ("targets_BT", "segment_ids_BT", "positions_BT")}
    batch |= {"tokens_BT": np.full(shape, fill, np.int32), "mask_BT": np.zeros(shape, np.float32)}
    rng = np.random.default_rng(seed)
    drawn = rng.normal(size=(4, len(rows), 64)).astype(np.float32)
    for row, (tokens, begins) in enumerate(rows):
        end = len(tokens)
        batch["tokens_BT"][row, :end], batch["targets_BT"][row, : end - 1] = tokens, tokens[1:]
        batch["segment_ids_BT"][row, :end], batch["positions_BT"][row, :end] = 1, np.arange(end)
        batch["mask_BT"][row, begins - 1 : end - 1] = 1
    mask_BT = batch["mask_BT"]
    old, value, advantage, returned = (part[:, :width] * mask_BT for part in drawn)
    repeated_BT = np.asarray(repeated_ngrams(jnp.asarray(batch["targets_BT"]), jnp.asarray(mask_BT > 0), 1))
    return batch | {
        "old_logprob_BT": (-4 * mask_BT + 0.1 * old).astype(np.float32),
        "old_value_BT": value,
        "advantage_BT": advantage,
        "return_BT": returned,
        "repeated_BT": repeated_BT.astype(np.float32),
        "weight_BT": mask_BT * (1 - 0.5 * (np.arange(len(rows))[:, None] % 2)).astype(np.float32),
    }


def near(objective, params, batch):
    """The batch as if a policy and a critic not far from these had drawn it: ratios on both sides of the clip."""
    logprob_BT, _, value_BT = jax.jit(objective.judged)(params, batch)
    mask_BT, rng = batch["mask_BT"], np.random.default_rng(1)
    shift_BT, drift_BT = rng.uniform(-0.4, 0.4, size=(2, *mask_BT.shape)).astype(np.float32)
    return batch | {
        "old_logprob_BT": np.asarray((logprob_BT + shift_BT) * mask_BT),
        "old_value_BT": np.asarray((value_BT + drift_BT) * mask_BT),
        "return_BT": np.asarray((value_BT + 3 * drift_BT[::-1]) * mask_BT),
    }


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradient(objective, params, batch):
    """((sum, (weight, metrics)), gradient of the mean)."""

    def loss(params):
        total, weight, metrics = objective.loss(params, batch, jax.random.key(0))
        return total / weight, (total, weight, metrics)

    (_, found), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return found, gradient


# What policy and critic say


def test_padding_changes_nothing(tiny, params):
    """Log-probabilities and values are those of unpadded single rows, whatever the width and what fills it."""
    objective, rows = PPO(tiny, temperature=TEMPERATURE), texts()
    judged = jax.jit(objective.judged)
    widths = [judged(params, batch_of(rows, width, fill)) for width, fill in ((WIDTH, 0), (2 * WIDTH, 0), (WIDTH, 7))]
    for row, (tokens, begins) in enumerate(rows):
        alone = judged(params, batch_of([(tokens, begins)], len(tokens)))
        here = slice(begins - 1, len(tokens) - 1)
        for padded in widths:
            for alone_BT, padded_BT in zip(alone, padded, strict=True):
                np.testing.assert_allclose(padded_BT[row, here], alone_BT[0, here], atol=1e-5)


def test_padding_changes_neither_loss_nor_gradient(tiny, params):
    objective, rows = PPO(tiny, unlikelihood=0.3), texts()
    batch = near(objective, params, batch_of(rows))
    wide = {name: np.pad(array, ((0, 0), (0, WIDTH))) for name, array in batch.items()}
    wide["tokens_BT"] = np.where(wide["segment_ids_BT"] > 0, wide["tokens_BT"], 9)
    wide["targets_BT"] = np.where(wide["mask_BT"] > 0, wide["targets_BT"], 5)
    (found, gradient), (other, other_gradient) = (loss_and_gradient(objective, params, part) for part in (batch, wide))
    assert found[1] == other[1] == batch["mask_BT"].sum()
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, other)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), gradient, other_gradient)


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-4), ("bfloat16", 2e-2)])
def test_the_engine_and_the_trainer_agree_on_what_was_drawn(tiny, params, dtype, most):
    """The same log-probabilities of the same tokens, both of the logits divided by the temperature."""
    model = dataclasses.replace(tiny, dtype=dtype)
    objective = PPO(model, temperature=TEMPERATURE)
    engine = Engine(
        model, params["policy"], settings=EngineSettings(slots=4, context=WIDTH, chunk=16, listed=1, prefix_tokens=0)
    )
    sampling = Sampling(temperature=TEMPERATURE, seed=3)
    requests = [
        Request(tokens[:begins], 6, sampling, stream=row, logprob_temperature=TEMPERATURE)
        for row, (tokens, begins) in enumerate(texts(width=WIDTH - 5))
    ]
    answers = [found[0] for found in engine.complete(requests)]
    rows = [((*r.prompt, *a.tokens), len(r.prompt)) for r, a in zip(requests, answers, strict=True)]
    batch = batch_of(rows)
    logprob_BT = np.asarray(jax.jit(objective.logprobs)(params["policy"], batch))
    told = np.concatenate([answer.logprobs for answer in answers])
    ours = logprob_BT[batch["mask_BT"] > 0]
    assert np.abs(ours - told).mean() <= most
    cold = np.asarray(jax.jit(PPO(model, temperature=1.0).logprobs)(params["policy"], batch))[batch["mask_BT"] > 0]
    assert np.abs(cold - told).mean() > 2e-2, "temperatures that were mixed up would not be seen"


def test_the_value_of_a_token_does_not_depend_on_it(tiny, params):
    """Nor on what comes after it; on what stands before it, it does."""
    objective, rng = PPO(tiny), np.random.default_rng(0)
    tokens = rng.integers(1, VOCABULARY, size=WIDTH).tolist()
    values = jax.jit(objective.values)
    known_T = np.asarray(values(params, batch_of([(tokens, 1)])))[0]
    for column in range(WIDTH - 1):  # about the token at column + 1
        others = [*tokens[: column + 1], *((token % (VOCABULARY - 1)) + 1 for token in tokens[column + 1 :])]
        other_T = np.asarray(values(params, batch_of([(others, 1)])))[0]
        np.testing.assert_array_equal(other_T[: column + 1], known_T[: column + 1])
        assert other_T[column + 1] != known_T[column + 1]


def test_logits_in_chunks_are_the_same_log_probabilities(tiny, params):
    batch = batch_of(texts())
    one, other = (jax.jit(PPO(tiny, loss_chunk=chunk).judged)(params, batch) for chunk in (None, 4))
    for one_BT, other_BT in zip(one, other, strict=True):
        np.testing.assert_allclose(one_BT, other_BT, atol=1e-5)


def test_entropies_are_those_of_the_divided_logits(tiny, params):
    """An estimate from the log-probabilities of all tokens of one place."""
    objective = PPO(tiny, temperature=TEMPERATURE)
    rows = [([5, 9, 2, token], 3) for token in range(VOCABULARY)]
    logprob_BT, entropy_BT, _ = jax.jit(objective.judged)(params, batch_of(rows, 4))
    logprob_V = np.asarray(logprob_BT, np.float64)[:, 2]
    assert np.exp(logprob_V).sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(entropy_BT[:, 2], -(np.exp(logprob_V) * logprob_V).sum(), rtol=1e-5)


def test_packing_changes_neither_loss_nor_gradient(tiny, params):
    """Episodes that share rows do not see each other, have their own places and their own scale of the critic."""
    objective = PPO(tiny, temperature=TEMPERATURE, unlikelihood=0.3)
    there_BT = (batch := near(objective, params, batch_of(texts())))["segment_ids_BT"] > 0
    scales = np.linspace(0.5, 4, ROWS, dtype=np.float32)[:, None]
    batch |= {"critic_mean_BT": there_BT * scales, "critic_std_BT": there_BT / scales}
    packed = packed_minibatch(batch, np.arange(ROWS), there_BT.sum(axis=1), 2 * WIDTH, 1)
    assert len(packed["tokens_BT"]) < ROWS
    (found, gradient), (other, other_gradient) = (
        loss_and_gradient(objective, params, part) for part in (batch, packed)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, other)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), gradient, other_gradient)


def test_a_critic_may_have_sizes_of_its_own(tiny):
    smaller = dataclasses.replace(tiny, num_layers=1, embed_dim=16)
    objective = PPO(tiny, value_model=smaller)
    shapes = unbox(jax.eval_shape(objective.init, jax.random.key(0)))
    assert shapes["value"]["head"]["weight"].shape == (16,)
    assert shapes["policy"]["embed"].shape == (VOCABULARY, 32)
    batch = batch_of(texts())
    assert jax.eval_shape(objective.values, shapes, batch).shape == (ROWS, WIDTH)
    tokens = ROWS * WIDTH
    both = tiny.flops_per_token(WIDTH) + smaller.flops_per_token(WIDTH) - 6 * VOCABULARY * 16  # it makes no logits
    assert objective.flops(batch) == pytest.approx(both * tokens)


def test_the_critic_is_taken_to_the_scale_of_the_rewards(tiny, params):
    """(raw − mean) / std, as scores are; a critic that was a reward model begins near what it will learn."""
    objective, batch = PPO(tiny), batch_of(texts())
    raw_BT = objective.values(params, batch)
    mean_B, std_B = np.linspace(-1, 2, ROWS, dtype=np.float32), np.linspace(0.5, 4, ROWS, dtype=np.float32)
    there_BT = batch["segment_ids_BT"] > 0
    scales = {"critic_mean_BT": there_BT * mean_B[:, None], "critic_std_BT": there_BT * std_B[:, None]}
    scaled_BT = np.where(there_BT, objective.values(params, batch | scales), 0)
    expected_BT = np.where(there_BT, (raw_BT - mean_B[:, None]) / std_B[:, None], 0)
    np.testing.assert_allclose(scaled_BT, expected_BT, rtol=1e-5, atol=1e-6)


# Before the first update


def test_the_first_ratio_of_all_is_1(tiny, params):
    """Through `judged`, which is another program; the loss of the policy is that of whitened advantages: 0."""
    objective = PPO(tiny, temperature=TEMPERATURE)
    batch = batch_of(texts())
    logprob_BT, _, value_BT = jax.jit(objective.judged)(params, batch)
    mask_BT = batch["mask_BT"]
    batch |= {
        "old_logprob_BT": np.asarray(logprob_BT * mask_BT),
        "old_value_BT": np.asarray(value_BT * mask_BT),
        "advantage_BT": np.asarray(whitened(jnp.asarray(batch["advantage_BT"]), jnp.asarray(mask_BT > 0))),
        "weight_BT": mask_BT,
    }
    (_, weight, metrics), _ = loss_and_gradient(objective, params, batch)
    assert abs(metrics["policy/ratio_max"].value - 1) <= 1e-5
    assert abs(metrics["policy/ratio_mean"].sum / weight - 1) <= 1e-5
    assert abs(metrics["loss/policy"].sum / weight) <= 1e-5
    assert metrics["policy/approxkl"].sum / weight <= 1e-9
    assert metrics["policy/clipfrac"].sum == metrics["value/clipfrac"].sum == metrics["skip/most_ratio"].value == 0

    k1_BT, _, _ = kl_terms(logprob_BT, jax.jit(objective.logprobs)(params["policy"], batch), mask_BT)
    assert abs(float(jnp.sum(k1_BT, axis=1).mean())) <= 1e-5, "the policy that is the reference"


def test_through_one_compiled_function_the_ratio_is_1_to_the_bit(tiny, params):
    objective, batch = PPO(tiny, temperature=TEMPERATURE), batch_of(texts())

    @jax.jit
    def change(params, batch):
        logprob_BT = jnp.where(batch["mask_BT"] > 0, objective.logprobs(params["policy"], batch), 0.0)
        return logprob_BT, logprob_BT - batch["old_logprob_BT"]

    logprob_BT, before_BT = change(params, batch)
    assert np.abs(before_BT).max() > 0
    np.testing.assert_array_equal(change(params, batch | {"old_logprob_BT": logprob_BT})[1], 0)


# The loss


def tables(batch, seed=2, spread=0.5):
    """Parameters of `Tables` near what the batch remembers."""
    rng, mask_BT = np.random.default_rng(seed), batch["mask_BT"]
    policy_BT, value_BT = rng.normal(0, spread, size=(2, *mask_BT.shape)).astype(np.float32) * mask_BT
    return {"policy": batch["old_logprob_BT"] + policy_BT, "value": batch["old_value_BT"] + value_BT}


OPTIONS = {"clip": 0.3, "value_clip": 0.15, "value_coefficient": 0.25, "dual_clip": 1.5, "unlikelihood": 0.4}


def test_the_loss_is_a_sum_over_the_answers_tokens(tiny):
    """And its metrics; by a loop over tokens."""
    objective, batch = Tables(tiny, **OPTIONS), batch_of(texts())
    params = tables(batch)
    sums = dict.fromkeys(("policy", "value", "unlikelihood", "kl", "ratio", "clipped", "value_clipped"), 0.0)
    largest = 0.0
    for place in zip(*np.nonzero(batch["mask_BT"]), strict=True):
        known = {name: float(array[place]) for name, array in batch.items()}
        new, value = float(params["policy"][place]), float(params["value"][place])
        ratio, advantage = np.exp(new - known["old_logprob_BT"]), known["advantage_BT"]
        loss = max(-advantage * ratio, -advantage * np.clip(ratio, 0.7, 1.3))
        loss = min(loss, -advantage * 1.5) if advantage < 0 else loss
        near = known["old_value_BT"] + np.clip(value - known["old_value_BT"], -0.15, 0.15)
        sums["policy"] += known["weight_BT"] * loss
        sums["value"] += max((value - known["return_BT"]) ** 2, (near - known["return_BT"]) ** 2) / 2
        sums["unlikelihood"] += -known["repeated_BT"] * np.log(1 - np.exp(new))
        sums["kl"] += (new - known["old_logprob_BT"]) ** 2 / 2
        sums["ratio"] += ratio
        sums["clipped"] += abs(ratio - 1) > 0.3
        sums["value_clipped"] += abs(value - known["old_value_BT"]) > 0.15
        largest = max(largest, ratio)
    (total, weight, metrics), _ = loss_and_gradient(objective, params, batch)
    assert weight == batch["mask_BT"].sum()
    assert total == pytest.approx(sums["policy"] + 0.25 * sums["value"] + 0.4 * sums["unlikelihood"], rel=1e-4)
    names = {
        "loss/policy": "policy",
        "loss/value": "value",
        "loss/unlikelihood": "unlikelihood",
        "policy/approxkl": "kl",
        "policy/ratio_mean": "ratio",
        "policy/clipfrac": "clipped",
        "value/clipfrac": "value_clipped",
    }
    for metric, name in names.items():
        assert metrics[metric].sum == pytest.approx(sums[name], rel=1e-4), metric
        assert metrics[metric].weight == weight
    assert metrics["policy/ratio_max"].value == pytest.approx(largest, rel=1e-4)
    assert 0 < sums["clipped"] < weight
    assert 0 < sums["value_clipped"] < weight
    assert sums["unlikelihood"] > 0


@pytest.mark.parametrize("options", [{}, OPTIONS])
def test_gradients_are_those_of_finite_differences(tiny, options):
    """In float32: steps of 0.01, to 2e-3; places near a kink, where the slope changes, are left out."""
    objective, batch = Tables(tiny, **options), batch_of(texts())
    params, step = tables(batch), 1e-2
    _, gradient = loss_and_gradient(objective, params, batch)

    @jax.jit
    def totals(params):
        """Of each token by itself, as a loss that is no sum yet."""
        logprob_BT, value_BT = params["policy"], params["value"]
        policy_BT = policy_loss(
            logprob_BT, batch["old_logprob_BT"], batch["advantage_BT"], objective.clip, objective.dual_clip
        )
        critic_BT = value_loss(value_BT, batch["old_value_BT"], batch["return_BT"], objective.value_clip)
        again_BT = unlikelihood(logprob_BT) * batch["repeated_BT"]
        each_BT = policy_BT * batch["weight_BT"] + objective.value_coefficient * critic_BT
        return (each_BT + objective.unlikelihood * again_BT) * batch["mask_BT"]

    change_BT = params["policy"] - batch["old_logprob_BT"]
    drift_BT = params["value"] - batch["old_value_BT"]
    bent = np.log([1 - objective.clip, 1 + objective.clip, objective.dual_clip or 1e9])
    clipped_BT = batch["old_value_BT"] + np.clip(drift_BT, -objective.value_clip, objective.value_clip)
    kinks = {
        "policy": np.abs(change_BT[..., None] - bent).min(axis=-1),
        "value": np.minimum(
            np.abs(np.abs(drift_BT) - objective.value_clip),
            np.abs((params["value"] + clipped_BT) / 2 - batch["return_BT"]),
        ),
    }
    for name, kink_BT in kinks.items():
        up_BT, down_BT = (np.asarray(totals(params | {name: params[name] + by}), np.float64) for by in (step, -step))
        slope_BT = (up_BT - down_BT) / (2 * step) / batch["mask_BT"].sum()
        smooth_BT = (kink_BT > 1.5 * step) & (batch["mask_BT"] > 0)
        assert smooth_BT.sum() > 0.7 * batch["mask_BT"].sum()
        np.testing.assert_allclose(np.asarray(gradient[name])[smooth_BT], slope_BT[smooth_BT], rtol=2e-3, atol=2e-5)
    np.testing.assert_array_equal(np.asarray(gradient["policy"])[batch["mask_BT"] == 0], 0)


def test_an_unlikelihood_of_0_is_plain_ppo_to_the_bit(tiny, params):
    """Whatever is repeated; and where nothing is, any weight of it is."""
    batch = near(PPO(tiny), params, batch_of(texts()))
    assert 0 < batch["repeated_BT"].sum() < batch["mask_BT"].sum()
    nothing = batch | {"repeated_BT": np.zeros_like(batch["repeated_BT"])}
    plain = loss_and_gradient(PPO(tiny), params, nothing)
    assert_same(loss_and_gradient(PPO(tiny, unlikelihood=0.0), params, batch), plain)

    params = tables(nothing)
    found, gradient = loss_and_gradient(Tables(tiny, unlikelihood=0.7), params, nothing)
    other, other_gradient = loss_and_gradient(Tables(tiny), params, nothing)
    assert found[2]["loss/unlikelihood"].sum == 0
    assert float(found[0]) == pytest.approx(float(other[0]), rel=1e-6)
    assert_same(gradient, other_gradient)


def test_unlikelihood_acts_on_repeated_tokens_alone(tiny):
    """On each by the odds of what was repeated, and downwards."""
    batch, alpha = batch_of(texts()), 0.7
    params, weight = tables(batch), batch["mask_BT"].sum()
    _, plain = loss_and_gradient(Tables(tiny), params, batch)
    _, gradient = loss_and_gradient(Tables(tiny, unlikelihood=alpha), params, batch)
    assert_same(gradient["value"], plain["value"])
    more_BT = np.asarray(gradient["policy"] - plain["policy"])
    repeated_BT = batch["repeated_BT"] > 0
    np.testing.assert_array_equal(more_BT[~repeated_BT], 0)
    chance = np.exp(params["policy"][repeated_BT])
    np.testing.assert_allclose(more_BT[repeated_BT], alpha * chance / (1 - chance) / weight, rtol=1e-2, atol=1e-6)


def test_what_lies_in_padding_changes_no_bit(tiny):
    """Models may say NaN there, or anything."""
    objective, batch = Tables(tiny, **OPTIONS), batch_of(texts())
    params, outside_BT = tables(batch), batch["mask_BT"] == 0
    found, gradient = loss_and_gradient(objective, params, batch)
    for nonsense in (np.nan, np.inf, -np.inf, 1e30):
        odd = {name: np.where(outside_BT, np.float32(nonsense), array) for name, array in params.items()}
        other, other_gradient = loss_and_gradient(objective, odd, batch)
        assert_same(other, found)
        assert_same(other_gradient, gradient)


def test_rows_without_an_answer_weigh_nothing(tiny):
    objective, batch = Tables(tiny, **OPTIONS), batch_of(texts())
    more = {name: np.concatenate([array, np.zeros_like(array[:3])]) for name, array in batch.items()}
    params = tables(batch)
    wide = {name: np.concatenate([array, np.zeros_like(array[:3])]) for name, array in params.items()}
    (found, _), (other, _) = loss_and_gradient(objective, params, batch), loss_and_gradient(objective, wide, more)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, other)
    empty = {name: np.zeros_like(array) for name, array in batch.items()}
    total, weight, metrics = objective.loss(params, empty, jax.random.key(0))
    assert total == weight == metrics["skip/most_ratio"].value == 0


# Microbatches and meshes

step = jax.jit(update, static_argnums=0)


def test_microbatches_change_neither_loss_nor_gradient(tiny, params):
    """Sums over sums: rows of very different lengths in 1, 2 or 4 parts."""
    objective = PPO(tiny, unlikelihood=0.3)
    batch = near(objective, params, batch_of(texts()))
    assert np.ptp(batch["mask_BT"].sum(axis=1)) > 5
    found = {}
    for accumulate in (1, 4):
        recipe = recipe_of(objective, accumulate, loss=False)
        state, metrics = step(recipe, state_of(recipe, params), batch)
        found[accumulate] = (
            state.optimizer,
            {name: metric for name, metric in metrics.items() if name != "skip/most_ratio"},
        )
    gradient, metrics = found.pop(1)
    for other_gradient, other_metrics in found.values():
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), other_gradient, gradient)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), other_metrics, metrics)


@pytest.mark.parametrize(
    "sizes", [pytest.param({"data": 8}, marks=pytest.mark.slow), {"data": 2, "fsdp": 2, "tensor": 2}]
)
def test_one_device_and_eight_agree(tiny, params, sizes):
    objective = PPO(tiny, temperature=TEMPERATURE, unlikelihood=0.3)
    batch = near(objective, params, batch_of(texts()))
    recipe = recipe_of(objective, loss=False)
    alone, metrics = step(recipe, state_of(recipe, params), batch)
    judged = jax.jit(objective.judged)(params, batch)
    layout = Layout(**sizes)
    with layout.active():
        places = abstract_state(recipe, layout).params
        spread = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), params, places)
        dealt = layout.shard_batch(lambda start, stop: {n: array[start:stop] for n, array in batch.items()}, ROWS)
        other, other_metrics = step(recipe, state_of(recipe, spread), dealt)
        other_judged = jax.jit(objective.judged)(spread, dealt)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, other_metrics, metrics)
    jax.tree.map(close, other_judged, judged)
    jax.tree.map(close, other.optimizer, alone.optimizer)


# What is not learnt


@pytest.mark.parametrize(("shift", "skipped"), [(0.0, 0), (2.2, 0), (2.4, 1), (-2.2, 0), (-2.4, 1), (40.0, 1)])
def test_a_batch_that_another_policy_drew_is_skipped_and_counted(tiny, shift, skipped):
    """The mean ratio is above 10 or below a tenth: e^2.3 = 10. The update leaves everything as it is."""
    batch = batch_of(texts())
    params = {"policy": batch["old_logprob_BT"] + np.float32(shift) * batch["mask_BT"], "value": batch["old_value_BT"]}
    recipe = recipe_of(Tables(tiny, most_ratio=10.0), loss=False)
    state = state_of(recipe, jax.tree.map(jnp.asarray, params))
    after, metrics = step(recipe, state, batch)
    assert after.skipped == after.skipped_in_a_row == metrics["skipped"].sum == skipped
    assert after.step == 1
    if skipped:
        assert_same(after.params, state.params)
        assert_same(after.optimizer, state.optimizer)
    else:
        assert np.any(after.params["policy"] != state.params["policy"])
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves((after.params, metrics)))


def test_one_far_microbatch_is_enough(tiny, params):
    objective = PPO(tiny)
    batch = near(objective, params, batch_of(texts()))
    recipe = recipe_of(objective, 4, loss=False)
    far_B1 = (np.arange(ROWS) % 4 == 1)[:, None]
    odd = batch | {"old_logprob_BT": batch["old_logprob_BT"] - 3 * np.float32(far_B1) * batch["mask_BT"]}
    assert step(recipe, state_of(recipe, params), batch)[0].skipped == 0
    assert step(recipe, state_of(recipe, params), odd)[0].skipped == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, r"PPO\.temperature is 0\.0; it must be positive"),
        ({"clip": 0.0}, r"PPO\.clip is 0\.0"),
        ({"value_clip": -0.2}, r"PPO\.value_clip is -0\.2"),
        ({"value_coefficient": -1.0}, r"PPO\.value_coefficient is -1\.0; it must not be negative"),
        ({"unlikelihood": -0.1}, r"PPO\.unlikelihood is -0\.1; it must not be negative"),
        ({"dual_clip": 1.0}, r"PPO\.dual_clip is 1\.0; it must be above 1, or None"),
        ({"most_ratio": 1.0}, r"PPO\.most_ratio is 1\.0; it must be above 1"),
        ({"clip": "wide"}, r"PPO\.clip"),
    ],
)
def test_settings_that_cannot_be(tiny, changes, message):
    with pytest.raises(ValueError, match=message):
        PPO(tiny, **changes)
