"""Whole held-out documents in packed rows, with their bytes counted, so that bits per byte can be told by source."""

import dataclasses

import numpy as np

from hcxjax.data.corpus import Corpus
from hcxjax.data.packing import MIN_PIECE, Infilling, RowBuilder, empty_row, pack
from hcxjax.data.store import TokenStore
from hcxjax.text.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class HeldOutSource:
    """Held-out documents of one source.

    Attributes:
      batches: host arrays tokens_BT, targets_BT, segment_ids_BT, positions_BT, weights_BT and source_B, each of whole
        batches; rows beyond the last are padding of weight 0.
      documents: how many; every one is covered whole, no infilling.
      bytes: their UTF-8 bytes. The targets also hold one end of text a document, which is no byte of it.
      targets: sum of the weights.
    """

    batches: list[dict[str, np.ndarray]]
    documents: int
    bytes: int
    targets: int


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Reads the validation split; opens nothing until `load`.

    Attributes:
      corpus: what is read.
      length: positions of a row (T).
      batch: rows of a batch (B).
      max_rows: of each source, at most.
    """

    corpus: Corpus
    length: int
    batch: int
    max_rows: int = 64

    def load(self) -> dict[str, HeldOutSource]:
        """The held-out documents of each source by its name in the corpus.

        Raises:
          ValueError: `batch` or `max_rows` is not positive, or too small for the first document of a source.
        """
        for name in ("batch", "max_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"HeldOut.{name} is {getattr(self, name)}; it must be positive")
        vocabulary = self.corpus.vocabulary()
        stores = self.corpus.stores("validation")
        return {name: self._load(number, name, stores[name], vocabulary) for number, name in enumerate(stores)}

    def _load(self, number: int, name: str, store: TokenStore, vocabulary: Vocabulary) -> HeldOutSource:
        covered = self._covered(name, store)
        plan = pack(store.lengths[:covered], self.length, Infilling(rate=0.0), key=())
        builder = RowBuilder(store, vocabulary, suffix_first_share=0.0)
        rows = [builder.build(plan.row(row), self.length, key=()) for row in range(plan.rows)]
        padding = empty_row(self.length, vocabulary.pad)
        rows += [padding] * (-len(rows) % self.batch)
        batches = [_stacked(rows[at : at + self.batch], number) for at in range(0, len(rows), self.batch)]
        return HeldOutSource(
            batches, covered, int(store.byte_lengths[:covered].sum()), int(store.lengths[:covered].sum()) + covered
        )

    def _covered(self, name: str, store: TokenStore) -> int:
        """Documents, from the first, that surely fit into `max_rows` rows: each may leave `MIN_PIECE` - 1 unused."""
        needed = np.cumsum(store.lengths + MIN_PIECE)
        covered = int(np.searchsorted(needed, self.max_rows * self.length, side="right"))
        if not covered:
            raise ValueError(
                f"the first held-out document of {name!r} has {store.lengths[0]} tokens, more than "
                f"{self.max_rows} rows of {self.length} hold; "
                f"set HeldOut.max_rows to {-(-int(needed[0]) // self.length)} or more"
            )
        return covered


def _stacked(rows: list[dict[str, np.ndarray]], source: int) -> dict[str, np.ndarray]:
    arrays = {f"{name}_BT": np.stack([row[name] for row in rows]) for name in rows[0]}
    return {**arrays, "source_B": np.full(len(rows), source, np.int32)}
