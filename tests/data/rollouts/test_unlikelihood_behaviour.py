"""A policy that loops: PPO alone leaves it looping, PPO with unlikelihood does not, at the same reward and divergence.

The judge counts polite words of welcome and does not see the story, which is what loops. Its reward has diminishing
returns, each polite word halving what is missing, so that at the divergence that both are given the nats that it takes
to leave the loops are worth less than a hundredth of the reward. The divergence is made equal by `AdaptiveKL` with the
same target on both sides.
"""

import json
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.data.rollouts.lessons import Lessons
from hcxjax.evaluation.answers import AnswerWriter
from hcxjax.inference.engine import EngineSettings
from hcxjax.objectives.ppo import PPO
from hcxjax.objectives.returns import AdaptiveKL
from hcxjax.objectives.unlikelihood import sequence_repetition
from hcxjax.optim import AdamW, Linear, SpikeGuard
from hcxjax.tracking import JsonLines
from hcxjax.train import Experiment
from tests.data.rollouts.looping import ANSWER, MODEL, POLITE, PROMPTS, STOP, learn_to_loop
from tests.data.rollouts.parts import LAYOUT, LikesSevens, Numbers, rollouts

TARGET = 12.0
"""Nats an answer: five of the eight words of welcome, which are polite one time in ten."""
EPOCHS = 4
LAST = 10
"""Rollouts at a run's end over which its numbers are means."""


class LikesPoliteWords(LikesSevens):
    """1 − 2^−n for n polite words."""

    fingerprint = "polite"

    def scores(self, batch, last_B):
        return jnp.asarray(1 - 0.5 ** np.isin(batch["tokens_BT"], POLITE).sum(1), jnp.float32)


class Reached(NamedTuple):
    """seq-rep-4 of the likeliest answers before and after; and by rollout: seq-rep-4 of its answers, score and KL."""

    likeliest: tuple[float, float]
    repetition: np.ndarray
    score: np.ndarray
    kl: np.ndarray

    def last(self):
        """(seq-rep-4, score, KL) of the last rollouts."""
        return tuple(float(np.mean(told[-LAST:])) for told in self[1:])


class LikeliestAnswers:
    """An `Evaluator` of how much the answers repeat themselves that a policy gives without drawing."""

    def __init__(self, objective, every):
        self.objective, self.every = objective, every

    def start(self, layout, run_dir):
        self.write = AnswerWriter(self.objective, PROMPTS, (STOP,), ANSWER, temperature=0.0)

    def evaluate(self, params, step):
        tokens_BT = jnp.asarray([answer.tokens for answer in self.write(params)])
        return {"eval/repetition": float(jnp.mean(sequence_repetition(tokens_BT, jnp.ones_like(tokens_BT), 4)))}


def learn(folder, weights, seed, unlikelihood, count, episodes=64, asked=True):
    """PPO from `weights` over `count` rollouts."""
    objective = PPO(MODEL, temperature=1.0, value_coefficient=0.5, unlikelihood=unlikelihood)
    settings = EngineSettings(slots=episodes, chunk=2, steps=8, listed=1, prefix_tokens=0, prefill_tokens=10**6)
    source = rollouts(
        weights,
        objective=objective,
        prompts=Numbers(PROMPTS, length=2),
        reward=LikesPoliteWords(),
        episodes=episodes,
        new_tokens=ANSWER,
        epochs=EPOCHS,
        minibatches=1,
        lessons=Lessons(beta=0.004, missing_stop_penalty=0.0),
        adaptive=AdaptiveKL(TARGET, 2 * episodes),
        settings=settings,
        seed=seed,
    )
    steps = EPOCHS * count
    Experiment(
        run_dir=str(folder),
        steps=steps,
        seed=seed,
        objective=objective,
        source=source,
        optimizer=AdamW(Linear(3e-3, steps, hold=EPOCHS), weight_decay=0.0, b2=0.999, epsilon=1e-5),
        layout=LAYOUT,
        save_every=steps,
        spikes=SpikeGuard(loss=False),
        evaluators=(LikeliestAnswers(objective, steps),) if asked else (),
        trackers=(JsonLines(),),
        init_from={"policy": weights},
        fresh=("value",),
    ).run()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    likeliest = tuple(line["eval/repetition"] for line in lines if "eval/repetition" in line)
    told = [line for line in lines if "objective/kl" in line]
    names = ("rollout/seq_rep_4", "objective/score", "objective/kl")
    return Reached(likeliest, *(np.array([line[name] for line in told]) for name in names))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loops_end_at_the_same_reward_and_divergence(tmp_path, seed):
    weights = learn_to_loop(tmp_path / "tuned", seed, updates=300, rows=64)
    alone = learn(tmp_path / "alone", weights, seed, unlikelihood=0.0, count=80)
    without = learn(tmp_path / "unlikelihood", weights, seed, unlikelihood=1.0, count=80)
    assert alone.likeliest[0] == without.likeliest[0] >= 0.3, "it loops to begin with"
    assert without.likeliest[1] <= alone.likeliest[1] / 3
    (looping, score, kl), (rest, same_score, same_kl) = alone.last(), without.last()
    assert rest <= looping / 3 and looping >= 0.15
    assert abs(same_score / score - 1) <= 0.02 and score > 0.95
    assert abs(same_kl / kl - 1) <= 0.1
    assert max(abs(kl / TARGET - 1), abs(same_kl / TARGET - 1)) <= 0.1


@pytest.mark.slow
def test_loops_end_within_few_rollouts(tmp_path):
    weights = learn_to_loop(tmp_path / "tuned", 0, updates=60, rows=32)
    reached = learn(tmp_path / "unlikelihood", weights, 0, unlikelihood=1.0, count=4, episodes=32, asked=False)
    assert reached.repetition[0] >= 0.1, "it loops to begin with"
    assert reached.repetition[-1] <= reached.repetition[0] / 3
    assert reached.score[-1] > reached.score[0] + 0.1, "it learns what the judge likes, too"
