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
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

from hcxjax.data.chat_stores import ChatStores
from hcxjax.data.conversation_store import FORMAT, ConversationStore, Kept, write
from hcxjax.data.dialogue_forms import DialogueError, dialogue_of
from hcxjax.data.readers import Skips
from hcxjax.data.records import Record
from hcxjax.data.sources import held_out
from hcxjax.text.rendering import LEAST_TARGETS, render_within, unseen_reasoning
from hcxjax.text.templates import Message, Template
from hcxjax.text.vocabulary import Vocabulary
from hcxjax.world import World


@dataclasses.dataclass(frozen=True)
class Dialogues(ChatStores[ConversationStore, Kept]):
    """Named sources of dialogues and where they are kept once rendered; touches no file until it is asked for them.

    Attributes:
      sources: name → a source as in this module's table. Metrics are reported under these names; sources are numbered
        in the order of their names.
      directory: holds conversations/; a run's RUN_DIR, or a place that several runs share.
      length: positions that the longest conversation may take (T); longer ones are cut (`render_within`).
      max_dialogues: records read of each source; None reads all, which the small world does not allow.
    """

    KIND: ClassVar[str] = "conversation"
    FOLDER: ClassVar[str] = "conversations"
    ENDLESS: ClassVar[tuple[str, ...]] = ("world", "instructions")
    MOST: ClassVar[str] = "max_dialogues"

    max_dialogues: int | None = None

    def _open(self, folder: str, held_out: bool) -> ConversationStore:
        return ConversationStore.open(folder, held_out)

    def _settings(self) -> list[Any]:
        return [FORMAT]

    def _save(self, folder: str, entries: Iterable[Kept], about: dict[str, Any]) -> dict[str, Any]:
        return write(folder, entries, about)

    def _described(self, manifest: dict[str, Any]) -> str:
        return f"{manifest['conversations']} conversations, {manifest['targets']} tokens to learn"

    def _rendered(
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
