"""Batches of comparisons: a function of the seed and the step, whatever the mesh or the number of hosts."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from typing import ClassVar

import jax
import numpy as np

from hcxjax.checks import whole
from hcxjax.data.conversation_batches import LengthBatches, halvings, rows_of
from hcxjax.data.hashing import fingerprint
from hcxjax.data.kept_tokenizer import check_same, keep, kept
from hcxjax.data.pair_rows import PairBuilder, check_rows
from hcxjax.data.planned import Planned
from hcxjax.data.preference_batches import PromptBatches
from hcxjax.data.preferences import Preferences
from hcxjax.mesh import Layout
from hcxjax.objectives.dpo import DPO
from hcxjax.protocols import Batch, Params, Source
from hcxjax.text.vocabulary import Vocabulary
from hcxjax.warm_start import Origin, read_frozen

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class Comparisons(Planned):
    """The `Source` of reward models and of DPO; opens nothing until `start`.

    Batches are as `hcxjax.objectives.comparisons` says, of rows as long as a bucket.

    Attributes:
      preferences: what is read.
      batch_tokens: positions of a batch, at most, over all processes and all texts of each row.
      buckets: row lengths, rising up to `Preferences.length`; None takes that and its halves. A program is compiled for
        each.
      texts: of a row (K), 2 or more. An answer that is compared several times is read once a row, so this is best the
        number of answers that most prompts have; with 2 a row is one comparison.
      seed: decides the order.
      run_dir: where a copy of the vocabulary is kept as `tokenizer/`, for those who read the run's checkpoints; None
        keeps none.
      reference: the folder of the policy that DPO starts from (a run's RUN_DIR, FOLDER@STEP, or an imported model's):
        its log-probabilities go with every batch. None: they do not, as a reward model needs none.
      objective: whose log-probabilities those are.
    """

    MEANING: ClassVar[Mapping[str, str]] = {
        "tokenizer": "the tokenizer (Tokenizer.*, or its file)",
        "comparisons": "the comparisons (Preferences.*, or the files they come from)",
        "batching": "BATCH_TOKENS, LENGTH, SEED, Comparisons.texts or Comparisons.buckets",
        "reference": "the reference's checkpoint, which is newer now: name the old one, FOLDER@STEP",
    }

    preferences: Preferences
    batch_tokens: int
    buckets: tuple[int, ...] | None = None
    texts: int = 2
    seed: int = 0
    run_dir: str | None = None
    reference: str | None = None
    objective: DPO | None = None

    def __post_init__(self):
        whole(self, 1, "batch_tokens")
        whole(self, 2, "texts")
        whole(self, 0, "seed")
        check_buckets(self)
        check_reference(self)
        self._batches_before = 0

    @property
    def length(self) -> int:
        """Positions of the longest row."""
        return self.preferences.length

    def follow(self, before: Source, updates: int) -> None:
        """Reading goes on where that of the same comparisons, in the same batches, ended."""
        if not isinstance(before, Comparisons) or before.preferences != self.preferences:
            return
        if before._settings() == self._settings():
            self._batches_before += updates

    def start(self, layout: Layout, params: Params) -> None:
        """Opens the stores, rendering them on first use, plans the batches and reads the reference.

        Raises:
          ValueError: the sources or the size of a batch make no sense, all comparisons of a prompt find no room in one,
            or the reference knows another vocabulary.
        """
        self.preferences.check()
        buckets = self._bucket_lengths()
        rows = rows_of([self.texts * bucket for bucket in buckets], self.batch_tokens)
        check_rows(rows[-1], self.texts, self.length, self.batch_tokens, layout)
        vocabulary = self.preferences.vocabulary()
        if self.run_dir is not None:
            keep(vocabulary, self.run_dir)
        stores = self.preferences.stores("train")
        self._builder = PairBuilder(list(stores.values()), vocabulary, self.texts)
        self._plan = PromptBatches(self._builder.lengths, self._builder.prompts, buckets, rows, (self.seed,))
        self._reference = None if self.reference is None else Reference(self, vocabulary, layout)
        fingerprints = {
            "tokenizer": fingerprint(vocabulary.fingerprint),
            "comparisons": fingerprint([(name, store.fingerprint) for name, store in stores.items()]),
            "batching": fingerprint(self._settings()),
            "reference": fingerprint(None if self._reference is None else self._reference.step),
        }
        self.ready(layout, fingerprints)
        _log.info(
            "%d comparisons of %d prompts in %d batches an epoch, padding %.1f %%",
            *(self._builder.count, self._plan.prompts, self._plan.an_epoch, 100 * self._plan.padding),
        )

    def _bucket_lengths(self) -> tuple[int, ...]:
        return self.buckets or halvings(self.length)

    def _settings(self) -> list:
        return [self.batch_tokens, self._bucket_lengths(), self.texts, self.seed]

    @property
    def plan(self) -> PromptBatches:
        """Which comparisons make up which batch; there once started."""
        return self._plan

    def next(self, params: Params, step: int) -> Batch:
        """The batch of `step`; the one after it is built meanwhile."""
        if self._batches_before + step == self._plan.an_epoch:
            _log.warning(
                "a second epoch begins at update %d; one is usual, for comparisons are soon overfitted (STEPS)",
                step + 1,
            )
        batch = super().next(params, step)
        return batch if self._reference is None else self._reference(batch)

    def build(self, step: int) -> Batch:
        """The batch of `step`, without the reference's log-probabilities."""
        rows = self._plan.batch(self._batches_before + step)
        return self._layout.shard_batch(
            lambda start, stop: self._builder.build(rows, start, stop), len(rows.conversations)
        )

    def begin_from(self, folder: str) -> None:
        """ValueError where the weights in `folder` were trained with another tokenizer."""
        check_same(self.preferences.vocabulary(), folder)

    def vocabulary(self, known: int) -> Vocabulary:
        """The vocabulary that the run's checkpoint was trained with (`kept_tokenizer.kept`)."""
        return kept(self.run_dir or self.preferences.directory, known)


@dataclasses.dataclass(frozen=True)
class HeldOutComparisons:
    """Reads the comparisons that are held out; opens nothing until it is asked.

    Attributes:
      preferences: what is read.
      batch_tokens: positions of a batch, at most.
      most: comparisons of a source, from the first.
      buckets, texts: as in `Comparisons`.
      reference, objective: as in `Comparisons`; the reference is read, used and let go of.
    """

    preferences: Preferences
    batch_tokens: int
    most: int = 512
    buckets: tuple[int, ...] | None = None
    texts: int = 2
    reference: str | None = None
    objective: DPO | None = None

    def __post_init__(self):
        whole(self, 1, "most", "batch_tokens")
        whole(self, 2, "texts")
        check_buckets(self)
        check_reference(self)

    def load(self, layout: Layout) -> dict[str, list[dict[str, np.ndarray]]]:
        """Host batches by source, in which each comparison comes once; sources without any are left out.

        `prompt_B` numbers prompts within the source.

        Raises:
          ValueError: no source holds one out, or a batch has too few tokens.
        """
        length = self.preferences.length
        buckets = self.buckets or halvings(length)
        rows = rows_of([self.texts * bucket for bucket in buckets], self.batch_tokens)
        check_rows(rows[-1], self.texts, length, self.batch_tokens, layout)
        vocabulary, loaded = self.preferences.vocabulary(), {}
        for number, (name, store) in enumerate(self.preferences.stores("validation").items()):
            if len(store):
                builder = PairBuilder([store.first(self.most)], vocabulary, self.texts, number)
                plan = LengthBatches(builder.lengths.max(axis=1), buckets, rows, None)
                batches = map(plan.batch, range(round(plan.an_epoch)))
                loaded[name] = [builder.build(batch, 0, len(batch.conversations)) for batch in batches]
            else:
                _log.warning("%s holds out no comparison: it is not measured", name)
        if not loaded:
            raise ValueError(
                f"no comparison is held out: Preferences.validation_share is {self.preferences.validation_share}; set "
                "it higher, or leave out the evaluator (Experiment.evaluators = () and Experiment.watch = None)"
            )
        if self.reference is not None:
            judge = Reference(self, vocabulary, layout)
            loaded = {name: [judge.of_host(batch) for batch in batches] for name, batches in loaded.items()}
        return loaded

    def check_policy(self, folder: str) -> None:
        """ValueError where the policy in `folder`, whose answers are to be judged, knows another vocabulary."""
        check_same(self.preferences.vocabulary(), folder)

    def learnt(self, most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(chosen, rejected) of the comparisons that are trained on, `most` of each source: tokens of the answers."""
        for store in self.preferences.stores("train").values():
            for number in range(min(most, len(store))):
                chosen, rejected = store.texts(number)
                yield np.asarray(chosen.tokens[chosen.start :]), np.asarray(rejected.tokens[rejected.start :])


class Reference:
    """The frozen policy that DPO's log-ratios are against.

    Args:
      owner: names it, and whose log-probabilities they are.
      vocabulary: that of the comparisons.
      layout: the devices that it lies on.
    Raises:
      ValueError: it knows another vocabulary.
    """

    def __init__(self, owner: Comparisons | HeldOutComparisons, vocabulary: Vocabulary, layout: Layout):
        assert owner.reference is not None and owner.objective is not None
        origin = Origin.parse(owner.reference)
        check_same(vocabulary, origin.folder)
        self.step, _ = origin.stored()
        self._layout = layout
        self._params = read_frozen(owner.objective.init, owner.reference, layout)
        self._logprobs = jax.jit(owner.objective.logprobs, out_shardings=layout.sharding("batch"))
        self._everywhere = jax.jit(owner.objective.logprobs, out_shardings=layout.sharding())

    def __call__(self, batch: Batch) -> Batch:
        """The batch with the reference's sums of log-probabilities, which are being computed when this returns."""
        with self._layout.active():
            return {**batch, "reference_BK": self._logprobs(self._params, batch)}

    def of_host(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The same, of arrays on the host."""
        batch = self._layout.shard_batch(
            lambda start, stop: {name: value[start:stop] for name, value in rows.items()}, len(rows["start_B"])
        )
        with self._layout.active():
            return {**rows, "reference_BK": jax.device_get(self._everywhere(self._params, batch))}


def check_buckets(owner: Comparisons | HeldOutComparisons) -> None:
    """ValueError unless row lengths, where they are named, rise up to the longest text's."""
    if owner.buckets is None:
        return
    field, given, length = f"{type(owner).__name__}.buckets", list(owner.buckets), owner.preferences.length
    if not given or given[0] < 1 or given != sorted(set(given)) or given[-1] != length:
        raise ValueError(f"{field} is {owner.buckets}; they must be positive and rise up to LENGTH, {length}")


def check_reference(owner: Comparisons | HeldOutComparisons) -> None:
    """ValueError where a reference is named without what says how its log-probabilities are computed."""
    if owner.reference is not None and owner.objective is None:
        kind = type(owner).__name__
        raise ValueError(f"{kind}.reference is {owner.reference!r}, but {kind}.objective is None: set it to @DPO()")
