"""PPO's pure parts find the best policy of a language that can be enumerated, and each of ten faults is seen there.

Policy and value are tables. All runs, with and without faults, are lanes of one compiled program.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hcxjax.objectives.clipping import policy_loss, value_loss
from hcxjax.objectives.returns import gae, kl_terms, token_rewards, up_to_stop, whitened
from tests.objectives.tree import (
    ANSWERS,
    LENGTH,
    MASK_BT,
    PREFIX_BT,
    PREFIXES,
    STOP,
    TOKENS_BT,
    VOCABULARY,
    Tree,
    number,
    table_logprobs,
)

EPISODES, EPOCHS, UPDATES, RATE, DECAY = 256, 4, 200, 0.03, 0.95
CLIP, VALUE_WEIGHT = 0.2, 0.1
SEEDS = (0, 1, 2)

FLATTEST = Tree(4)
"""Of the trees 0 to 23 the one whose best policy is least certain: its likeliest answer has 0.17.

Where one answer has most of π*, a policy that only ever writes that one comes near 1 (0.97 on tree 0, whose likeliest
has 0.85), and so does one that forgot the KL divergence. Here it cannot.
"""

FAULTS = (
    "none",
    "KL's sign flipped",
    "rewards a token early",
    "rewards a token late",
    "scores cast to int",
    "rewards cast to int",
    "k2 in the reward",
    "k3 in the reward",
    "|k1| in the reward",
    "KL in the loss, as k1",
    "KL in the loss, as k3",
)


def rewards(has, old_BT, reference_BT, mask_BT, score_B, beta):
    """Ours, and what is wrong with it in a lane that has a fault."""
    score_B = jnp.where(has("scores cast to int"), jnp.trunc(score_B), score_B)
    in_loss = has("KL in the loss, as k1") | has("KL in the loss, as k3")
    factor = jnp.where(has("KL's sign flipped"), -beta, jnp.where(in_loss, 0.0, beta))
    reward_BT = token_rewards(old_BT, reference_BT, mask_BT, score_B, factor)
    k1_BT, k2_BT, k3_BT = kl_terms(old_BT, reference_BT, mask_BT)
    estimators = {"k2": k2_BT, "k3": k3_BT, "|k1|": jnp.abs(k1_BT)}
    faults = [has(f"{name} in the reward") for name in estimators]
    reward_BT += beta * jnp.select(faults, [k1_BT - other_BT for other_BT in estimators.values()], 0.0)
    early_BT, late_BT = (jnp.pad(reward_BT, ((0, 0), sides)) for sides in ((0, 1), (1, 0)))
    return jnp.select(
        [has("rewards a token early"), has("rewards a token late"), has("rewards cast to int")],
        [early_BT[:, 1:], late_BT[:, :-1], jnp.trunc(reward_BT)],
        reward_BT,
    )


def scored(params, targets_BT, prefix_BT):
    """(log-probability, value) of each token, from the tables."""
    return jax.nn.log_softmax(params["policy"])[prefix_BT, targets_BT], params["value"][prefix_BT]


def drawn_from(params, episodes, key):
    """Numbers of answers that the policy writes: all 121 lie end to end on a line, and uniform numbers fall on it."""
    logprob_BT, _ = scored(params, TOKENS_BT, PREFIX_BT)
    reach_B = jnp.cumsum(jnp.exp(jnp.sum(jnp.where(MASK_BT, logprob_BT, 0), axis=1)))
    place_B = jax.random.uniform(key, (episodes,), maxval=reach_B[-1])
    return jnp.minimum(jnp.searchsorted(reach_B, place_B, side="right"), len(ANSWERS) - 1)


def rollout(has, tree, params, episodes, key):
    """What one update learns from."""
    reference_PV, score_B, beta = tree
    drawn_B = drawn_from(params, episodes, key)
    targets_BT, prefix_BT = jnp.asarray(TOKENS_BT)[drawn_B], jnp.asarray(PREFIX_BT)[drawn_B]
    mask_BT = up_to_stop(targets_BT, jnp.ones(targets_BT.shape, bool), (STOP,))
    old_BT, value_BT = scored(params, targets_BT, prefix_BT)
    reference_BT = jax.nn.log_softmax(reference_PV)[prefix_BT, targets_BT]
    reward_BT = rewards(has, old_BT, reference_BT, mask_BT, score_B[drawn_B], beta)
    advantage_BT, return_BT = gae(reward_BT, value_BT, mask_BT, 1.0, DECAY)
    return {
        "drawn": (targets_BT, prefix_BT),
        "mask_BT": mask_BT,
        "old_BT": old_BT,
        "reference_BT": reference_BT,
        "value_BT": value_BT,
        "advantage_BT": whitened(advantage_BT, mask_BT),
        "return_BT": return_BT,
    }


def loss(params, has, batch, beta):
    """The mean over valid tokens of policy and value loss, and of the KL divergence where that is the fault."""
    logprob_BT, value_BT = scored(params, *batch["drawn"])
    mask_BT = batch["mask_BT"]
    loss_BT = policy_loss(logprob_BT, batch["old_BT"], batch["advantage_BT"], CLIP)
    loss_BT += VALUE_WEIGHT * value_loss(value_BT, batch["value_BT"], batch["return_BT"], CLIP)
    k1_BT, _, k3_BT = kl_terms(logprob_BT, batch["reference_BT"], mask_BT)
    faults = [has("KL in the loss, as k1"), has("KL in the loss, as k3")]
    loss_BT += beta * jnp.select(faults, [k1_BT, k3_BT], 0.0)
    return jnp.sum(jnp.where(mask_BT, loss_BT, 0)) / jnp.sum(mask_BT)


def learn(tree, episodes, fault, key):
    """The policy's table after all updates. `tree` is (reference_PV, reward_B, beta); `fault` numbers FAULTS."""
    optimizer = optax.adamw(optax.linear_schedule(RATE, 0.0, UPDATES * EPOCHS), eps=1e-5, weight_decay=0.0)

    def has(name):
        return fault == FAULTS.index(name)

    def update(state, key):
        batch = rollout(has, tree, state[0], episodes, key)

        def epoch(state, _):
            params, moments = state
            change, moments = optimizer.update(jax.grad(loss)(params, has, batch, tree[2]), moments, params)
            return (optax.apply_updates(params, change), moments), None

        return jax.lax.scan(epoch, state, None, length=EPOCHS)[0], None

    params = {"policy": tree[0], "value": jnp.zeros(len(PREFIXES))}
    (params, _), _ = jax.lax.scan(update, (params, optimizer.init(params)), jax.random.split(key, UPDATES))
    return params["policy"]


def tables(trees, faults, seeds, episodes=EPISODES):
    """policy_BPV: a table for each (tree, fault, seed), of lists that go together."""
    lanes = [np.stack([getattr(tree, name) for tree in trees]) for name in ("reference_PV", "reward_B", "beta")]
    numbers = np.array([FAULTS.index(fault) for fault in faults])
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    # The suite compiles without optimising; this program runs longer than it compiles.
    program = jax.jit(
        jax.vmap(functools.partial(learn, episodes=episodes)), compiler_options={"xla_backend_optimization_level": 1}
    )
    return np.asarray(program(tuple(lanes), fault=numbers, key=keys))


@functools.cache
def outcomes():
    """{fault: [(frac, total variation) of each seed]} on the flattest tree."""
    found = {fault: [] for fault in FAULTS}
    faults, seeds = zip(*itertools.product(FAULTS, SEEDS), strict=True)
    for fault, logits_PV in zip(faults, tables([FLATTEST] * len(faults), faults, seeds), strict=True):
        logprob_BT = table_logprobs(logits_PV)
        found[fault].append((FLATTEST.frac(logprob_BT), FLATTEST.total_variation(logprob_BT)))
    return found


# The tree itself


def test_the_tree_is_enumerated():
    assert len(PREFIXES) == 40
    assert len(ANSWERS) == len(set(ANSWERS)) == 121
    everything = itertools.product(range(VOCABULARY), repeat=LENGTH)
    assert {number(continuation) for continuation in everything} == set(range(121))
    assert ANSWERS[number((2, 1, STOP, 3))] == (2, 1, STOP)
    np.testing.assert_array_equal(up_to_stop(TOKENS_BT, np.ones(TOKENS_BT.shape, bool), (STOP,)), MASK_BT)
    for row, answer in enumerate(ANSWERS):
        for t in range(len(answer)):
            assert PREFIXES[PREFIX_BT[row, t]] == answer[:t]


def test_the_best_policy_is_the_best():
    tree, rng = FLATTEST, np.random.default_rng(0)
    reference_BT = table_logprobs(tree.reference_PV)
    assert np.exp(tree.reference_B).sum() == pytest.approx(1)
    assert np.exp(tree.best_B).sum() == pytest.approx(1)
    assert tree.frac(reference_BT) == pytest.approx(0)

    # As token log-probabilities: what an answer's prefixes leave of π*.
    mass_P = [sum(np.exp(tree.best_B[row]) for row, a in enumerate(ANSWERS) if a[: len(p)] == p) for p in PREFIXES]
    best_BT = np.zeros(MASK_BT.shape)
    for row, answer in enumerate(ANSWERS):
        for t in range(len(answer)):
            whole = t + 1 == len(answer)
            after = np.exp(tree.best_B[row]) if whole else mass_P[PREFIXES.index(answer[: t + 1])]
            best_BT[row, t] = np.log(after / mass_P[PREFIX_BT[row, t]])
    assert tree.frac(best_BT) == pytest.approx(1)
    assert tree.objective(best_BT) == pytest.approx(tree.best_objective)
    assert tree.total_variation(best_BT) == pytest.approx(0, abs=1e-9)
    missing_B = np.maximum(np.exp(tree.best_B) - np.exp(tree.reference_B), 0)  # what the reference gives too little of
    assert tree.total_variation(reference_BT) == pytest.approx(missing_B.sum())
    for scale in (0.1, 1, 3):
        other_BT = table_logprobs(tree.reference_PV + scale * rng.normal(size=tree.reference_PV.shape))
        assert tree.frac(other_BT) < 1
        assert tree.total_variation(other_BT) > 0


def test_the_objective_is_what_episodes_earn():
    """The mean of score − β log-ratio over many drawn answers."""
    rng, tree = np.random.default_rng(1), FLATTEST
    logprob_BT = table_logprobs(tree.reference_PV + rng.normal(size=tree.reference_PV.shape))
    logprob_B = np.where(MASK_BT, logprob_BT, 0).sum(1)
    drawn_B = rng.choice(len(ANSWERS), size=200_000, p=np.exp(logprob_B))
    earned_B = tree.reward_B[drawn_B] - tree.beta * (logprob_B - tree.reference_B)[drawn_B]
    error = earned_B.std() / np.sqrt(len(earned_B))
    assert tree.objective(logprob_BT) == pytest.approx(earned_B.mean(), abs=4 * error)


def test_the_flattest_of_twenty_four():
    """It was chosen by its optimum, not by what is learnt on it."""
    peaks = [float(np.exp(Tree(seed).best_B.max())) for seed in range(24)]
    assert np.argmin(peaks) == FLATTEST.seed
    assert min(peaks) == pytest.approx(0.17, abs=0.005)


# What is learnt on it


@pytest.mark.parametrize("seed", SEEDS)
def test_the_best_policy_is_found(seed):
    frac, distance = outcomes()["none"][seed]
    assert frac >= 0.98
    assert distance <= 0.03


@pytest.mark.parametrize("fault", FAULTS[1:])
def test_a_fault_is_seen(fault):
    assert max(frac for frac, _ in outcomes()[fault]) < 0.9


@pytest.mark.slow
def test_on_all_trees_with_enough_episodes():
    """24 trees, 4 seeds each. With 256 episodes an answer is lost now and then, by chance; with 1,024 never."""
    trees = [Tree(seed) for seed in range(24) for _ in range(4)]
    seeds = list(range(4)) * 24
    reached = {}
    for episodes in (EPISODES, 1024):
        found = tables(trees, ["none"] * len(trees), seeds, episodes)
        policies = [(tree, table_logprobs(logits_PV)) for tree, logits_PV in zip(trees, found, strict=True)]
        reached[episodes] = [
            tree.frac(logprob_BT) >= 0.98 and tree.total_variation(logprob_BT) <= 0.03 for tree, logprob_BT in policies
        ]
    assert np.mean(reached[EPISODES]) >= 0.85
    assert np.mean(reached[1024]) == 1
