"""What is trained on: named sources, the vocabulary they are written in, and their token stores."""

import dataclasses
import importlib
import itertools
import os
from collections.abc import Iterator, Mapping

from hcxjax.data.hashing import fingerprint
from hcxjax.data.publishing import publish
from hcxjax.data.readers import MAX_DOCUMENT_BYTES, Skips
from hcxjax.data.sources import SPLITS, Spec, documents
from hcxjax.data.store import TokenStore, write_store
from hcxjax.data.tokenizer import Tokenizer
from hcxjax.text.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Named sources and where their tokens are kept; touches no file until it is asked for something.

    Attributes:
      sources: name → a source as `hcxjax.data.sources` spells it. Metrics are reported under these names. Sources are
        numbered in the order of their names: a dictionary's own order does not survive being written to a gin file.
      tokenizer: which vocabulary.
      directory: holds tokenizer/ and store/; a run's RUN_DIR, or a place that several runs share.
      max_documents: training documents of each source, from its start; None keeps all.
      max_validation_documents: the same of its validation split.
      max_document_bytes: longer documents are skipped and counted.
      validation_share: share of a source's documents that is held out where it has no validation split of its own.
      task_modules: modules that register the Tasks that `sources` names, such as tasks.pretrain. They are imported when
        a Task is first read, because they import TensorFlow and a run whose stores are written needs none.

    A store is written once for these settings: where files behind a source have changed since, delete its folder.
    """

    sources: Mapping[str, str]
    tokenizer: Tokenizer
    directory: str
    max_documents: int | None = None
    max_validation_documents: int | None = 1000
    max_document_bytes: int = MAX_DOCUMENT_BYTES
    validation_share: float = 0.01
    task_modules: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Names of the sources in the order of their numbers."""
        return sorted(self.sources)

    def check(self) -> None:
        """ValueError unless the settings make sense."""
        if not self.sources:
            raise ValueError("Corpus.sources is empty; name at least one, such as {'ko': 'jsonl:korean.jsonl.gz'}")
        for name, source in self.sources.items():
            if not name or not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(f"Corpus.sources: the name {name!r} must be letters, digits, - and _")
            Spec.parse(source)
        for name in ("max_documents", "max_validation_documents"):
            if (limit := getattr(self, name)) is not None and limit < 1:
                raise ValueError(f"Corpus.{name} is {limit}; it must be positive, or None for all")
        if self.max_document_bytes < 1:
            raise ValueError(f"Corpus.max_document_bytes is {self.max_document_bytes}; it must be positive")
        if not 0 < self.validation_share < 1:
            raise ValueError(f"Corpus.validation_share is {self.validation_share}; it must lie between 0 and 1")

    def vocabulary(self) -> Vocabulary:
        """The vocabulary; trained on equal numbers of bytes of every source on first use."""
        self.check()
        return self.tokenizer.load(os.path.join(self.directory, "tokenizer"), self.sample)

    def stores(self, split: str) -> dict[str, TokenStore]:
        """The token store of each source, written on first use.

        Args:
          split: "train" or "validation".
        Raises:
          ValueError: a source has no document, or a store was damaged.
        """
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is unknown; it must be one of {SPLITS}")
        vocabulary = self.vocabulary()
        return {name: self._store(name, split, vocabulary) for name in self.names}

    def _store(self, name: str, split: str, vocabulary: Vocabulary) -> TokenStore:
        key = fingerprint(self.sources[name], vocabulary.fingerprint, *self._limits(split))
        folder = os.path.join(self.directory, "store", f"{name}-{split}-{key:016x}")

        def write(temporary: str) -> None:
            skips = Skips()
            write_store(temporary, self._documents(name, split, skips), vocabulary, skips, self.sources[name], split)

        publish(folder, write)
        return TokenStore.open(folder)

    def _limits(self, split: str) -> tuple[int | None, int, float]:
        documents_kept = self.max_documents if split == "train" else self.max_validation_documents
        return documents_kept, self.max_document_bytes, self.validation_share

    def _documents(self, name: str, split: str, skips: Skips) -> Iterator[str]:
        for module in self.task_modules:
            importlib.import_module(module)
        texts = documents(
            self.sources[name],
            split,
            validation_share=self.validation_share,
            max_document_bytes=self.max_document_bytes,
            skips=skips,
        )
        return itertools.islice(texts, self._limits(split)[0])

    def sample(self) -> Iterator[str]:
        """Training documents of all sources; the source that has given the fewest bytes gives next."""
        streams = {name: self._documents(name, "train", Skips()) for name in self.names}
        given = dict.fromkeys(streams, 0)
        while streams:
            name = min(streams, key=lambda name: given[name])
            text = next(streams[name], None)
            if text is None:
                del streams[name]
                continue
            given[name] += len(text.encode())
            yield text
