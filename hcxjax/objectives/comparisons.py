"""Batches of comparisons: two answers to a prompt, read in one pass.

A row is one comparison, and both of its texts have the row's width T.

| array                                    | what it holds                                                          |
|------------------------------------------|------------------------------------------------------------------------|
| `chosen_tokens_BT`, `rejected_tokens_BT` | int32: prompt, answer and what ends it; then padding                   |
| `start_B`                                | int32: place of the first token of either answer: the prompt's length  |
| `chosen_end_B`, `rejected_end_B`         | int32: place of the last token                                         |
| `margin_B`                               | float32: how much better the chosen one is, by whoever compared; or 0  |
| `weight_B`                               | float32: 1; 0 for rows that fill up a batch                            |
| `source_B`, `prompt_B`                   | int32: numbers of the source and of the prompt; no loss looks at these |
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp

from hcxjax.protocols import Array, Batch, Mean


class Texts(NamedTuple):
    """Both texts of each comparison as rows of their own, twice as many: chosen, rejected, chosen, rejected, ….

    Attributes:
      tokens_BT, segment_ids_BT, positions_BT: int32, as a decoder reads them.
      answer_BT: bool, is the token one of the answer?
      end_B: place of the last token.
    """

    tokens_BT: Array
    segment_ids_BT: Array
    positions_BT: Array
    answer_BT: Array
    end_B: Array


def texts(batch: Batch) -> Texts:
    """All texts of a batch. A comparison's two lie side by side, so that no row leaves its device."""
    tokens_BT = _together(batch["chosen_tokens_BT"], batch["rejected_tokens_BT"])
    end_B = _together(batch["chosen_end_B"], batch["rejected_end_B"])
    start_B = _together(batch["start_B"], batch["start_B"])
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape)
    here_BT = positions_BT <= end_B[:, None]
    return Texts(
        tokens_BT, here_BT.astype(jnp.int32), positions_BT, here_BT & (positions_BT >= start_B[:, None]), end_B
    )


def apart(x_B: Array) -> tuple[Array, Array]:
    """(of the chosen, of the rejected) from a number of each of `texts`."""
    x_B2 = x_B.reshape(-1, 2)
    return x_B2[:, 0], x_B2[:, 1]


def measured(batch: Batch, sources: Sequence[str], numbers: Mapping[str, Array]) -> dict[str, Mean]:
    """Means over the comparisons, and those of loss and accuracy by source.

    Args:
      sources: names, in the order of `source_B`.
      numbers: name → a number of each comparison; `loss` and `accuracy` among them.
    """
    weight_B = batch["weight_B"]
    weight = jnp.sum(weight_B)
    metrics = {name: Mean(jnp.sum(number_B * weight_B), weight) for name, number_B in numbers.items()}
    used_B = (batch["chosen_end_B"] + batch["rejected_end_B"] + 2.0) * weight_B
    positions = jnp.float32(2 * batch["chosen_tokens_BT"].size)
    metrics["padding"] = Mean(positions - jnp.sum(used_B), positions)
    for number, name in enumerate(sources):
        here_B = weight_B * (batch["source_B"] == number)
        here = jnp.sum(here_B)
        metrics[f"share/{name}"] = Mean(here, weight)
        for what in ("loss", "accuracy"):
            metrics[f"{what}/{name}"] = Mean(jnp.sum(numbers[what] * here_B), here)
    return metrics


def _together(chosen: Array, rejected: Array) -> Array:
    return jnp.stack([chosen, rejected], axis=1).reshape(-1, *chosen.shape[1:])
