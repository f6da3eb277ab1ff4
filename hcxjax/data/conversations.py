"""Batches of conversations: a function of the seed and the step, whatever the mesh or the number of hosts."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from hcxjax.checks import whole
from hcxjax.data.conversation_batches import (
    Batches,
    LengthBatches,
    PackedBatches,
    Rows,
    halvings,
    rows_of,
)
from hcxjax.data.conversation_store import ConversationStore
from hcxjax.data.dialogues import Dialogues
from hcxjax.data.hashing import fingerprint
from hcxjax.data.kept_tokenizer import check_same, keep, kept
from hcxjax.data.packing import empty_row
from hcxjax.data.planned import Planned
from hcxjax.mesh import Layout
from hcxjax.protocols import Batch, Params, Source
from hcxjax.text.rendering import Rendered
from hcxjax.text.vocabulary import Vocabulary

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class Conversations(Planned):
    """The `Source` of supervised fine-tuning; opens nothing until `start`.

    Attributes:
      dialogues: what is read.
      batch_tokens: positions of a batch, at most, over all processes: rows are longer or more.
      packing: conversations share rows of the full length; otherwise those of similar length share a batch.
      buckets: row lengths, rising up to `Dialogues.length`; None takes that and its halves. A program is compiled for
        each.
      seed: decides the order.
      run_dir: where a copy of the vocabulary is kept as `tokenizer/`, for those who read the run's checkpoints; None
        keeps none.
    """

    MEANING: ClassVar[Mapping[str, str]] = {
        "tokenizer": "the tokenizer (Tokenizer.*, or its file)",
        "conversations": "the conversations (Dialogues.*, or the files they come from)",
        "batching": "BATCH_TOKENS, LENGTH, SEED, PACKING or Conversations.buckets",
    }

    dialogues: Dialogues
    batch_tokens: int
    packing: bool = False
    buckets: tuple[int, ...] | None = None
    seed: int = 0
    run_dir: str | None = None

    def __post_init__(self):
        whole(self, 1, "batch_tokens")
        whole(self, 0, "seed")
        check_buckets(self.buckets, self.dialogues.length)
        self._batches_before = 0

    @property
    def length(self) -> int:
        """Positions of the longest row."""
        return self.dialogues.length

    def follow(self, before: Source, updates: int) -> None:
        """Reading goes on where that of the same dialogues, in the same batches, ended."""
        if not isinstance(before, Conversations) or before.dialogues != self.dialogues:
            return
        if before._settings() == self._settings():
            self._batches_before += updates

    def start(self, layout: Layout, params: Params) -> None:
        """Opens the stores, rendering them on first use, and plans the batches.

        Raises:
          ValueError: the dialogues or the size of a batch make no sense.
        """
        self.dialogues.check()
        rows = rows_of(self._bucket_lengths(), self.batch_tokens)
        check_rows(rows[-1], self.length, self.batch_tokens, layout)
        vocabulary = self.dialogues.vocabulary()
        if self.run_dir is not None:
            keep(vocabulary, self.run_dir)
        stores = self.dialogues.stores("train")
        self._builder = RowBuilder(list(stores.values()), vocabulary)
        self._plan = self._planned(rows)
        fingerprints = {
            "tokenizer": fingerprint(vocabulary.fingerprint),
            "conversations": fingerprint([(name, store.fingerprint) for name, store in stores.items()]),
            "batching": fingerprint(self._settings()),
        }
        self.ready(layout, fingerprints)
        _log.info(
            "%d conversations in %.1f batches an epoch, padding %.1f %%",
            *(self._builder.count, self._plan.an_epoch, 100 * self._plan.padding),
        )

    def _bucket_lengths(self) -> tuple[int, ...]:
        return (self.length,) if self.packing else self.buckets or halvings(self.length)

    def _planned(self, rows: Sequence[int]) -> Batches:
        lengths, key = self._builder.lengths, (self.seed,)
        if self.packing:
            return PackedBatches(lengths, self._builder.sources, self.length, rows[-1], key)
        return LengthBatches(lengths, self._bucket_lengths(), rows, key)

    def _settings(self) -> list:
        return [self.batch_tokens, self.packing, self._bucket_lengths(), self.seed]

    @property
    def plan(self) -> Batches:
        """Which conversations make up which batch; there once started."""
        return self._plan

    def build(self, step: int) -> Batch:
        """The batch of `step`."""
        rows = self._plan.batch(self._batches_before + step)
        return self._layout.shard_batch(
            lambda start, stop: self._builder.build(rows, start, stop), len(rows.conversations)
        )

    def begin_from(self, folder: str) -> None:
        """ValueError where the weights in `folder` were trained with another tokenizer."""
        check_same(self.dialogues.vocabulary(), folder)

    def vocabulary(self, known: int) -> Vocabulary:
        """The vocabulary that the run's checkpoint was trained with (`kept_tokenizer.kept`)."""
        return kept(self.run_dir or self.dialogues.directory, known)


@dataclasses.dataclass(frozen=True)
class HeldOutConversations:
    """Reads the conversations that are held out; opens nothing until `load`.

    Attributes:
      dialogues: what is read.
      batch_tokens: positions of a batch, at most.
      most: conversations of a source, from the first.
    """

    dialogues: Dialogues
    batch_tokens: int
    most: int = 512

    def load(self, layout: Layout) -> dict[str, list[dict[str, np.ndarray]]]:
        """Host batches by source, in which each conversation comes once; sources without any are left out.

        Raises:
          ValueError: no source holds one out, or a batch has too few tokens.
        """
        whole(self, 1, "most", "batch_tokens")
        length = self.dialogues.length
        buckets = halvings(length)
        rows = rows_of(buckets, self.batch_tokens)
        check_rows(rows[-1], length, self.batch_tokens, layout)
        vocabulary, loaded = self.dialogues.vocabulary(), {}
        for number, (name, store) in enumerate(self.dialogues.stores("validation").items()):
            if len(store):
                builder = RowBuilder([store], vocabulary, number)
                plan = LengthBatches(builder.lengths[: self.most], buckets, rows, None)
                batches = map(plan.batch, range(round(plan.an_epoch)))
                loaded[name] = [builder.build(batch, 0, len(batch.conversations)) for batch in batches]
            else:
                _log.warning("%s holds out no conversation: it is not measured", name)
        if not loaded:
            raise ValueError(
                f"no conversation is held out: Dialogues.validation_share is {self.dialogues.validation_share}; set it "
                "higher, or leave out the evaluator (Experiment.evaluators = () and Experiment.watch = None)"
            )
        return loaded


class RowBuilder:
    """The arrays of rows of conversations, which are numbered through all stores.

    Args:
      stores: of the sources, in the order of their numbers.
      vocabulary: gives the id of padding.
      first_source: number of the first store's source.
    """

    def __init__(self, stores: Sequence[ConversationStore], vocabulary: Vocabulary, first_source: int = 0):
        self._stores, self._pad, self._first_source = stores, vocabulary.pad, first_source
        self._ends = np.cumsum([len(store) for store in stores])
        self.lengths = np.concatenate([store.lengths for store in stores]) - 1
        self.sources = np.repeat(np.arange(len(stores)), [len(store) for store in stores])

    @property
    def count(self) -> int:
        """Conversations in all."""
        return len(self.lengths)

    def build(self, rows: Rows, start: int, stop: int) -> dict[str, np.ndarray]:
        """Rows start..stop-1 of a batch.

        Returns: tokens_BT, targets_BT, segment_ids_BT, positions_BT (int32), weights_BT (float32), source_B (int32).
        """
        chosen = rows.conversations[start:stop]
        built = [self._row(row, rows.length) for row in chosen]
        sources = [self._first_source + int(self.sources[row[0]]) if row else self._first_source for row in chosen]
        arrays = {f"{name}_BT": np.stack([row[name] for row in built]) for name in built[0]}
        return {**arrays, "source_B": np.array(sources, np.int32)}

    def _row(self, conversations: Sequence[int], length: int) -> dict[str, np.ndarray]:
        return row_of([self._conversation(number) for number in conversations], length, self._pad)

    def _conversation(self, number: int) -> Rendered:
        store = int(np.searchsorted(self._ends, number, side="right"))
        before = int(self._ends[store - 1]) if store else 0
        return self._stores[store].conversation(number - before)


def row_of(conversations: Sequence[Rendered], length: int, pad: int) -> dict[str, np.ndarray]:
    """Arrays of a row, without a batch axis: each conversation a segment of its own, weights on what is learnt."""
    row, at = empty_row(length, pad), 0
    for number, (tokens, learnt) in enumerate(conversations, 1):
        here = slice(at, at + len(tokens) - 1)
        row["tokens"][here], row["targets"][here], row["weights"][here] = tokens[:-1], tokens[1:], learnt[1:]
        row["segment_ids"][here], row["positions"][here] = number, np.arange(len(tokens) - 1)
        at = here.stop
    return row


def check_buckets(buckets: tuple[int, ...] | None, length: int) -> None:
    """ValueError unless the buckets rise up to `length`."""
    if buckets is not None and (not buckets or list(buckets) != sorted(set(buckets)) or buckets[-1] != length):
        raise ValueError(f"Conversations.buckets is {buckets}; they must rise up to LENGTH, {length}")
    if buckets is not None and buckets[0] < 1:
        raise ValueError(f"Conversations.buckets is {buckets}; row lengths must be positive")


def check_rows(rows: int, length: int, batch_tokens: int, layout: Layout) -> None:
    """ValueError unless the longest rows of a batch divide over the mesh; those of other buckets then do too."""
    shards = layout.batch_shards
    if not rows or rows % shards:
        raise ValueError(
            f"BATCH_TOKENS is {batch_tokens}, which is {rows} rows of LENGTH {length}; they must be a positive "
            f"multiple of {shards} (mesh shards of the batch): set it to {length * shards} or a multiple"
        )
