"""Prompts from named sources as token ids, the answer opened: what policies are trained on and measured on.

| name                              | prompts                                                                   |
|-----------------------------------|---------------------------------------------------------------------------|
| `jsonl:PATH_OR_GLOB`              | lines of .jsonl, .jsonl.gz and .jsonl.zst files, up to their last request |
| `parquet:PATH_OR_GLOB`            | rows of Parquet files, likewise                                           |
| `instructions:ko`, …`:en`         | instructions of the small world (`hcxjax.world`), without an end          |

Forms of records: `hcxjax.data.dialogue_forms.request_of`. They are read anew at every start, into memory.
"""

import dataclasses
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from hcxjax.checks import number, whole
from hcxjax.data.dialogue_forms import DialogueError, request_of
from hcxjax.data.dialogues import first_request
from hcxjax.data.hashing import fingerprint
from hcxjax.data.mixing import permuted
from hcxjax.data.readers import Skips, find_matching
from hcxjax.data.records import RECORD_ENDINGS, read_records
from hcxjax.data.sources import SPLITS, held_out
from hcxjax.data.tokenizer import Tokenizer
from hcxjax.text.templates import TEMPLATES, Message, Template, fitting_template
from hcxjax.text.vocabulary import Vocabulary
from hcxjax.world import SPOKEN, Instruction, World

_log = logging.getLogger(__name__)
_WORLD = "instructions"


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
      texts: the last request of each.
      sources: name of the source of each.
      instructions: what each asks, of the small world's; None for others.
      stop_ids: ids that end an answer.
      vocabulary: of the ids.
      skips: records that were left out, by reason.
    """

    tokens: Sequence[tuple[int, ...]]
    texts: Sequence[str]
    sources: Sequence[str]
    instructions: Sequence[Instruction | None]
    stop_ids: tuple[int, ...]
    vocabulary: Vocabulary = dataclasses.field(compare=False)
    skips: Skips = dataclasses.field(default_factory=Skips, compare=False)

    def __len__(self) -> int:
        return len(self.tokens)

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
class Prompts:
    """Named sources of prompts; touches no file until it is asked for them.

    Attributes:
      sources: name → a source as in this module's table. Rewards are told, and scaled, under these names.
      tokenizer: that of the policy; it is never trained here.
      directory: a run's RUN_DIR.
      length: most tokens of a prompt; longer ones are left out and counted.
      template: name of the chat template; None takes the one whose marks the vocabulary has.
      validation_share: share of the records that is held out, by the same hash of the first request as for `Dialogues`;
        the small world has a split of its own.
      max_prompts: records read of each source; None reads all, which the small world does not allow. Of the small
        world as many are given in every split.
      max_document_bytes: longer lines are skipped and counted.
      world: whose instructions.
    """

    sources: Mapping[str, str]
    tokenizer: Tokenizer
    directory: str
    length: int
    template: str | None = None
    validation_share: float = 0.02
    max_prompts: int | None = None
    max_document_bytes: int = 4_000_000
    world: World = dataclasses.field(default_factory=World)

    def __post_init__(self):
        whole(self, 1, "length", "max_document_bytes")
        number(self, "validation_share")
        if self.max_prompts is not None:
            whole(self, 1, "max_prompts")
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"Prompts.validation_share is {self.validation_share}; it must lie in [0, 1)")
        if self.template is not None and self.template not in TEMPLATES:
            raise ValueError(f"Prompts.template is {self.template!r}; there are {', '.join(TEMPLATES)}")

    @property
    def names(self) -> list[str]:
        """Names of the sources in the order of their prompts."""
        return sorted(self.sources)

    def check(self) -> None:
        """ValueError unless the sources make sense."""
        if not self.sources:
            raise ValueError("Prompts.sources is empty; name at least one, such as {'chat': 'jsonl:prompts.jsonl'}")
        for name, source in self.sources.items():
            scheme, _, path = source.partition(":")
            if not name or not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(f"Prompts.sources: the name {name!r} must be letters, digits, - and _")
            if scheme not in (*RECORD_ENDINGS, _WORLD) or not path:
                raise ValueError(
                    f"Prompts.sources: {name} is {source!r}; it must be jsonl:PATH, parquet:PATH or "
                    "instructions:LANGUAGE"
                )
            if scheme == _WORLD and (path not in SPOKEN or self.max_prompts is None):
                raise ValueError(
                    f"Prompts.sources: {name} is {source!r}; the world speaks {' and '.join(SPOKEN)}, without an end: "
                    "set Prompts.max_prompts"
                )

    def vocabulary(self) -> Vocabulary:
        """The vocabulary. ValueError where none is named."""
        if self.tokenizer.path is None:
            raise ValueError("Tokenizer.path is None; name the tokenizer of the weights that are tuned")
        return self.tokenizer.load(os.path.join(self.directory, "tokenizer"), lambda: ())

    def form(self, vocabulary: Vocabulary) -> Template:
        """The chat template. ValueError where none is named and none fits, or the one named does not."""
        return fitting_template(self.template, vocabulary)

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
            [asked.messages[-1].content for _, asked in found.values()],
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
            ids = tuple(template.tokens(asked.messages, vocabulary, answer=True))
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
        if scheme == _WORLD:
            assert self.max_prompts is not None
            for index in range(self.max_prompts):
                instruction = self.world.instruction(path, index, split)
                yield _Asked(f"{path}:{index}", [Message("user", instruction.prompt)], instruction)
            return
        left = self.max_prompts
        for file in find_matching(path, RECORD_ENDINGS[scheme]):
            for record in read_records(scheme, file, self.max_document_bytes, skips):
                if left == 0:
                    return
                left = None if left is None else left - 1
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
