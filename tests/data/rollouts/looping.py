"""A language whose speakers fall into loops: what unlikelihood is for, small enough to be learnt in seconds.

An answer has 8 words of welcome, each polite or plain, and then a story of 16. A story counts up through a ring of
words, or goes round three words until it leaves them for the ring. Nothing ends it but the limit.
"""

import numpy as np

from hcxjax.models.config import DecoderConfig
from hcxjax.objectives.language_model import LanguageModel
from hcxjax.optim import AdamW, Linear
from hcxjax.train import Experiment
from tests.data.rollouts.parts import LAYOUT

STOP = 0
WELCOMES, STORY = 8, 16
ANSWER = WELCOMES + STORY
PROMPTS = tuple((one, two) for one in range(1, 5) for two in range(1, 5))
PLAIN = np.arange(5, 13)
POLITE = np.arange(13, 21)
LOOPS = np.arange(21, 33).reshape(4, 3)
RING = np.arange(33, 64)

POLITE_SHARE = 0.1
LOOPING = 0.7
"""Of the stories, how many begin with a loop: one of its own for every first word of the prompt."""
LEAVES, JUMPS = 0.05, 0.1
"""Chances, at every word, to leave a loop, and to go on elsewhere in the ring."""

MODEL = DecoderConfig(
    vocab_size=64,
    num_layers=1,
    embed_dim=48,
    mlp_dim=96,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    max_length=2 + ANSWER,
    rope_theta=100.0,
    tie_embeddings=False,
    init_std=0.18,
    dtype="float32",
)


def told(dice, asked):
    """The words of a story."""
    words, at = [], int(dice.integers(len(RING)))
    loop = LOOPS[asked - 1] if dice.random() < LOOPING else None
    while len(words) < STORY:
        if loop is None:
            words.append(RING[at])
            at = int(dice.integers(len(RING))) if dice.random() < JUMPS else (at + 1) % len(RING)
        else:
            words.append(loop[len(words) % 3])
            loop = None if dice.random() < LEAVES else loop
    return words


def spoken(count, dice):
    """tokens_BT of prompts with their answers."""
    rows = []
    for _ in range(count):
        prompt = PROMPTS[dice.integers(len(PROMPTS))]
        welcome = np.where(dice.random(WELCOMES) < POLITE_SHARE, POLITE, PLAIN)
        rows.append([*prompt, *welcome, *told(dice, prompt[0])])
    return np.array(rows, np.int32)


class Spoken:
    """A `Source` of what is spoken, learnt from the first word of the answers."""

    def __init__(self, seed, rows):
        self.seed, self.rows = seed, rows

    def start(self, layout, params):
        self.layout = layout

    def next(self, params, step):
        tokens_BT = spoken(self.rows, np.random.default_rng((self.seed, step)))
        columns_BT = np.broadcast_to(np.arange(tokens_BT.shape[1], dtype=np.int32), tokens_BT.shape)
        batch = {
            "tokens_BT": tokens_BT,
            "targets_BT": np.roll(tokens_BT, -1, axis=1),
            "segment_ids_BT": np.ones_like(tokens_BT),
            "positions_BT": columns_BT,
            "weights_BT": ((columns_BT >= 1) & (columns_BT < tokens_BT.shape[1] - 1)).astype(np.float32),
        }
        return self.layout.shard_batch(lambda a, b: {name: value[a:b] for name, value in batch.items()}, self.rows)

    def measures(self):
        return {}

    def get_state(self):
        return {}

    def close(self):
        pass


def learn_to_loop(folder, seed, updates, rows):
    """The RUN_DIR of a run that was taught the language by supervision."""
    Experiment(
        run_dir=str(folder),
        steps=updates,
        seed=seed,
        objective=LanguageModel(MODEL),
        source=Spoken(seed, rows),
        optimizer=AdamW(Linear(1e-2, updates), weight_decay=0.0),
        layout=LAYOUT,
        save_every=updates,
    ).run()
    return str(folder)
