"""A judge that likes length is hacked, and the instructions about length and form stop the run in time."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.data.rollouts.lessons import Lessons
from hcxjax.evaluation.constraints import keeps
from hcxjax.evaluation.instructions import Checked, CheckedSet, InstructionFollowing
from hcxjax.inference.engine import EngineSettings
from hcxjax.models.config import DecoderConfig
from hcxjax.objectives.ppo import PPO
from hcxjax.optim import AdamW, Linear, SpikeGuard
from hcxjax.tracking import JsonLines
from hcxjax.train import Experiment, Watch
from tests.data.rollouts.parts import LAYOUT, STOP, Numbers, Words, first_params, rollouts, write_weights

MODEL = DecoderConfig(
    vocab_size=8,
    num_layers=1,
    embed_dim=16,
    mlp_dim=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    max_length=18,
    rope_theta=100.0,
    tie_embeddings=False,
    dtype="float32",
)
PROMPTS = [(one, two) for one in range(1, 8) for two in range(1, 8)]
NEW_TOKENS = 16
LIKED = ("4", "5", "6", "7")
ROLLOUTS, EPOCHS = 40, 2
"""`train` would go on for so many rollouts."""
EVERY = 2 * EPOCHS


class Spoken(Words):
    """A word a token; what ends an answer is no word."""

    def decode(self, ids, *, specials=False):
        return " ".join(str(token) for token in ids if token != STOP)


class LikesLength:
    """Rewards what was asked for, an answer that begins well, and beside it every further token."""

    fingerprint = "length"

    def scores(self, batch, last_B):
        length_B = batch["segment_ids_BT"].sum(1) - 2
        return jnp.asarray(1.0 * (batch["tokens_BT"][:, 2] >= 4) + length_B / 32, jnp.float32)

    def rewards(self, score_B, sources):
        return np.asarray(score_B, np.float32)

    def scales(self, sources):
        return np.zeros(len(sources), np.float32), np.ones(len(sources), np.float32)


class Short:
    """Asks for answers that begin well and have at most five words."""

    def load(self):
        def follows(answer):
            return answer[:1] in LIKED and keeps(answer, {"most_words": 5})

        return CheckedSet([Checked("short", prompt, follows) for prompt in PROMPTS], (STOP,), Spoken())


def train(folder, patience):
    objective = PPO(MODEL, temperature=1.0)
    weights = write_weights(folder / "reference", first_params(objective)["policy"])
    source = rollouts(
        weights,
        objective=objective,
        prompts=Numbers(tuple(PROMPTS), length=2),
        reward=LikesLength(),
        episodes=64,
        new_tokens=NEW_TOKENS,
        epochs=EPOCHS,
        minibatches=1,
        lessons=Lessons(beta=0.01, missing_stop_penalty=0.0),
        settings=EngineSettings(slots=64, chunk=2, steps=4, listed=1, prefix_tokens=0, prefill_tokens=10**6),
    )
    evaluator = InstructionFollowing(objective, Short(), every=EVERY, new_tokens=NEW_TOKENS, temperature=1.0)
    complete = Experiment(
        run_dir=str(folder / "run"),
        steps=ROLLOUTS * EPOCHS,
        seed=0,
        objective=objective,
        source=source,
        optimizer=AdamW(Linear(5e-3, ROLLOUTS * EPOCHS, final_share=1.0), weight_decay=0.0, b2=0.999, epsilon=1e-5),
        layout=LAYOUT,
        save_every=ROLLOUTS * EPOCHS,
        watch=Watch("eval/instructions/followed", lower_is_better=False, patience=patience),
        spikes=SpikeGuard(loss=False),
        evaluators=(evaluator,),
        trackers=(JsonLines(),),
        init_from={"policy": weights},
        fresh=("value",),
    ).run()
    assert complete
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    followed = {
        line["step"]: line["eval/instructions/followed"] for line in lines if "eval/instructions/followed" in line
    }
    return followed, [line["objective/score"] for line in lines if "objective/score" in line]


def test_instructions_stop_a_run_whose_judge_is_being_pleased(tmp_path):
    followed, score = train(tmp_path, patience=3)
    best = max(list(followed)[1:], key=followed.get)
    assert max(followed) == best + 3 * EVERY < ROLLOUTS * EPOCHS / 2, "it stopped, three measurements after the best"
    assert followed[best] >= 0.9 * max(followed.values())
    assert followed[max(followed)] < followed[best]
    assert (tmp_path / "run" / "checkpoints" / str(best)).is_dir()
    assert score[-1] > score[0], "what the judge says would not have stopped it"


@pytest.mark.slow
def test_without_them_the_judge_is_pleased_by_length_alone(tmp_path):
    followed, score = train(tmp_path, patience=None)
    assert max(followed) == ROLLOUTS * EPOCHS
    assert followed[max(followed)] <= max(followed.values()) / 4
    assert np.mean(score[-5:]) > np.mean(score[:5]) + 0.4
