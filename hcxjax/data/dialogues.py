"""Dialogues from named sources, rendered once in a chat template: what conversations are trained on and measured on.

| name                              | dialogues                                                         |
|-----------------------------------|-------------------------------------------------------------------|
| `jsonl:PATH_OR_GLOB`              | lines of .jsonl, .jsonl.gz and .jsonl.zst files                   |
| `parquet:PATH_OR_GLOB`            | rows of Parquet files                                             |
| `world:ko`, `world:en`            | questions about the small world (`hcxjax.world`), without an end  |
| `instructions:ko`, …`:en`         | its instructions, with answers of mixed quality, without an end   |

Forms of records: `hcxjax.data.dialogue_forms`. Nothing here needs TensorFlow.
"""

import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence
from typing import ClassVar

from hcxjax.data.chat_sources import ChatSources
from hcxjax.data.conversation_store import FORMAT, ConversationStore, Kept, write
from hcxjax.data.dialogue_forms import DialogueError, dialogue_of
from hcxjax.data.hashing import fingerprint
from hcxjax.data.publishing import publish
from hcxjax.data.readers import Skips
from hcxjax.data.records import Record
from hcxjax.data.sources import SPLITS, held_out
from hcxjax.text.rendering import LEAST_TARGETS, render_within, unseen_reasoning
from hcxjax.text.templates import Message, Template
from hcxjax.text.vocabulary import Vocabulary
from hcxjax.world import World

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Dialogues(ChatSources):
    """Named sources of dialogues and where they are kept once rendered; touches no file until it is asked for them.

    Attributes:
      sources: name → a source as in this module's table. Metrics are reported under these names; sources are numbered
        in the order of their names.
      directory: holds conversations/; a run's RUN_DIR, or a place that several runs share.
      length: positions that the longest conversation may take (T); longer ones are cut (`render_within`).
      max_dialogues: records read of each source; None reads all, which the small world does not allow.
    """

    ENDLESS: ClassVar[tuple[str, ...]] = ("world", "instructions")
    MOST: ClassVar[str] = "max_dialogues"

    max_dialogues: int | None = None

    def stores(self, split: str) -> dict[str, ConversationStore]:
        """The conversations of each source, rendered on first use.

        Args:
          split: "train" or "validation".
        Raises:
          ValueError: a source has no conversation to train on, or its store was damaged.
        """
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is unknown; it must be one of {SPLITS}")
        self.check()
        vocabulary = self.vocabulary()
        return {
            name: ConversationStore.open(self._written(name, vocabulary), split == "validation") for name in self.names
        }

    def _written(self, name: str, vocabulary: Vocabulary) -> str:
        """The folder of a source's store."""
        template = self.form(vocabulary)
        settings = [self.length, self.validation_share, self.max_dialogues, self.max_document_bytes, FORMAT]
        key = fingerprint(self.identity(name), dataclasses.asdict(template), vocabulary.fingerprint, settings)
        folder = os.path.join(self.directory, "conversations", f"{name}-{key:016x}")
        publish(folder, lambda temporary: self._write(name, temporary, template, vocabulary))
        return folder

    def _write(self, name: str, folder: str, template: Template, vocabulary: Vocabulary) -> None:
        skips, cuts = Skips(), Skips()
        about = {
            "source": self.sources[name],
            "template": template.name,
            "tokenizer": vocabulary.fingerprint,
            "length": self.length,
            "left_out": {},
            "shortened": {},
        }

        def kept() -> Iterator[Kept]:
            yield from self._render(name, template, vocabulary, skips, cuts)
            about["left_out"], about["shortened"] = skips.told(), cuts.told()

        manifest = write(folder, kept(), about)
        left_out = "; ".join(f"{reason} {count}" for reason, (count, _) in about["left_out"].items())
        _log.info("%s: %d conversations, %d tokens to learn", name, manifest["conversations"], manifest["targets"])
        for found, what in ((skips, "left out"), (cuts, "shortened")):
            if found.counts:
                _log.warning("%s: %s %s", name, what, found.described())
        if manifest["conversations"] <= manifest["held_out"]:
            raise ValueError(
                f"source {name!r} ({self.sources[name]}) has no conversation to train on: {manifest['held_out']} are "
                f"held out, left out were {left_out or 'none'}; change it in Dialogues.sources"
            )

    def _render(
        self, name: str, template: Template, vocabulary: Vocabulary, skips: Skips, cuts: Skips
    ) -> Iterator[Kept]:
        for place, record in self._records(name, skips):
            try:
                messages, unanswered = dialogue_of(record)
                found = render_within(messages, template, vocabulary, self.length)
            except DialogueError as error:
                skips.add(str(error), place)
                continue
            except ValueError as error:
                surrogate = "surrogate" in str(error)
                skips.add("lone surrogate" if surrogate else "turns that the template has not", f"{place}: {error}")
                continue
            if found is None:
                skips.add(f"its last request leaves no room for {LEAST_TARGETS} tokens of an answer", place)
                continue
            rendered, cut = found
            for what, count in (
                ("turns after the last answer", unanswered),
                ("reasoning before the last request", unseen_reasoning(messages) if template.thinks else 0),
                ("oldest turns", cut.turns),
                ("tokens of a last answer", cut.answer),
            ):
                if count:
                    cuts.add(what, place, count)
                    cuts.add(f"conversations without {what}", place)
            yield Kept(rendered, held_out(first_request(messages), self.validation_share))

    def _records(self, name: str, skips: Skips) -> Iterator[Record]:
        scheme, _, path = self.sources[name].partition(":")
        if scheme not in self.ENDLESS:
            yield from self.records(name, skips)
            return
        assert self.max_dialogues is not None
        tell = World().dialogue if scheme == "world" else World().demonstration
        for index in range(self.max_dialogues):
            turns = tell(path, index)
            yield Record(f"{path}:{index}", {"messages": [message._asdict() for message in _alternating(turns)]})


def first_request(messages: Sequence[Message]) -> str:
    """What decides the split that a dialogue falls into."""
    return next((message.content for message in messages if message.role == "user"), messages[0].content)


def _alternating(turns: Sequence[str]) -> list[Message]:
    return [Message(("user", "assistant")[number % 2], text) for number, text in enumerate(turns)]
