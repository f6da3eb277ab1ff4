"""The tree with the known optimum through the real path: decoder, engine, rollouts, trainer."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.data.rollouts.lessons import Lessons
from hcxjax.inference.engine import EngineSettings
from hcxjax.models.config import DecoderConfig
from hcxjax.models.decoder import Decoder
from hcxjax.objectives.ppo import PPO
from hcxjax.optim import AdamW, Linear, SpikeGuard
from hcxjax.tracking import JsonLines
from hcxjax.train import Experiment
from tests.data.rollouts.parts import LAYOUT, Numbers, first_params, rollouts, write_weights
from tests.objectives.tree import ANSWERS, LENGTH, MASK_BT, STOP, TOKENS_BT, VOCABULARY, Tree, number

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
    init_std=0.18,
    dtype="float32",
)
EPISODES = 256
BEGIN = (STOP,)
RATE = 3e-3


@dataclasses.dataclass(frozen=True)
class Known:
    """The tree's rewards, looked up."""

    reward_B: np.ndarray
    fingerprint: str = "tree"

    def scores(self, batch, last_B):
        rows = [tuple(row[1 : last + 1].tolist()) for row, last in zip(batch["tokens_BT"], last_B, strict=True)]
        return jnp.asarray([self.reward_B[number(row)] for row in rows], jnp.float32)

    def rewards(self, score_B, sources):
        return np.asarray(score_B, np.float32)

    def scales(self, sources):
        return np.zeros(len(sources), np.float32), np.ones(len(sources), np.float32)


@jax.jit
def log_chances(params):
    """log π of all 121 answers."""
    tokens_BT = jnp.concatenate([jnp.full((len(ANSWERS), 1), BEGIN[0], jnp.int32), TOKENS_BT[:, :-1]], axis=1)
    segments_BT, positions_BT = jnp.ones_like(tokens_BT), jnp.broadcast_to(jnp.arange(LENGTH), tokens_BT.shape)
    logits_BTV = Decoder(MODEL).apply({"params": params}, tokens_BT, segments_BT, positions_BT)
    logprob_BT = jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), TOKENS_BT[..., None], axis=-1)[..., 0]
    return jnp.sum(jnp.where(MASK_BT, logprob_BT, 0.0), axis=1)


def measured(policy, reference, tree) -> tuple[float, float]:
    """(frac, total variation to the optimum) by enumeration."""
    log_B, reference_B = (np.asarray(log_chances(params), np.float64) for params in (policy, reference))
    np.testing.assert_allclose(np.exp(reference_B).sum(), 1, atol=1e-5)
    best_B = reference_B + tree.reward_B / tree.beta
    best = tree.beta * np.log(np.exp(best_B).sum())
    start = np.exp(reference_B) @ tree.reward_B
    reached = np.exp(log_B) @ (tree.reward_B - tree.beta * (log_B - reference_B))
    best_B = np.exp(best_B - best / tree.beta)
    return (reached - start) / (best - start), np.abs(np.exp(log_B) - best_B).sum() / 2


def learn(folder, seed, updates, lag=None, name="run", **changes):
    """(frac, total variation, metrics by step)."""
    tree, objective = Tree(seed), PPO(MODEL, temperature=1.0, value_coefficient=0.5)
    reference = first_params(objective, seed)["policy"]
    weights = str(folder / "reference") if (folder / "reference").exists() else None
    weights = weights or write_weights(folder / "reference", reference)
    source = rollouts(
        weights,
        objective=objective,
        prompts=Numbers((BEGIN,), length=1),
        reward=Known(tree.reward_B),
        episodes=EPISODES,
        new_tokens=LENGTH,
        epochs=4,
        minibatches=1,
        lag=lag,
        lessons=Lessons(beta=tree.beta, missing_stop_penalty=0.0),
        settings=EngineSettings(slots=EPISODES, chunk=8, steps=4, listed=1, prefix_tokens=0, prefill_tokens=10**6),
        seed=seed,
        **changes,
    )
    steps = 4 * updates
    experiment = Experiment(
        run_dir=str(folder / name),
        steps=steps,
        seed=seed,
        objective=objective,
        source=source,
        optimizer=AdamW(Linear(RATE, steps, hold=4), weight_decay=0.0, b2=0.999, epsilon=1e-5),
        layout=LAYOUT,
        save_every=steps,
        spikes=SpikeGuard(loss=False),
        trackers=(JsonLines(),),
        init_from={"policy": weights},
        fresh=("value",),
    )
    experiment.run()
    from hcxjax.checkpoint import read

    template = {"state": {"params": {"policy": jax.tree.map(jnp.zeros_like, reference)}}}
    _, tree_read = read(folder / name / "checkpoints", template)
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    return *measured(tree_read["state"]["params"]["policy"], reference, tree), lines


@pytest.mark.slow
def test_the_optimum_is_reached_through_the_real_path(tmp_path):
    frac, distance, _ = learn(tmp_path, 0, 300)
    assert frac >= 0.95, (frac, distance)
