"""What is trained on: named sources, the vocabulary they are written in, and their token stores."""

import dataclasses
import functools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hcxjax.data.cleaning.duplicates import NearDuplicates
from hcxjax.data.cleaning.steps import Step
from hcxjax.data.documents import Documents, Unit, describe
from hcxjax.data.engine import Engine, Local, counted
from hcxjax.data.hashing import fingerprint
from hcxjax.data.mixing import shares
from hcxjax.data.publishing import publish
from hcxjax.data.readers import MAX_DOCUMENT_BYTES
from hcxjax.data.sources import SPLITS, Spec
from hcxjax.data.store import TokenStore, part_folder, seal, sealed, write_part
from hcxjax.data.tokenizer import Tokenizer
from hcxjax.text.vocabulary import Vocabulary

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Named sources and where their tokens are kept; touches no file until it is asked for something.

    Attributes:
      sources: name → a source as `hcxjax.data.sources` spells it. Metrics are reported under these names. Sources are
        numbered in the order of their names: a dictionary's own order does not survive being written to a gin file.
      tokenizer: which vocabulary.
      directory: holds tokenizer/ and store/; a run's RUN_DIR, or a place that several runs share.
      max_documents: training documents of each source, dealt evenly over its parts (its files); None keeps all.
      max_validation_documents: the same of its validation documents.
      max_document_bytes: longer documents are skipped and counted.
      validation_share: share of a source's documents that is held out where it has no validation split of its own.
      task_modules: modules that register the Tasks that `sources` names, such as tasks.pretrain. They are imported when
        a Task is first read, because they import TensorFlow and a run whose stores are written needs none.
      cleaning: name of a source → the steps that its documents go through in turn; a source that is not named is kept
        as it is.
      duplicates: leaves out documents that equal, or nearly equal, one that was read before, over all sources; None
        keeps them.
      engine: where documents are read, cleaned and tokenised; the outcome is the same on any.

    Folders of `directory`: documents/ (cleaned text; may go once the stores are sealed), tokenizer/ and store/. All are
    written once for these settings; where files behind a source have changed since, a warning says so.
    """

    sources: Mapping[str, str]
    tokenizer: Tokenizer
    directory: str
    max_documents: int | None = None
    max_validation_documents: int | None = 1000
    max_document_bytes: int = MAX_DOCUMENT_BYTES
    validation_share: float = 0.01
    task_modules: tuple[str, ...] = ()
    cleaning: Mapping[str, Sequence[Step]] | None = None
    duplicates: NearDuplicates | None = None
    engine: Engine = Local()

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
        if unknown := sorted(set(self.cleaning or {}) - set(self.sources)):
            raise ValueError(
                f"Corpus.cleaning names {', '.join(unknown)}, but Corpus.sources has {', '.join(self.names)}"
            )
        if not 0 < self.validation_share < 1:
            raise ValueError(f"Corpus.validation_share is {self.validation_share}; it must lie between 0 and 1")

    @property
    def documents(self) -> Documents:
        """The first stage: documents read and cleaned."""
        return Documents(
            sources=self.sources,
            directory=os.path.join(self.directory, "documents"),
            max_documents=self.max_documents,
            max_validation_documents=self.max_validation_documents,
            max_document_bytes=self.max_document_bytes,
            validation_share=self.validation_share,
            cleaning=self.cleaning or {},
            duplicates=self.duplicates,
            task_modules=self.task_modules,
        )

    def vocabulary(self) -> Vocabulary:
        """The vocabulary; trained on the documents on first use."""
        self.check()
        return self.tokenizer.load(os.path.join(self.directory, "tokenizer"), self.sample)

    def sample(self) -> Iterator[str]:
        """Training documents of all sources at the tokenizer's rates: who has given least for its rate gives next."""
        documents = self._cleaned()
        rates = {name: float(share) for name, share in shares(self.tokenizer.rates, self.names).items()}
        streams = {name: documents.training_texts(name) for name in self.names}
        given = dict.fromkeys(streams, 0.0)
        while streams:
            name = min(streams, key=lambda name: given[name])
            text = next(streams[name], None)
            if text is None:
                del streams[name]
                continue
            given[name] += len(text.encode()) / rates[name]
            yield text

    def stores(self, split: str) -> dict[str, TokenStore]:
        """The token store of each source, written on first use.

        Args:
          split: "train" or "validation".
        Raises:
          ValueError: a source has no document, or a store was damaged.
        """
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is unknown; it must be one of {SPLITS}")
        self.check()
        vocabulary = self.vocabulary()
        folders = {name: self.store_folder(name, split, vocabulary) for name in self.names}
        if not all(map(sealed, folders.values())):
            self._tokenize(vocabulary)
            for name, folder in folders.items():
                self._seal(name, split, folder, vocabulary)
        stores = {name: TokenStore.open(folder) for name, folder in folders.items()}
        for name, store in stores.items():
            if self.documents.changed(name, store.manifest["listing"]):
                self._warn_of_change(name, "files")
            if self.documents.contents(name) not in (None, store.manifest["cleaned_by"]):
                self._warn_of_change(name, "word lists or evaluation sets")
        return stores

    def store_folder(self, name: str, split: str, vocabulary: Vocabulary) -> str:
        """Where the store of a source and split lies."""
        documents = self.documents
        key = fingerprint(
            documents.key(name) if self.duplicates is None else [name, documents.keys], vocabulary.fingerprint
        )
        return os.path.join(self.directory, "store", f"{name}-{split}-{key:016x}")

    def _tokenize(self, vocabulary: Vocabulary) -> None:
        """Writes every part of every store that is not there."""
        documents = self._cleaned()
        missing = [task for task in documents.tasks() if not self._tokenized(documents, vocabulary, *task)]
        if missing:
            work = functools.partial(self.tokenize_part, documents, (vocabulary.path, vocabulary.fingerprint))
            self.engine.each(work, missing, "tokenizing")

    def _tokenized(self, documents: Documents, vocabulary: Vocabulary, unit: Unit, part: int) -> bool:
        return all(map(os.path.isdir, self._store_parts(documents, vocabulary, unit, part).values()))

    def _store_parts(self, documents: Documents, vocabulary: Vocabulary, unit: Unit, part: int) -> dict[str, str]:
        """Where the tokens of a part belong, by split."""
        splits = SPLITS if documents.units_of(unit.source) == [unit] else (unit.split,)
        return {split: part_folder(self.store_folder(unit.source, split, vocabulary), part) for split in splits}

    def tokenize_part(
        self, documents: Documents, tokenizer: tuple[str, str], unit: Unit, part: int, wait: bool = True
    ) -> bool:
        """Publishes the tokens of one part for the splits it belongs to; False where another process is at it.

        Args:
          tokenizer: path and fingerprint of the vocabulary.
        """
        vocabulary = _vocabulary(*tokenizer)

        def write(split: str, folder: str) -> None:
            kept = documents.remaining(unit, part, held_out=split == "validation")
            write_part(folder, (one.text for one in counted(kept, f"{unit.source} {split}, part {part}")), vocabulary)

        folders = self._store_parts(documents, vocabulary, unit, part)
        return all(publish(folder, functools.partial(write, split), wait=wait) for split, folder in folders.items())

    def _cleaned(self) -> Documents:
        """The documents, written where they are not there."""
        self.check()
        documents = self.documents
        documents.prepare(self.engine)
        return documents

    def _warn_of_change(self, source: str, what: str) -> None:
        _log.warning(
            f"{what} of source %s (%s) have changed since they were read; what was read then is used. To read them "
            "anew delete documents/%s-* and store/%s-* in %s, or set Corpus.directory (DATA_DIR) to another folder",
            *(source, self.sources[source], source, source, self.directory),
        )

    def _seal(self, name: str, split: str, folder: str, vocabulary: Vocabulary) -> None:
        """Completes a store whose parts are written."""
        documents = self.documents
        unit = next(unit for unit in reversed(documents.units_of(name)) if unit.split in (split, "train"))
        tally, places = documents.tally(unit)
        if tally.dropped:
            _log.warning("%s %s: left out %s", name, unit.split, describe(tally, places))
        about: dict[str, Any] = {"source": self.sources[name], "split": split, "left_out": describe(tally, places)}
        about |= {"tally": tally.to_json(), "read_from": unit.split}
        about |= {"listing": documents.listing(name), "cleaned_by": documents.contents(name)}
        seal(folder, range(documents.parts(unit)), vocabulary, about)


@functools.lru_cache(maxsize=1)
def _vocabulary(path: str, fingerprint: str) -> Vocabulary:
    """The vocabulary at `path`, opened once a process. ValueError if it is no longer the one with `fingerprint`."""
    vocabulary = Vocabulary(path)
    if vocabulary.fingerprint != fingerprint:
        raise ValueError(f"the tokenizer {path} was changed while the corpus was being tokenised; start again")
    return vocabulary
