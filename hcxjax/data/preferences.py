"""Comparisons from named sources, rendered once in a chat template: what reward models and DPO learn from.

| name                      | comparisons                                                                     |
|---------------------------|---------------------------------------------------------------------------------|
| `jsonl:PATH_OR_GLOB`      | lines of .jsonl, .jsonl.gz and .jsonl.zst files                                 |
| `parquet:PATH_OR_GLOB`    | rows of Parquet files                                                           |
| `instructions:ko`, …`:en` | answers to the small world's instructions, preferred by a known reward in noise |

Forms of records: `hcxjax.data.preference_forms`.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

from hcxjax.checks import whole
from hcxjax.data.chat_stores import ChatStores
from hcxjax.data.dialogue_forms import DialogueError
from hcxjax.data.dialogues import first_request
from hcxjax.data.hashing import fingerprint
from hcxjax.data.preference_forms import Comparison, Preference, preference_of
from hcxjax.data.preference_store import FORMAT, Kept, PreferenceStore, Text, write
from hcxjax.data.readers import Skips
from hcxjax.data.sources import SPLITS, held_out
from hcxjax.text.rendering import USER
from hcxjax.text.templates import ANSWER, Message, Template
from hcxjax.text.vocabulary import Vocabulary
from hcxjax.world import World


class _Given(NamedTuple):
    """A preference, where it stands, and the split it is of, where that is known beforehand."""

    place: str
    preference: Preference
    split: str | None = None


@dataclasses.dataclass(frozen=True)
class Preferences(ChatStores[PreferenceStore, Kept]):
    """Named sources of comparisons and where they are kept once rendered.

    Attributes:
      sources: name → a source as in this module's table. Metrics are reported under these names; sources are numbered
        in the order of their names.
      directory: holds preferences/; a run's RUN_DIR, or a place that several runs share.
      length: most tokens of prompt and answer (T). Both texts of a comparison lose the same oldest turns of the prompt
        until they fit; one that does not fit with its last request is left out and counted.
      validation_share: of the small world, which has a split of its own, so many more are read from there.
      max_records: records read of each source; None reads all, which the small world does not allow.
      max_comparisons: of a prompt, from the first on, in each source; None keeps all.
      answers: to each of the small world's instructions, 2 or more, each of which is compared with each other.
      world: whose instructions.
    """

    KIND: ClassVar[str] = "comparison"
    FOLDER: ClassVar[str] = "preferences"

    max_records: int | None = None
    max_comparisons: int | None = None
    answers: int = 2
    world: World = dataclasses.field(default_factory=World)

    def __post_init__(self):
        super().__post_init__()
        whole(self, 2, "answers")
        if self.max_comparisons is not None:
            whole(self, 1, "max_comparisons")

    def _open(self, folder: str, held_out: bool) -> PreferenceStore:
        return PreferenceStore.open(folder, held_out)

    def _settings(self) -> list[Any]:
        return [self.max_comparisons, self.answers, dataclasses.asdict(self.world), FORMAT]

    def _save(self, folder: str, entries: Iterable[Kept], about: dict[str, Any]) -> dict[str, Any]:
        return write(folder, entries, about)

    def _described(self, manifest: dict[str, Any]) -> str:
        return f"{manifest['comparisons']} comparisons of {manifest['prompts']} prompts"

    def _rendered(
        self, name: str, template: Template, vocabulary: Vocabulary, skips: Skips, cuts: Skips
    ) -> Iterator[Kept]:
        known: collections.Counter[int] = collections.Counter()
        for place, preference, split in self._given(name, skips):
            try:
                texts, cut = fitted(preference, template, vocabulary, self.length)
                prompt = fingerprint([list(message) for message in preference.prompt])
                held = held_out(first_request(preference.prompt), self.validation_share)
            except ValueError as error:
                surrogate = "surrogate" in str(error)
                skips.add("lone surrogate" if surrogate else "turns that the template has not", f"{place}: {error}")
                continue
            kept: list[Comparison] = []
            for comparison in preference.comparisons:
                reason = self._reason(preference, texts, comparison, known[prompt])
                if reason is None:
                    kept.append(comparison)
                    known[prompt] += 1
                else:
                    skips.add(reason, place)
            if kept and cut:
                cuts.add("oldest turns", place, cut)
                cuts.add("comparisons without oldest turns", place, len(kept))
            used = sorted({number for comparison in kept for number in comparison[:2]})
            again = [Comparison(used.index(one), used.index(two), margin) for one, two, margin in kept]
            stored = [text for number in used if (text := texts[number]) is not None]
            if kept:
                yield Kept(prompt, stored, again, held if split is None else split == "validation")

    def _reason(
        self, preference: Preference, texts: Sequence[Text | None], comparison: Comparison, known: int
    ) -> str | None:
        """Why a comparison is left out, if it is."""
        chosen, rejected = (preference.answers[number].strip() for number in comparison[:2])
        if chosen == rejected:
            return "its two answers are equal"
        if any(texts[number] is None for number in comparison[:2]):
            return f"its last request and an answer have more than {self.length} tokens"
        if self.max_comparisons is not None and known >= self.max_comparisons:
            return f"more than {self.max_comparisons} comparisons of its prompt"
        return None

    def _given(self, name: str, skips: Skips) -> Iterator[_Given]:
        scheme, _, path = self.sources[name].partition(":")
        if scheme in self.ENDLESS:
            assert self.max_records is not None
            for split, count in zip(SPLITS, (self.max_records, self._world_held_out), strict=True):
                for index in range(count):
                    prompt, answers, compared = self.world.comparison(path, index, split, self.answers)
                    comparisons = [Comparison(*comparison) for comparison in compared]
                    preference = Preference([Message(USER, prompt)], answers, comparisons)
                    yield _Given(f"{split}:{path}:{index}", preference, split)
            return
        for place, record in self.records(name, skips):
            try:
                yield _Given(place, preference_of(record))
            except DialogueError as error:
                skips.add(str(error), place)

    @property
    def _world_held_out(self) -> int:
        assert self.max_records is not None
        return round(self.validation_share * self.max_records)


def fitted(
    preference: Preference, template: Template, vocabulary: Vocabulary, length: int
) -> tuple[list[Text | None], int]:
    """(the prompt with each answer in at most `length` tokens, messages of the prompt that are left out).

    All have the same prompt: of its requests the oldest go first, each with all up to the next, until the longest
    answer fits; what stands before the first (a system message) stays. Answers that do not fit with the last request
    alone are None, and do not count for the others.

    Raises:
      ValueError: as `Template.spans`.
    """
    answers = [
        template.spans([Message(USER, ""), Message(ANSWER, answer)], vocabulary)[-1].tokens
        for answer in preference.answers
    ]
    messages = list(preference.prompt)
    requests = [number for number, message in enumerate(messages) if message.role == USER]
    prompts = [
        template.tokens([*messages[: requests[0]], *messages[start:]], vocabulary, answer=True, think=False)
        for start in requests
    ]
    room = length - len(prompts[-1])
    longest = max((len(answer) for answer in answers if len(answer) <= room), default=None)
    if longest is None:
        return [None] * len(answers), 0
    chosen = next(number for number, prompt in enumerate(prompts) if len(prompt) + longest <= length)
    prompt = prompts[chosen]
    texts = [Text([*prompt, *answer], len(prompt)) if len(answer) <= room else None for answer in answers]
    return texts, requests[chosen] - requests[0]
