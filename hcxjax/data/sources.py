"""A source by its short name, and its documents, which are read in parts.

| name                                  | documents                                                   | a part      |
|---------------------------------------|-------------------------------------------------------------|-------------|
| `world_ko`                            | a registered seqio Task or Mixture with the feature `text`  | a shard     |
| `jsonl:PATH_OR_GLOB[?field=text]`     | lines of .jsonl, .jsonl.gz and .jsonl.zst files             | a file      |
| `parquet:PATH_OR_GLOB[?field=text]`   | rows of Parquet files                                       | a file      |
| `text:FOLDER[?extensions=txt]`        | each text file below the folder                             | 1,024 files |
| `files:FOLDER[?extensions=py,js,...]` | each source file below the folder                           | 1,024 files |
| `tfds:NAME[?field=text&data_dir=DIR]` | a TensorFlow Datasets name, such as wiki40b/ko:1.3.0        | a shard     |

`tfds:` also takes `train` and `validation`, for splits of other names: `?train=ko&validation=ko-validation` (mC4).

Parts let several processes read one source at once, each other parts of it. Files are read without TensorFlow.
"""

import dataclasses
import hashlib
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from hcxjax.data.hashing import fingerprint
from hcxjax.data.readers import (
    CODE_EXTENSIONS,
    JSONL_ENDINGS,
    MAX_DOCUMENT_BYTES,
    PARQUET_ENDINGS,
    Document,
    Skips,
    find_files,
    find_matching,
    read_files,
    read_jsonl,
    read_parquet,
)
from hcxjax.data.seqio_tasks import (
    SPLITS,
    TaskParts,
    add_text_task,
    digest,
    file_identity,
    import_seqio,
    import_tensorflow,
    registered,
    text_features,
    text_source,
    tfds_task,
)

__all__ = [
    "SPLITS",
    "Document",
    "FileParts",
    "SourceParts",
    "Spec",
    "add_text_task",
    "file_source",
    "held_out",
    "import_seqio",
    "import_tensorflow",
    "open_source",
    "task_of",
    "text_features",
]

GROUP = 1024
"""Files of a part of `text:` and `files:`, where a file is a single document."""

_OPTIONS = {
    "jsonl": {"field": "text"},
    "parquet": {"field": "text"},
    "text": {"extensions": "txt"},
    "files": {"extensions": ",".join(CODE_EXTENSIONS)},
    "tfds": {"field": "text", "data_dir": "", "train": "train", "validation": "validation"},
}
"""What each scheme may be asked for, and what it does unasked."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """The parts of a source's short name; `scheme` is "task" for a registered Task."""

    scheme: str
    path: str
    options: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> "Spec":
        """`scheme:path?option=value&...`, or the name of a Task.

        Raises:
          ValueError: unknown scheme or option.
        """
        scheme, colon, rest = text.partition(":")
        if not colon:
            return cls("task", text, {})
        if scheme not in _OPTIONS:
            raise ValueError(f"source {text!r}: unknown scheme {scheme!r}; Corpus.sources knows {', '.join(_OPTIONS)}")
        # A glob may hold a question mark too, so options are only what looks like `name=` after the last one.
        match = re.fullmatch(r"(.*?)(?:\?(\w+=[^?]*))?", rest)
        path, query = match.groups() if match else (rest, None)
        options = dict(urllib.parse.parse_qsl(query or "", keep_blank_values=True))
        if unknown := set(options) - set(_OPTIONS[scheme]):
            raise ValueError(
                f"source {text!r}: unknown option {', '.join(sorted(unknown))}; "
                f"{scheme}: knows {', '.join(sorted(_OPTIONS[scheme]))}"
            )
        if not path:
            raise ValueError(f"source {text!r}: no path after {scheme}:")
        return cls(scheme, path, _OPTIONS[scheme] | options)


class SourceParts(Protocol):
    """An opened source. `split` is "train", or "validation" where the source has one of its own."""

    @property
    def own_validation(self) -> bool:
        """Whether it has a validation split; where not, the caller parts "train" by `held_out`."""
        ...

    def parts(self, split: str) -> int:
        """Number of parts of a split."""
        ...

    def part_name(self, split: str, part: int) -> str:
        """Of a part, for reports: the name of its file or shard."""
        ...

    def fingerprint(self, split: str, part: int) -> int:
        """63 bits that change when the part's contents do, and not when they are moved to another folder."""
        ...

    def documents(self, split: str, part: int, skips: Skips) -> Iterator[Document]:
        """Documents of a part, the same every time; what is none is counted in `skips`."""
        ...


@dataclasses.dataclass(frozen=True)
class FileParts:
    """Files, which have no validation split. Can be pickled, so that other processes may read other parts.

    Attributes:
      spec: which reader, and its options.
      groups: the files of each part.
      max_document_bytes: longer documents are skipped.
    """

    spec: Spec
    groups: tuple[tuple[str, ...], ...]
    max_document_bytes: int

    own_validation = False

    def parts(self, split: str) -> int:
        """Number of parts."""
        return len(self._groups(split))

    def part_name(self, split: str, part: int) -> str:
        """Base name of the part's file, or of the first and last of a group."""
        names = [os.path.basename(path) for path in self._groups(split)[part]]
        return names[0] if len(names) == 1 else f"{names[0]}..{names[-1]}"

    def fingerprint(self, split: str, part: int) -> int:
        """Of the names, sizes and times of the part's files."""
        folder = os.path.expanduser(self.spec.path) if self.spec.scheme in ("text", "files") else ""

        def name(path: str) -> str:
            # Two files of one name are common below a folder of source code. surrogateescape: names need not be UTF-8.
            told = os.path.relpath(path, folder) if os.path.isdir(folder) else os.path.basename(path)
            return told.encode(errors="surrogateescape").hex()

        return fingerprint([file_identity(path, name(path)) for path in self._groups(split)[part]])

    def documents(self, split: str, part: int, skips: Skips) -> Iterator[Document]:
        """Documents of a part."""
        yield from (Document(*numbered) for numbered in enumerate(self.texts(split, part, skips)))

    def texts(self, split: str, part: int, skips: Skips) -> Iterator[str]:
        """The texts of `documents`."""
        paths = self._groups(split)[part]
        if self.spec.scheme in ("text", "files"):
            return read_files(paths, self.max_document_bytes, skips)
        read = read_jsonl if self.spec.scheme == "jsonl" else read_parquet
        return read(paths[0], self.spec.options["field"], self.max_document_bytes, skips)

    def shards(self) -> list[str]:
        """A name for each part that seqio may list: a path, or for a group what reports call it."""
        return [
            group[0] if len(group) == 1 else self.part_name("train", part) for part, group in enumerate(self.groups)
        ]

    def _groups(self, split: str) -> tuple[tuple[str, ...], ...]:
        if split != "train":
            raise ValueError(f"split {split!r} is unknown; {self.spec.scheme}:{self.spec.path} has 'train' alone")
        return self.groups


def open_source(source: str, max_document_bytes: int) -> SourceParts:
    """What a short name stands for.

    Args:
      source: a name as in this module's table.
      max_document_bytes: longer documents are skipped.
    Raises:
      ValueError: an unknown scheme, option or Task; a path with no documents; a Task without a split train.
    """
    spec = Spec.parse(source)
    if spec.scheme in ("task", "tfds"):
        return TaskParts(source, task_of(source), max_document_bytes)
    return _open_files(spec, max_document_bytes)


def _open_files(spec: Spec, max_document_bytes: int) -> FileParts:
    """Looks for the files at once, so that a wrong path is an error before any work."""
    if spec.scheme in ("jsonl", "parquet"):
        paths = find_matching(spec.path, JSONL_ENDINGS if spec.scheme == "jsonl" else PARQUET_ENDINGS)
        return FileParts(spec, tuple((path,) for path in paths), max_document_bytes)
    paths = find_files(spec.path, tuple(spec.options["extensions"].split(",")))
    groups = tuple(tuple(paths[start : start + GROUP]) for start in range(0, len(paths), GROUP))
    return FileParts(spec, groups, max_document_bytes)


def held_out(text: str, share: float) -> bool:
    """Whether a document of a source without a validation split belongs to validation.

    Decided by a hash of its text: equal documents fall on the same side, whatever file they stand in.

    Args:
      text: the document.
      share: expected share of validation, between 0 and 1.
    """
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") < share * 2**64


def task_of(source: str, max_document_bytes: int = MAX_DOCUMENT_BYTES) -> Any:
    """The seqio Task or Mixture of a source; registers those that a path or a TFDS name describes.

    Args:
      source: a name as in this module's table.
      max_document_bytes: longer documents of files are skipped.
    """
    spec = Spec.parse(source)
    if spec.scheme == "task":
        return registered(spec.path)
    if spec.scheme == "tfds":
        return tfds_task(spec.path, **spec.options)
    seqio, name = import_seqio(), f"{spec.scheme}_{digest(source, max_document_bytes)}"
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    files = file_source({"train": source}, max_document_bytes)
    return seqio.TaskRegistry.add(name, files, preprocessors=[], output_features=text_features())


def file_source(splits: Mapping[str, str], max_document_bytes: int = MAX_DOCUMENT_BYTES) -> Any:
    """A `seqio.DataSource` of {"text": ...} over files, for a Task of your own; its shards are the files' parts.

    Args:
      splits: split → a source of files, such as {"train": "parquet:news/*.parquet?field=body"}.
      max_document_bytes: longer documents are skipped.
    Raises:
      ValueError: a source that is no path to files, or a path with none.
    """
    opened = {}
    for split, source in splits.items():
        spec = Spec.parse(source)
        if spec.scheme in ("task", "tfds"):
            raise ValueError(f"file_source: {split} is {source!r}; it must be a path to files, such as jsonl:PATH")
        opened[split] = _open_files(spec, max_document_bytes)
    return text_source(
        lambda split, part, skips: opened[split].texts("train", part, skips),
        {split: files.shards() for split, files in opened.items()},
    )
