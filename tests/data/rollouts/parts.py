"""What rollouts are made of, small: prompts that are numbers, a judge that is a rule, weights in folders."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from hcxjax.checkpoint import CheckpointFolder, KeepPolicy
from hcxjax.data.rollouts.source import Rollouts
from hcxjax.inference.engine import EngineSettings
from hcxjax.mesh import Layout, unbox
from hcxjax.models.config import DecoderConfig
from hcxjax.objectives.ppo import PPO

STOP = 0
MODEL = DecoderConfig(
    vocab_size=12,
    num_layers=1,
    embed_dim=16,
    mlp_dim=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    max_length=16,
    rope_theta=100.0,
    dtype="float32",
)
LAYOUT = Layout(data=1, devices=(0, 1))


class Words:
    """A vocabulary that needs no file."""

    path = "words"
    fingerprint = "words"

    def decode(self, ids, *, specials=False):
        return " ".join(map(str, ids))


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Prompts of 1 to 4 tokens, in their order."""

    tokens: tuple[tuple[int, ...], ...]
    length: int = 4
    stop_ids: tuple[int, ...] = (STOP,)
    fingerprint: int = 7

    vocabulary = Words()

    def load(self, split):
        return self

    def __len__(self):
        return len(self.tokens)

    @property
    def sources(self):
        return ["numbers"] * len(self.tokens)

    def batch(self, update, size, seed):
        return (np.arange(size) + update * size + seed) % len(self.tokens)


PROMPTS = Numbers(((3,), (4, 5), (6, 7, 8), (9, 3, 9, 3), (5,), (8, 8)))


class LikesSevens:
    """Scores how many sevens a row holds, less a third of its length."""

    fingerprint = "sevens"

    def scores(self, batch, last_B):
        here_BT = batch["segment_ids_BT"] > 0
        return jnp.asarray(((batch["tokens_BT"] == 7) & here_BT).sum(1) - here_BT.sum(1) / 3, jnp.float32)

    def rewards(self, score_B, sources):
        return np.asarray(score_B, np.float32)

    def scales(self, sources):
        return np.zeros(len(sources), np.float32), np.ones(len(sources), np.float32)


def write_weights(folder, params, step=0):
    """A folder whose newest checkpoint holds these parameters."""
    checkpoints = CheckpointFolder(folder / "checkpoints", KeepPolicy())
    checkpoints.save(step, {"state": {"params": params}})
    checkpoints.close()
    return str(folder)


def first_params(objective, seed=0):
    return unbox(objective.init(jax.random.key(seed)))


def rollouts(reference: str, **changes) -> Rollouts:
    defaults = {
        "objective": PPO(MODEL, temperature=0.7),
        "prompts": PROMPTS,
        "reward": LikesSevens(),
        "reference": reference,
        "episodes": 8,
        "new_tokens": 6,
        "epochs": 2,
        "minibatches": 2,
        "settings": EngineSettings(slots=4, chunk=16, steps=2, listed=1, prefix_tokens=0),
        "logged": 0,
    }
    return Rollouts(**defaults | changes)
