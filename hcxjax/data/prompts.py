"""Prompts from named sources as token ids, the answer opened: what policies are trained on and measured on.

| name                              | prompts                                                                   |
|-----------------------------------|---------------------------------------------------------------------------|
| `jsonl:PATH_OR_GLOB`              | lines of .jsonl, .jsonl.gz and .jsonl.zst files, up to their last request |
| `parquet:PATH_OR_GLOB`            | rows of Parquet files, likewise                                           |
| `instructions:ko`, …`:en`         | instructions of the small world (`hcxjax.world`), without an end          |

Forms of records: `hcxjax.data.dialogue_forms.request_of`. They are read anew at every start, into memory.
"""

import dataclasses
import functools
import logging
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

from hcxjax.data.chat_sources import ChatSources
from hcxjax.data.dialogue_forms import DialogueError, request_of
from hcxjax.data.dialogues import first_request
from hcxjax.data.hashing import fingerprint
from hcxjax.data.mixing import permuted
from hcxjax.data.readers import Skips
from hcxjax.data.sources import SPLITS, held_out
from hcxjax.text.templates import Message, Template
from hcxjax.text.vocabulary import Vocabulary
from hcxjax.world import Instruction, World

_log = logging.getLogger(__name__)


class _Asked(NamedTuple):
    """A request, where it stands, and what it asks where that is known."""

    place: str
    messages: Sequence[Message]
    instruction: Instruction | None = None


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """The prompts of a split, numbered.

    Attributes:
      tokens: ids of each, the answer opened.
      messages: those of each, the last one a request.
      sources: name of the source of each.
      instructions: what each asks, of the small world's; None for others.
      stop_ids: ids that end an answer.
      vocabulary: of the ids.
      skips: records that were left out, by reason.
    """

    tokens: Sequence[tuple[int, ...]]
    messages: Sequence[Sequence[Message]]
    sources: Sequence[str]
    instructions: Sequence[Instruction | None]
    stop_ids: tuple[int, ...]
    vocabulary: Vocabulary = dataclasses.field(compare=False)
    skips: Skips = dataclasses.field(default_factory=Skips, compare=False)

    def __len__(self) -> int:
        return len(self.tokens)

    @functools.cached_property
    def texts(self) -> Sequence[str]:
        """The last request of each."""
        return [messages[-1].content for messages in self.messages]

    @property
    def fingerprint(self) -> int:
        """63 bits over all that is asked, in order: a resumed run must find the same."""
        return fingerprint([list(ids) for ids in self.tokens], list(self.sources), list(self.stop_ids))

    def batch(self, update: int, size: int, seed: int) -> list[int]:
        """Numbers of the prompts of update `update` (from 0), `size` of them.

        Every epoch goes through all prompts in an order of its own; nothing but the arguments decides.
        """
        places = (divmod(update * size + row, len(self)) for row in range(size))
        return [permuted(place, len(self), seed, epoch) for epoch, place in places]


@dataclasses.dataclass(frozen=True)
class Prompts(ChatSources):
    """Named sources of prompts; touches no file until it is asked for them.

    Attributes:
      sources: name → a source as in this module's table. Rewards are told, and scaled, under these names.
      directory: a run's RUN_DIR.
      length: most tokens of a prompt; longer ones are left out and counted.
      validation_share: of the records of files; the small world has a split of its own.
      max_prompts: records read of each source; None reads all, which the small world does not allow. Of the small
        world as many are given in every split.
      world: whose instructions.
    """

    MOST: ClassVar[str] = "max_prompts"

    max_prompts: int | None = None
    world: World = dataclasses.field(default_factory=World)

    def load(self, split: str) -> PromptSet:
        """The prompts of "train" or "validation", source after source.

        Raises:
          ValueError: there is none; the message says what was left out.
        """
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is unknown; it must be one of {SPLITS}")
        self.check()
        vocabulary = self.vocabulary()
        template, skips = self.form(vocabulary), Skips()
        found: dict[tuple[int, ...], tuple[str, _Asked]] = {}
        for name in self.names:
            for asked in self._asked(name, split, skips):
                ids = self._tokens(asked, template, vocabulary, skips)
                if ids is None:
                    continue
                if ids in found:
                    skips.add("asked before", asked.place)
                else:
                    found[ids] = name, asked
        if skips.counts:
            _log.warning("prompts of %s: left out %s", split, skips.described())
        if not found:
            raise ValueError(
                f"Prompts.sources {dict(self.sources)} have no prompt of {split}: left out were "
                f"{skips.described() or 'none'}; change them, Prompts.length or Prompts.validation_share"
            )
        _log.info("%d prompts of %s, %d tokens", len(found), split, sum(map(len, found)))
        return PromptSet(
            list(found),
            [asked.messages for _, asked in found.values()],
            [name for name, _ in found.values()],
            [asked.instruction for _, asked in found.values()],
            template.stop_ids(vocabulary),
            vocabulary,
            skips,
        )

    def _tokens(
        self, asked: _Asked, template: Template, vocabulary: Vocabulary, skips: Skips
    ) -> tuple[int, ...] | None:
        """Ids of a prompt, or None, counted."""
        if strange := [message.role for message in asked.messages if message.role not in template.turns]:
            return skips.add("a role that the template has not", f"{asked.place}: {strange[0]!r}")
        try:
            ids = tuple(template.tokens(asked.messages, vocabulary, answer=True, think=False))
        except ValueError as error:
            surrogate = "surrogate" in str(error)
            return skips.add(
                "lone surrogate" if surrogate else "turns that the template has not", f"{asked.place}: {error}"
            )
        if len(ids) > self.length:
            return skips.add(f"more than {self.length} tokens", f"{asked.place}: {len(ids)}")
        return ids

    def _asked(self, name: str, split: str, skips: Skips) -> Iterator[_Asked]:
        """Requests of a source, in order."""
        scheme, _, path = self.sources[name].partition(":")
        if scheme in self.ENDLESS:
            assert self.max_prompts is not None
            for index in range(self.max_prompts):
                instruction = self.world.instruction(path, index, split)
                yield _Asked(f"{path}:{index}", [Message("user", instruction.prompt)], instruction)
            return
        for record in self.records(name, skips):
            try:
                messages = request_of(record.fields)
            except DialogueError as error:
                skips.add(str(error), record.place)
                continue
            if self._held_out(messages) == (split == "validation"):
                yield _Asked(record.place, messages)

    def _held_out(self, messages: Sequence[Message]) -> bool:
        """Which split a request is of; one that no text can be is of either."""
        try:
            return held_out(first_request(messages), self.validation_share)
        except UnicodeEncodeError:
            return False
