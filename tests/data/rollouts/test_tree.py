"""The tree with the known optimum through the real path: decoder, engine, rollouts, trainer.

The reference is a decoder of one layer that was fitted to the flattest tree's table until it is that tree.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hcxjax.checkpoint import read
from hcxjax.data.rollouts import lessons
from hcxjax.data.rollouts.lessons import Lessons
from hcxjax.inference.engine import EngineSettings
from hcxjax.models.config import DecoderConfig
from hcxjax.models.decoder import Decoder
from hcxjax.objectives.ppo import PPO
from hcxjax.objectives.returns import token_rewards
from hcxjax.optim import AdamW, Linear, SpikeGuard
from hcxjax.tracking import JsonLines
from hcxjax.train import Experiment
from tests.data.rollouts.parts import LAYOUT, Numbers, first_params, rollouts, write_weights
from tests.objectives.test_tree_tabular import FLATTEST
from tests.objectives.tree import ANSWERS, LENGTH, MASK_BT, PREFIX_BT, STOP, TOKENS_BT, VOCABULARY, number

MODEL = DecoderConfig(
    vocab_size=VOCABULARY,
    num_layers=1,
    embed_dim=32,
    mlp_dim=64,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    max_length=8,
    rope_theta=100.0,
    tie_embeddings=False,
    init_std=0.1,
    dtype="float32",
)
OBJECTIVE = PPO(MODEL, temperature=1.0, value_coefficient=0.5)
BEGIN = (STOP,)
EPISODES, EPOCHS, RATE = 256, 4, 1e-3
FAULTS = {
    "KL's sign flipped": lambda old, reference, mask, score, beta: token_rewards(old, reference, mask, score, -beta),
    "KL forgotten": lambda old, reference, mask, score, beta: token_rewards(old, reference, mask, score, 0.0),
    "rewards a token early": lambda *given: jnp.pad(token_rewards(*given), ((0, 0), (0, 1)))[:, 1:],
    "rewards a token late": lambda *given: jnp.pad(token_rewards(*given), ((0, 0), (1, 0)))[:, :-1],
    "rewards cast to int": lambda *given: jnp.trunc(token_rewards(*given)),
}
"""What may be wrong with the reward of each token. Faults of its estimator, and more, are sown in the tabular tree."""


@dataclasses.dataclass(frozen=True)
class Known:
    """The tree's rewards, looked up."""

    fingerprint: str = "tree"

    def scores(self, batch, last_B):
        rows = [tuple(row[1 : last + 1].tolist()) for row, last in zip(batch["tokens_BT"], last_B, strict=True)]
        return jnp.asarray([FLATTEST.reward_B[number(row)] for row in rows], jnp.float32)

    def rewards(self, score_B, sources):
        return np.asarray(score_B, np.float32)

    def scales(self, sources):
        return np.zeros(len(sources), np.float32), np.ones(len(sources), np.float32)


def chances(policy):
    """logprob_BTV of what follows every prefix of all 121 answers."""
    tokens_BT = jnp.concatenate([jnp.full((len(ANSWERS), 1), BEGIN[0], jnp.int32), TOKENS_BT[:, :-1]], axis=1)
    segments_BT, positions_BT = jnp.ones_like(tokens_BT), jnp.broadcast_to(jnp.arange(LENGTH), tokens_BT.shape)
    return jax.nn.log_softmax(Decoder(MODEL).apply({"params": policy}, tokens_BT, segments_BT, positions_BT))


def measured(policy):
    """(frac, total variation) of a decoder."""
    logprob_BTV = jax.jit(chances)(policy)
    logprob_BT = np.take_along_axis(np.asarray(logprob_BTV), TOKENS_BT[..., None], axis=-1)[..., 0]
    return FLATTEST.frac(logprob_BT), FLATTEST.total_variation(logprob_BT)


@functools.cache
def reference():
    """A decoder that is the tree's reference: Adam on the KL divergence from its table, from the same start always."""
    target_BTV = jax.nn.log_softmax(FLATTEST.reference_PV)[PREFIX_BT]
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 1500))

    def loss(policy):
        kl_BT = jnp.sum(jnp.exp(target_BTV) * (target_BTV - chances(policy)), axis=-1)
        return jnp.sum(jnp.where(MASK_BT, kl_BT, 0.0)) / MASK_BT.sum()

    @jax.jit
    def fit(policy):
        def step(state, _):
            change, moments = optimizer.update(jax.grad(loss)(state[0]), state[1], state[0])
            return (optax.apply_updates(state[0], change), moments), None

        (policy, _), _ = jax.lax.scan(step, (policy, optimizer.init(policy)), None, length=1500)
        return policy, loss(policy)

    policy, left = fit(first_params(OBJECTIVE)["policy"])
    assert left < 1e-5
    return policy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of the reference's weights."""
    return write_weights(tmp_path_factory.mktemp("reference"), reference())


def learn(run, weights, seed, updates, lag=None, **changes):
    """(frac, total variation) after `updates` rollouts, and the metrics of their first minibatches."""
    source = rollouts(
        weights,
        objective=OBJECTIVE,
        prompts=Numbers((BEGIN,), length=1),
        reward=Known(),
        episodes=EPISODES,
        new_tokens=LENGTH,
        epochs=EPOCHS,
        minibatches=1,
        lag=lag,
        lessons=Lessons(beta=FLATTEST.beta, missing_stop_penalty=0.0),
        settings=EngineSettings(slots=EPISODES, chunk=8, steps=4, listed=1, prefix_tokens=0, prefill_tokens=10**6),
        seed=seed,
        **changes,
    )
    steps = EPOCHS * updates
    experiment = Experiment(
        run_dir=str(run),
        steps=steps,
        seed=seed,
        objective=OBJECTIVE,
        source=source,
        optimizer=AdamW(Linear(RATE, steps, hold=EPOCHS), weight_decay=0.0, b2=0.999, epsilon=1e-5),
        layout=LAYOUT,
        save_every=steps,
        spikes=SpikeGuard(loss=False),
        trackers=(JsonLines(),),
        init_from={"policy": weights},
        fresh=("value",),
    )
    experiment.run()
    template = {"state": {"params": {"policy": jax.tree.map(jnp.zeros_like, reference())}}}
    _, tree = read(run / "checkpoints", template)
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return measured(tree["state"]["params"]["policy"]), [line for line in lines if "objective/kl" in line]


def test_the_best_policy_is_found_through_the_real_path(tmp_path, folder):
    (frac, distance), lines = learn(tmp_path, folder, 0, 150)
    assert frac >= 0.95
    assert distance <= 0.2
    assert abs(lines[0]["objective/kl"]) <= 1e-5
    assert max(line["sampler_trainer_logp_diff"] for line in lines) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_it_is_found_from_other_seeds(tmp_path, folder, seed):
    (frac, _), _ = learn(tmp_path, folder, seed, 300)
    assert frac >= 0.95


@pytest.mark.slow
@pytest.mark.xfail(reason="seed 0: 0.987 in turn, 0.974 and 0.975 with lags 1 and 4; see docs/benchmarks.md")
def test_ahead_of_the_trainer_it_is_found_as_well(tmp_path, folder):
    """Rollouts of an earlier policy, one and four updates old."""
    found = {lag: learn(tmp_path / str(lag), folder, 0, 300, lag)[0][0] for lag in (None, 1, 4)}
    assert found[None] >= 0.95
    assert max(abs(found[lag] - found[None]) for lag in (1, 4)) <= 0.01, found


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(tmp_path, folder, fault, monkeypatch):
    monkeypatch.setattr(lessons, "token_rewards", FAULTS[fault])
    lessons._learnt.clear_cache()
    try:
        (frac, _), _ = learn(tmp_path, folder, 0, 150)
    finally:
        lessons._learnt.clear_cache()
    assert frac < 0.9
