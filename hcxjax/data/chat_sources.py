"""What all named sources of chat have in common: how they are named, opened, and put into a chat template."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from hcxjax.checks import number, whole
from hcxjax.data.readers import Skips, find_matching
from hcxjax.data.records import RECORD_ENDINGS, Record, read_records
from hcxjax.data.seqio_tasks import file_identity
from hcxjax.data.tokenizer import Tokenizer
from hcxjax.text.templates import TEMPLATES, Template, fitting_template
from hcxjax.text.vocabulary import Vocabulary
from hcxjax.world import SPOKEN


@dataclasses.dataclass(frozen=True)
class ChatSources:
    """Named sources of records of chat; touches no file until it is asked for them.

    Attributes:
      sources: name → `jsonl:PATH_OR_GLOB`, `parquet:PATH_OR_GLOB`, or one of the small world.
      tokenizer: that of the weights which are tuned; it is never trained here.
      directory: a run's RUN_DIR, or a place that several runs share.
      length: most tokens.
      template: name of the chat template; None takes the one whose marks the vocabulary has.
      validation_share: share of the records that is held out, by a hash of their first request, so that equal requests
        fall on the same side, whatever they are read for.
      max_document_bytes: longer lines are skipped and counted.
    """

    ENDLESS: ClassVar[tuple[str, ...]] = ("instructions",)
    """Schemes of the small world, `SCHEME:LANGUAGE`."""
    MOST: ClassVar[str] = "max_records"
    """Name of the field that limits the records of a source."""

    sources: Mapping[str, str]
    tokenizer: Tokenizer
    directory: str
    length: int
    template: str | None = None
    validation_share: float = 0.02
    max_document_bytes: int = 4_000_000

    def __post_init__(self):
        kind = type(self).__name__
        whole(self, 2, "length")
        whole(self, 1, "max_document_bytes")
        number(self, "validation_share")
        if self.most is not None:
            whole(self, 1, self.MOST)
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"{kind}.validation_share is {self.validation_share}; it must lie in [0, 1)")
        if self.template is not None and self.template not in TEMPLATES:
            raise ValueError(f"{kind}.template is {self.template!r}; there are {', '.join(TEMPLATES)}")

    @property
    def most(self) -> int | None:
        """Records that are read of each source; None reads all."""
        return getattr(self, self.MOST)

    @property
    def names(self) -> list[str]:
        """Names of the sources in the order of their numbers."""
        return sorted(self.sources)

    def check(self) -> None:
        """ValueError unless the sources make sense."""
        field = f"{type(self).__name__}.sources"
        if not self.sources:
            raise ValueError(f"{field} is empty; name at least one, such as {{'chat': 'jsonl:chat.jsonl.gz'}}")
        for name, source in self.sources.items():
            scheme, _, path = source.partition(":")
            if not name or not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(f"{field}: the name {name!r} must be letters, digits, - and _")
            if scheme not in (*RECORD_ENDINGS, *self.ENDLESS) or not path:
                *forms, last = ("jsonl:PATH", "parquet:PATH", *(f"{endless}:LANGUAGE" for endless in self.ENDLESS))
                raise ValueError(f"{field}: {name} is {source!r}; it must be {', '.join(forms)} or {last}")
            if scheme in self.ENDLESS and (path not in SPOKEN or self.most is None):
                raise ValueError(
                    f"{field}: {name} is {source!r}; the world speaks {' and '.join(SPOKEN)}, without an end: set "
                    f"{type(self).__name__}.{self.MOST}"
                )

    def vocabulary(self) -> Vocabulary:
        """The vocabulary. ValueError where none is named."""
        if self.tokenizer.path is None:
            raise ValueError("Tokenizer.path is None; name the tokenizer of the weights that are tuned")
        return self.tokenizer.load(os.path.join(self.directory, "tokenizer"), lambda: ())

    def form(self, vocabulary: Vocabulary) -> Template:
        """The chat template. ValueError where none is named and none fits, or the one named does not."""
        return fitting_template(self.template, vocabulary)

    def identity(self, name: str) -> list[Any]:
        """What changes when the records of a source do."""
        scheme, _, path = self.sources[name].partition(":")
        if scheme in self.ENDLESS:
            return [scheme, path]
        return [
            scheme,
            *(file_identity(file, os.path.basename(file)) for file in find_matching(path, RECORD_ENDINGS[scheme])),
        ]

    def records(self, name: str, skips: Skips) -> Iterator[Record]:
        """Records of a source that is files, `most` of them; what cannot be read is counted in `skips`."""
        scheme, _, path = self.sources[name].partition(":")
        left = self.most
        for file in find_matching(path, RECORD_ENDINGS[scheme]):
            for record in read_records(scheme, file, self.max_document_bytes, skips):
                if left == 0:
                    return
                left = None if left is None else left - 1
                yield record
