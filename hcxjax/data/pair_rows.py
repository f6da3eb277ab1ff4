"""Rows of comparisons: stored texts as the arrays that objectives over comparisons read."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from hcxjax.data.conversation_batches import Rows
from hcxjax.data.preference_store import PreferenceStore
from hcxjax.mesh import Layout
from hcxjax.text.vocabulary import Vocabulary


def shared(pairs: np.ndarray, texts: int) -> list[tuple[int, ...]]:
    """Which comparisons share a row: each is in one row, and a row compares at most `texts` texts.

    Comparisons that hang together through up to `texts` texts are one row. More are parted greedily: a row begins with
    the first comparison that is left, and takes in the text that is compared most often with those it has, until it is
    full. Two comparisons of the same two texts are in two rows.

    Args:
      pairs: the numbers of the two texts of each comparison, [comparisons, 2]; they differ.
      texts: 2 or more; with 2 every comparison is a row of its own.
    Returns: numbers of comparisons, rising, in rows by their first ones.
    """
    left: dict[int, dict[int, int]] = {}  # text → comparison that is in no row yet → the other text
    for number, (one, two) in enumerate(pairs.tolist()):
        left.setdefault(one, {})[number] = two
        left.setdefault(two, {})[number] = one
    rows = []
    for number, (one, two) in enumerate(pairs.tolist()):
        if number not in left[one]:
            continue
        members = [one, two]
        while len(members) < texts:
            near = Counter(other for text in members for other in left[text].values() if other not in members)
            if not near:
                break
            members.append(near.most_common(1)[0][0])
        found: dict[frozenset[int], int] = {}
        for text in members:
            for comparison, other in left[text].items():
                if other in members:
                    found.setdefault(frozenset((text, other)), comparison)
        for both, comparison in found.items():
            for text in both:
                del left[text][comparison]
        rows.append(tuple(sorted(found.values())))
    return rows


class PairBuilder:
    """The arrays of rows of comparisons, which are numbered through all stores.

    Args:
      stores: of the sources, in the order of their numbers.
      vocabulary: gives the id of padding.
      texts: of a row (K), at most.
      first_source: number of the first store's source.

    Attributes:
      count: comparisons in all.
      lengths: tokens of each text of each row, [rows, K]; 0 where one is missing.
      prompts: what stands for each row's prompt.
    """

    def __init__(self, stores: Sequence[PreferenceStore], vocabulary: Vocabulary, texts: int, first_source: int = 0):
        self._stores, self._pad, self._first_source = stores, vocabulary.pad, first_source
        self.count = sum(map(len, stores))
        self._rows = [(number, row) for number, store in enumerate(stores) for row in shared(store.pairs, texts)]
        # Those of a row in the order of its comparisons: of a single one the preferred text comes first.
        self._texts = [list(dict.fromkeys(stores[store].pairs[[*row]].flat)) for store, row in self._rows]
        self.lengths = np.zeros((len(self._rows), texts), np.int64)
        for lengths, (store, _), members in zip(self.lengths, self._rows, self._texts, strict=True):
            lengths[: len(members)] = stores[store].lengths[members]
        self.prompts = np.array([stores[store].prompts[row[0]] for store, row in self._rows])
        _, self._numbers = np.unique(self.prompts, return_inverse=True)

    def build(self, rows: Rows, start: int, stop: int) -> dict[str, np.ndarray]:
        """Rows start..stop-1 of a batch, as `hcxjax.objectives.comparisons` says; empty ones compare nothing."""
        chosen = rows.conversations[start:stop]
        built = [self._row(row[0], rows.length) if row else self._empty(rows.length) for row in chosen]
        return {name: np.stack([row[name] for row in built]) for name in built[0]}

    def _row(self, number: int, length: int) -> dict[str, np.ndarray]:
        (source, comparisons), members = self._rows[number], self._texts[number]
        store, row = self._stores[source], self._empty(length)
        for place, text in enumerate(map(store.text, members)):
            row["tokens_BKT"][place, : len(text.tokens)] = text.tokens
            row["end_BK"][place] = len(text.tokens) - 1
            row["start_B"][...] = text.start
        for comparison in comparisons:
            pair = tuple(members.index(text) for text in store.pairs[comparison])
            row["preferred_BKK"][pair] = 1
            row["margin_BKK"][pair] = store.margins[comparison]
        row["source_B"][...] = self._first_source + source
        row["prompt_B"][...] = self._numbers[number]
        return row

    def _empty(self, length: int) -> dict[str, np.ndarray]:
        texts = self.lengths.shape[1]
        row = {"tokens_BKT": np.full((texts, length), self._pad, np.int32), "end_BK": np.zeros(texts, np.int32)}
        row |= {name: np.zeros((), np.int32) for name in ("start_B", "source_B", "prompt_B")}
        return row | {name: np.zeros((texts, texts), np.float32) for name in ("preferred_BKK", "margin_BKK")}


def check_rows(rows: int, texts: int, length: int, batch_tokens: int, layout: Layout) -> None:
    """ValueError unless the longest rows of a batch divide over the mesh; those of other buckets then do too."""
    shards = layout.batch_shards
    if not rows or rows % shards:
        raise ValueError(
            f"BATCH_TOKENS is {batch_tokens}, which is {rows} rows of {texts} texts of LENGTH {length}; they must be a "
            f"positive multiple of {shards} (mesh shards of the batch): set it to {texts * length * shards} or a "
            "multiple"
        )
