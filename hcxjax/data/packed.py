"""Batches of packed rows: a function of the seed and the step, whatever the mesh or the number of hosts."""

import dataclasses
from collections.abc import Mapping
from fractions import Fraction
from typing import ClassVar

import jax
import numpy as np

from hcxjax.checks import whole
from hcxjax.data.corpus import Corpus
from hcxjax.data.epochs import Epochs
from hcxjax.data.hashing import fingerprint
from hcxjax.data.kept_tokenizer import check_same, keep, kept
from hcxjax.data.mixing import Balance, deal, shares
from hcxjax.data.packing import Infilling, RowBuilder
from hcxjax.data.planned import Planned
from hcxjax.mesh import Layout
from hcxjax.protocols import Batch, Params, Source
from hcxjax.text.vocabulary import FIM_MIDDLE, FIM_PREFIX, FIM_SUFFIX, Vocabulary


@dataclasses.dataclass
class PackedTokens(Planned):
    """The `Source` of pretraining; opens nothing until `start`.

    Attributes:
      corpus: what is read.
      length: positions of a row (T).
      batch: rows of a batch (B), over all processes.
      rates: name of a source → its share of the tokens, up to a common factor; a `Balance` goes by the sources' sizes;
        None gives equal shares.
      seed: decides order and infilling.
      infilling: how much is fed out of order.
      run_dir: where a copy of the vocabulary is kept as `tokenizer/`, for those who read the run's checkpoints; None
        keeps none.
    """

    MEANING: ClassVar[Mapping[str, str]] = {
        "tokenizer": "the tokenizer (Tokenizer.*, or the model file)",
        "corpus": "the documents (Corpus.*, or the files they come from)",
        "packing": "rates, LENGTH, BATCH, SEED or Infilling.*",
    }

    corpus: Corpus
    length: int
    batch: int
    rates: Mapping[str, float] | Balance | None = None
    seed: int = 0
    infilling: Infilling = dataclasses.field(default_factory=Infilling)
    run_dir: str | None = None

    def __post_init__(self):
        whole(self, 1, "length", "batch")
        whole(self, 0, "seed")

        self._tokens_before = 0

    def follow(self, before: Source, updates: int) -> None:
        """Reading goes on where that of the same sources ended, to within a window of blocks at the same rates."""
        if isinstance(before, PackedTokens) and before.corpus.sources == self.corpus.sources:
            self._tokens_before += updates * before.batch * before.length

    def start(self, layout: Layout, params: Params) -> None:
        """Opens the stores, writing them on first use, and plans their rows.

        Raises:
          ValueError: the corpus, the rates, the length or the batch make no sense.
        """
        self.corpus.check()
        layout.check_batch(self.batch)
        rates = None if isinstance(self.rates, Balance) else self.rates
        self._shares: list[Fraction] = list(shares(rates, self.corpus.names).values())
        vocabulary = self.corpus.vocabulary()
        self._check_sentinels(vocabulary)
        if self.run_dir is not None:
            keep(vocabulary, self.run_dir)
        stores = self.corpus.stores("train")
        if isinstance(self.rates, Balance):
            rates = self.rates.rates({name: store.manifest["tokens"] for name, store in stores.items()})
            self._shares = list(shares(rates, self.corpus.names).values())
        self._epochs = [
            Epochs(store.lengths, self.length, self.infilling, (self.seed, number))
            for number, store in enumerate(stores.values())
        ]
        share = self.infilling.suffix_first_share
        self._builders = [RowBuilder(store, vocabulary, share) for store in stores.values()]
        fingerprints = {
            "tokenizer": fingerprint(vocabulary.fingerprint),
            "corpus": fingerprint([(name, store.fingerprint) for name, store in stores.items()]),
            "packing": self._packing_fingerprint(),
        }
        self.ready(layout, fingerprints)

    def _check_sentinels(self, vocabulary: Vocabulary) -> None:
        missing = [name for name in (FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX) if name not in vocabulary.specials]
        if self.infilling.rate > 0 and missing:
            raise ValueError(
                f"Infilling.rate (INFILL_RATE) is {self.infilling.rate}, but {vocabulary.path} has no special "
                f"{', '.join(missing)}; set INFILL_RATE to 0, or take another tokenizer"
            )

    def _packing_fingerprint(self) -> int:
        rates = [(share.numerator, share.denominator) for share in self._shares]
        infilling = dataclasses.asdict(self.infilling)
        return fingerprint(self.seed, self.length, self.batch, rates, infilling)

    def plans(self) -> list[tuple[str, Epochs, Fraction]]:
        """Name, rows and share of each source, in the order of their numbers."""
        return list(zip(self.corpus.names, self._epochs, self._shares, strict=True))

    @property
    def padding(self) -> float:
        """Share of the first epoch's positions that hold nothing, at the rates of the mixture (`Epochs.padding`)."""
        return float(sum(share * epochs.padding for _, epochs, share in self.plans()))

    def rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Global rows start..stop-1, counted from the first row of step 0.

        Returns: tokens_BT, targets_BT, segment_ids_BT, positions_BT (int32), weights_BT (float32), source_B (int32).
        """
        built, sources = [], []
        skipped = self._tokens_before // self.length
        for row in range(skipped + start, skipped + stop):
            source, number = deal(row, self._shares)
            epoch, place, plan = self._epochs[source].locate(number)
            built.append(self._builders[source].build(plan.row(place), self.length, (self.seed, source, epoch)))
            sources.append(source)
        arrays = {f"{name}_BT": np.stack([row[name] for row in built]) for name in built[0]}
        return {**arrays, "source_B": np.array(sources, np.int32)}

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Of the arrays of a batch."""
        whole = (self.batch, self.length)
        tokens = ("tokens_BT", "targets_BT", "segment_ids_BT", "positions_BT")
        return {
            **{name: jax.ShapeDtypeStruct(whole, np.int32) for name in tokens},
            "weights_BT": jax.ShapeDtypeStruct(whole, np.float32),
            "source_B": jax.ShapeDtypeStruct((self.batch,), np.int32),
        }

    def build(self, step: int) -> Batch:
        """The batch of `step`."""
        first = step * self.batch
        return self._layout.shard_batch(lambda start, stop: self.rows(first + start, first + stop), self.batch)

    def vocabulary(self, known: int) -> Vocabulary:
        """The vocabulary that the run's checkpoint was trained with, read from `run_dir`.

        Args:
          known: `tokenizer` in the source's state.
        Raises:
          ValueError: it is not there, or is another one.
        """
        return kept(self.run_dir or self.corpus.directory, known)

    def begin_from(self, folder: str) -> None:
        """ValueError where the weights in `folder` were trained with another tokenizer."""
        check_same(self.corpus.vocabulary(), folder)
