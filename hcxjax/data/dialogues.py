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
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hcxjax.checks import number, whole
from hcxjax.data.conversation_store import FORMAT, ConversationStore, Kept, write
from hcxjax.data.dialogue_forms import DialogueError, dialogue_of
from hcxjax.data.hashing import fingerprint
from hcxjax.data.publishing import publish
from hcxjax.data.readers import Skips, find_matching
from hcxjax.data.records import RECORD_ENDINGS, Record, read_records
from hcxjax.data.seqio_tasks import file_identity
from hcxjax.data.sources import SPLITS, held_out
from hcxjax.data.tokenizer import Tokenizer
from hcxjax.text.rendering import LEAST_TARGETS, render_within, unseen_reasoning
from hcxjax.text.templates import TEMPLATES, Message, Template, fitting_template
from hcxjax.text.vocabulary import Vocabulary
from hcxjax.world import SPOKEN, World

_log = logging.getLogger(__name__)
_ENDLESS = ("world", "instructions")
"""Sources of the small world."""


@dataclasses.dataclass(frozen=True)
class Dialogues:
    """Named sources of dialogues and where they are kept once rendered; touches no file until it is asked for them.

    Attributes:
      sources: name → a source as in this module's table. Metrics are reported under these names; sources are numbered
        in the order of their names.
      tokenizer: that of the weights which are tuned; it is never trained here.
      directory: holds conversations/; a run's RUN_DIR, or a place that several runs share.
      length: positions that the longest conversation may take (T); longer ones are cut (`render_within`).
      template: name of the chat template; None takes the one whose marks the vocabulary has.
      validation_share: share of the dialogues that is held out, by a hash of their first request, so that equal
        requests fall on the same side.
      max_dialogues: records read of each source; None reads all, which the small world does not allow.
      max_document_bytes: longer lines are skipped and counted.
    """

    sources: Mapping[str, str]
    tokenizer: Tokenizer
    directory: str
    length: int
    template: str | None = None
    validation_share: float = 0.02
    max_dialogues: int | None = None
    max_document_bytes: int = 4_000_000

    def __post_init__(self):
        whole(self, 2, "length")
        whole(self, 1, "max_document_bytes")
        number(self, "validation_share")
        if self.max_dialogues is not None:
            whole(self, 1, "max_dialogues")
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"Dialogues.validation_share is {self.validation_share}; it must lie in [0, 1)")
        if self.template is not None and self.template not in TEMPLATES:
            raise ValueError(f"Dialogues.template is {self.template!r}; there are {', '.join(TEMPLATES)}")

    @property
    def names(self) -> list[str]:
        """Names of the sources in the order of their numbers."""
        return sorted(self.sources)

    def check(self) -> None:
        """ValueError unless the sources make sense."""
        if not self.sources:
            raise ValueError("Dialogues.sources is empty; name at least one, such as {'chat': 'jsonl:chat.jsonl.gz'}")
        for name, source in self.sources.items():
            scheme, _, path = source.partition(":")
            if not name or not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(f"Dialogues.sources: the name {name!r} must be letters, digits, - and _")
            if scheme not in (*RECORD_ENDINGS, *_ENDLESS) or not path:
                raise ValueError(
                    f"Dialogues.sources: {name} is {source!r}; it must be jsonl:PATH, parquet:PATH, world:LANGUAGE or "
                    "instructions:LANGUAGE"
                )
            if scheme in _ENDLESS and (path not in SPOKEN or self.max_dialogues is None):
                raise ValueError(
                    f"Dialogues.sources: {name} is {source!r}; the world speaks {' and '.join(SPOKEN)}, without "
                    "an end: set Dialogues.max_dialogues"
                )

    def vocabulary(self) -> Vocabulary:
        """The vocabulary. ValueError where none is named."""
        if self.tokenizer.path is None:
            raise ValueError("Tokenizer.path is None; name the tokenizer of the weights that are tuned")
        return self.tokenizer.load(os.path.join(self.directory, "tokenizer"), lambda: ())

    def form(self, vocabulary: Vocabulary) -> Template:
        """The chat template. ValueError where none is named and none fits, or the one named does not."""
        return fitting_template(self.template, vocabulary)

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
        key = fingerprint(self._identity(name), dataclasses.asdict(template), vocabulary.fingerprint, settings)
        folder = os.path.join(self.directory, "conversations", f"{name}-{key:016x}")
        publish(folder, lambda temporary: self._write(name, temporary, template, vocabulary))
        return folder

    def _identity(self, name: str) -> list[Any]:
        """What changes when the source does."""
        scheme, _, path = self.sources[name].partition(":")
        if scheme in _ENDLESS:
            return [scheme, path]
        return [scheme, *(file_identity(file, os.path.basename(file)) for file in self._files(name))]

    def _files(self, name: str) -> list[str]:
        scheme, _, path = self.sources[name].partition(":")
        return find_matching(path, RECORD_ENDINGS[scheme])

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
            about["left_out"], about["shortened"] = _told(skips), _told(cuts)

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
        left = self.max_dialogues
        if scheme in _ENDLESS:
            assert left is not None
            tell = World().dialogue if scheme == "world" else World().demonstration
            for index in range(left):
                turns = tell(path, index)
                yield Record(f"{path}:{index}", {"messages": [message._asdict() for message in _alternating(turns)]})
            return
        for file in self._files(name):
            for record in read_records(scheme, file, self.max_document_bytes, skips):
                if left == 0:
                    return
                left = None if left is None else left - 1
                yield record


def first_request(messages: Sequence[Message]) -> str:
    """What decides the split that a dialogue falls into."""
    return next((message.content for message in messages if message.role == "user"), messages[0].content)


def _alternating(turns: Sequence[str]) -> list[Message]:
    return [Message(("user", "assistant")[number % 2], text) for number, text in enumerate(turns)]


def _told(found: Skips) -> dict[str, tuple[int, str]]:
    """Reason → (count, where the first of them is), the most frequent first."""
    return {reason: (count, found.examples[reason]) for reason, count in found.counts.most_common()}
