"""Batches of comparisons: texts of a prompt, each read once however often it is compared.

A row holds K texts with the same prompt, all of the row's width T, and the comparisons between them.

| array                  | what it holds                                                                               |
|------------------------|---------------------------------------------------------------------------------------------|
| `tokens_BKT`           | int32: prompt, answer and what ends it; then padding; a missing text is all padding         |
| `start_B`              | int32: place of the first token of the answers: the prompt's length                         |
| `end_BK`               | int32: place of the last token of each text; 0 for a missing one                            |
| `preferred_BKK`        | float32: [b, i, j] is 1 where a comparison says that text i is better than text j; 0 if not |
| `margin_BKK`           | float32: how much better, where preferred, by whoever compared; or 0                        |
| `source_B`, `prompt_B` | int32: numbers of the source and of the prompt; no loss looks at these                      |

Rows that fill up a batch hold no text and no comparison. `preferred_BKK` sums to the number of comparisons, each of
which weighs the same.

Source: Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155, section 3.5: all comparisons of K answers from K forward
passes.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp

from hcxjax.protocols import Array, Batch, Mean
from hcxjax.shapes import shaped


class Texts(NamedTuple):
    """The texts of all rows of comparisons as rows of their own, K times as many; those of a row side by side.

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
    """All texts of a batch. Those of a row lie side by side, so that none leaves its device."""
    tokens_BKT = batch["tokens_BKT"]
    tokens_BT, end_B = tokens_BKT.reshape(-1, tokens_BKT.shape[-1]), batch["end_BK"].reshape(-1)
    start_B = jnp.repeat(batch["start_B"], tokens_BKT.shape[1])
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape)
    here_BT = positions_BT <= end_B[:, None]
    return Texts(
        tokens_BT, here_BT.astype(jnp.int32), positions_BT, here_BT & (positions_BT >= start_B[:, None]), end_B
    )


@shaped
def less(x_BK: Array) -> Array:
    """difference_BKK: [b, i, j] is the number of text i less that of text j."""
    return x_BK[:, :, None] - x_BK[:, None, :]


def measured(batch: Batch, sources: Sequence[str], numbers: Mapping[str, Array]) -> dict[str, Mean]:
    """Means over the comparisons, and those of loss and accuracy by source.

    Args:
      sources: names, in the order of `source_B`.
      numbers: name → a number of each comparison, where `preferred_BKK` has it; `loss` and `accuracy` among them.
    """
    preferred_BKK = batch["preferred_BKK"]
    count_B, count = jnp.sum(preferred_BKK, (1, 2)), jnp.sum(preferred_BKK)
    sums = {name: jnp.sum(number_BKK * preferred_BKK, (1, 2)) for name, number_BKK in numbers.items()}
    metrics = {name: Mean(jnp.sum(sum_B), count) for name, sum_B in sums.items()}
    positions, end_BK = jnp.float32(batch["tokens_BKT"].size), batch["end_BK"]
    metrics["padding"] = Mean(positions - jnp.sum(end_BK + (end_BK > 0.0)), positions)
    for number, name in enumerate(sources):
        here_B = batch["source_B"] == number
        here = jnp.sum(count_B * here_B)
        metrics[f"share/{name}"] = Mean(here, count)
        for what in ("loss", "accuracy"):
            metrics[f"{what}/{name}"] = Mean(jnp.sum(sums[what] * here_B), here)
    return metrics
