"""Batches of comparisons for the objectives that learn from them."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def comparisons():
    """(rows, width, vocabulary size, seed) → a batch of answers of several lengths, its last row filling up."""

    def build(rows, width, vocab, seed=0):
        rng = np.random.default_rng(seed)
        start_B = rng.integers(1, width // 2, rows)
        ends_2B = rng.integers(start_B, width, size=(2, rows))
        tokens_2BT = rng.integers(1, vocab, size=(2, rows, width))
        prompt_BT = np.arange(width) < start_B[:, None]
        tokens_2BT[1] = np.where(prompt_BT, tokens_2BT[0], tokens_2BT[1])
        batch = {
            "chosen_tokens_BT": tokens_2BT[0] * (np.arange(width) <= ends_2B[0][:, None]),
            "rejected_tokens_BT": tokens_2BT[1] * (np.arange(width) <= ends_2B[1][:, None]),
            "start_B": start_B,
            "chosen_end_B": ends_2B[0],
            "rejected_end_B": ends_2B[1],
            "source_B": rng.integers(0, 3, rows),
        }
        batch = {name: value.astype(np.int32) for name, value in batch.items()}
        weight_B = np.ones(rows, np.float32)
        weight_B[-1] = 0
        for name, value in batch.items():
            if name != "source_B":
                value[-1] = 0
        return batch | {"margin_B": rng.uniform(0, 2, rows).astype(np.float32) * weight_B, "weight_B": weight_B}

    return build
