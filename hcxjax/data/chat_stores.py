"""Sources of chat that are rendered once, each into a store of its own below the directory."""

import abc
import dataclasses
import logging
import os
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Generic, TypeVar

from hcxjax.data.chat_sources import ChatSources
from hcxjax.data.hashing import fingerprint
from hcxjax.data.publishing import publish
from hcxjax.data.readers import Skips
from hcxjax.data.sources import SPLITS
from hcxjax.text.templates import Template
from hcxjax.text.vocabulary import Vocabulary

_log = logging.getLogger(__name__)
Store = TypeVar("Store")
Entry = TypeVar("Entry")


@dataclasses.dataclass(frozen=True)
class ChatStores(ChatSources, abc.ABC, Generic[Store, Entry]):
    """Named sources of chat and where they are kept once rendered; touches no file until it is asked for them."""

    KIND: ClassVar[str]
    """What a store holds, in the singular; its manifest counts them by the plural."""
    FOLDER: ClassVar[str]
    """Of the stores, below `directory`."""

    def stores(self, split: str) -> dict[str, Store]:
        """The store of each source, rendered on first use.

        Args:
          split: "train" or "validation".
        Raises:
          ValueError: a source has nothing to train on, or its store was damaged.
        """
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is unknown; it must be one of {SPLITS}")
        self.check()
        vocabulary = self.vocabulary()
        return {name: self._open(self._written(name, vocabulary), split == "validation") for name in self.names}

    @abc.abstractmethod
    def _open(self, folder: str, held_out: bool) -> Store:
        """The part of a store that is held out, or the other."""

    @abc.abstractmethod
    def _settings(self) -> list[Any]:
        """What changes a store beside the records, the template, the vocabulary and the fields of `ChatSources`."""

    @abc.abstractmethod
    def _rendered(
        self, name: str, template: Template, vocabulary: Vocabulary, skips: Skips, cuts: Skips
    ) -> Iterator[Entry]:
        """What the store of a source holds; counts what is left out and what is shortened."""

    @abc.abstractmethod
    def _save(self, folder: str, entries: Iterable[Entry], about: dict[str, Any]) -> dict[str, Any]:
        """Writes a store; returns its manifest."""

    @abc.abstractmethod
    def _described(self, manifest: dict[str, Any]) -> str:
        """What a store holds, in words."""

    def _written(self, name: str, vocabulary: Vocabulary) -> str:
        """The folder of a source's store."""
        template = self.form(vocabulary)
        settings = [self.length, self.validation_share, self.most, self.max_document_bytes, *self._settings()]
        key = fingerprint(self.identity(name), dataclasses.asdict(template), vocabulary.fingerprint, settings)
        folder = os.path.join(self.directory, self.FOLDER, f"{name}-{key:016x}")
        publish(folder, lambda temporary: self._write(name, temporary, template, vocabulary))
        return folder

    def _write(self, name: str, folder: str, template: Template, vocabulary: Vocabulary) -> None:
        skips, cuts = Skips(), Skips()
        about: dict[str, Any] = {
            "source": self.sources[name],
            "template": template.name,
            "tokenizer": vocabulary.fingerprint,
            "length": self.length,
            "left_out": {},
            "shortened": {},
        }

        def kept() -> Iterator[Entry]:
            yield from self._rendered(name, template, vocabulary, skips, cuts)
            about["left_out"], about["shortened"] = skips.told(), cuts.told()

        manifest = self._save(folder, kept(), about)
        _log.info("%s: %s", name, self._described(manifest))
        for found, what in ((skips, "left out"), (cuts, "shortened")):
            if found.counts:
                _log.warning("%s: %s %s", name, what, found.described())
        if manifest[f"{self.KIND}s"] <= manifest["held_out"]:
            left_out = "; ".join(f"{reason} {count}" for reason, (count, _) in about["left_out"].items())
            raise ValueError(
                f"source {name!r} ({self.sources[name]}) has no {self.KIND} to train on: {manifest['held_out']} are "
                f"held out, left out were {left_out or 'none'}; change it in {type(self).__name__}.sources"
            )
