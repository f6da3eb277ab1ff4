"""Rows of comparisons: stored texts as the arrays that objectives over comparisons read."""

from collections.abc import Sequence

import numpy as np

from hcxjax.data.conversation_batches import Rows
from hcxjax.data.preference_store import PreferenceStore
from hcxjax.mesh import Layout
from hcxjax.text.vocabulary import Vocabulary


class PairBuilder:
    """The arrays of rows of comparisons, which are numbered through all stores.

    Args:
      stores: of the sources, in the order of their numbers.
      vocabulary: gives the id of padding.
      first_source: number of the first store's source.
    """

    def __init__(self, stores: Sequence[PreferenceStore], vocabulary: Vocabulary, first_source: int = 0):
        self._stores, self._pad, self._first_source = stores, vocabulary.pad, first_source
        self._ends = np.cumsum([len(store) for store in stores])
        self.lengths = np.concatenate([store.lengths for store in stores])
        self.prompts = np.concatenate([store.prompts for store in stores])
        self._margins = np.concatenate([store.margins for store in stores])
        _, self._numbers = np.unique(self.prompts, return_inverse=True)

    @property
    def count(self) -> int:
        """Comparisons in all."""
        return len(self.lengths)

    def build(self, rows: Rows, start: int, stop: int) -> dict[str, np.ndarray]:
        """Rows start..stop-1 of a batch, as `hcxjax.objectives.comparisons` says; rows without one weigh nothing."""
        chosen = rows.conversations[start:stop]
        built = [self._row(row[0], rows.length) if row else self._empty(rows.length) for row in chosen]
        return {name: np.stack([row[name] for row in built]) for name in built[0]}

    def _row(self, number: int, length: int) -> dict[str, np.ndarray]:
        store = int(np.searchsorted(self._ends, number, side="right"))
        before = int(self._ends[store - 1]) if store else 0
        row = self._empty(length)
        for name, text in zip(("chosen", "rejected"), self._stores[store].texts(number - before), strict=True):
            row[f"{name}_tokens_BT"][: len(text.tokens)] = text.tokens
            row[f"{name}_end_B"][...] = len(text.tokens) - 1
            row["start_B"][...] = text.start
        row["margin_B"][...] = self._margins[number]
        row["weight_B"][...] = 1
        row["source_B"][...] = self._first_source + store
        row["prompt_B"][...] = self._numbers[number]
        return row

    def _empty(self, length: int) -> dict[str, np.ndarray]:
        tokens = {f"{name}_tokens_BT": np.full(length, self._pad, np.int32) for name in ("chosen", "rejected")}
        whole = ("chosen_end_B", "rejected_end_B", "start_B", "source_B", "prompt_B")
        tokens |= {name: np.zeros((), np.int32) for name in whole}
        return tokens | {name: np.zeros((), np.float32) for name in ("margin_B", "weight_B")}


def check_rows(rows: int, length: int, batch_tokens: int, layout: Layout) -> None:
    """ValueError unless the longest rows of a batch divide over the mesh; those of other buckets then do too."""
    shards = layout.batch_shards
    if not rows or rows % shards:
        raise ValueError(
            f"BATCH_TOKENS is {batch_tokens}, which is {rows} comparisons of two texts of LENGTH {length}; they must "
            f"be a positive multiple of {shards} (mesh shards of the batch): set it to {2 * length * shards} or a "
            "multiple"
        )
