"""A source by its short name as a seqio Task, and the documents of a Task.

| name                                    | documents                                                         |
|-----------------------------------------|-------------------------------------------------------------------|
| `world_ko`                              | a registered seqio Task or Mixture with a string feature `text`    |
| `jsonl:PATH_OR_GLOB[?field=text]`       | lines of .jsonl and .jsonl.gz files                               |
| `text:FOLDER[?extensions=txt]`          | each text file below the folder                                   |
| `files:FOLDER[?extensions=py,js,...]`   | each source file below the folder                                 |
| `tfds:NAME[?field=text&data_dir=DIR]`   | a TensorFlow Datasets name, such as wiki40b/ko:1.3.0              |
"""

import dataclasses
import functools
import hashlib
import re
import urllib.parse
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from hcxjax.data.readers import (
    CODE_EXTENSIONS,
    Reader,
    Skips,
    find_files,
    find_jsonl,
    read_files,
    read_jsonl,
    rejection,
)

SPLITS = ("train", "validation")
_GROUP, _GROUP_CHARACTERS = 64, 1 << 20
_OPTIONS = {
    "jsonl": {"field": "text"},
    "text": {"extensions": "txt"},
    "files": {"extensions": ",".join(CODE_EXTENSIONS)},
    "tfds": {"field": "text", "data_dir": ""},
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


def documents(
    source: str, split: str, *, validation_share: float, max_document_bytes: int, skips: Skips
) -> Iterator[str]:
    """Documents of a source, each a non-empty valid Unicode string.

    Where a Task has no validation split of its own, the share `validation_share` of its documents, chosen by a hash of
    their text, is its validation split and the rest is train; equal documents fall on the same side.

    Raises:
      ValueError: an unknown Task, a path with no documents, a Task without a string feature `text`.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; it must be one of {SPLITS}")
    task = task_of(source, max_document_bytes, skips)
    own_validation = "validation" in task.splits
    for place, content in enumerate(_contents(task, split if own_validation else "train")):
        try:
            text = content.decode()
        except UnicodeDecodeError:
            skips.add("invalid UTF-8", f"{source}:{place}")
            continue
        if reason := rejection(text, max_document_bytes):
            skips.add(reason, f"{source}:{place}")
        elif own_validation or _held_out(text, validation_share) == (split == "validation"):
            yield text


def _contents(task: Any, split: str) -> Iterator[bytes]:
    """The feature `text` of each example; fetched in groups, which is six times as fast as one by one."""
    # Unasked, a Mixture repeats its Tasks for ever, in an order that differs from process to process.
    dataset = task.get_dataset(None, split=split, shuffle=False, num_epochs=1, seed=0)
    if "text" not in dataset.element_spec:
        features = ", ".join(sorted(dataset.element_spec))
        raise ValueError(f"Task {task.name!r} has features {features}, but no 'text': give it a preprocessor that does")
    for group in dataset.map(lambda example: example["text"]).batch(_GROUP).as_numpy_iterator():
        yield from group


def _held_out(text: str, share: float) -> bool:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") < share * 2**64


def task_of(source: str, max_document_bytes: int, skips: Skips) -> Any:
    """The seqio Task of a source; registers those that a path or a TFDS name describes."""
    spec = Spec.parse(source)
    if spec.scheme == "task":
        return _registered(spec.path)
    if spec.scheme == "tfds":
        return _tfds_task(spec)
    return reader_task(f"{spec.scheme}_{_digest(source, max_document_bytes)}", _reader(spec, max_document_bytes), skips)


def _registered(name: str) -> Any:
    seqio = import_seqio()
    known = sorted([*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()])
    if name not in known:
        raise ValueError(
            f"source {name!r} is no registered seqio Task or Mixture (there are {', '.join(known)}); "
            f"name the module that adds it in Corpus.task_modules, or a file as in jsonl:PATH"
        )
    return seqio.get_mixture_or_task(name)


def _reader(spec: Spec, max_document_bytes: int) -> Reader:
    """What reads the files of `spec`; looks for them at once, so that a wrong path is an error before any work."""
    if spec.scheme == "jsonl":
        paths = find_jsonl(spec.path)
        return lambda skips: read_jsonl(paths, spec.options["field"], max_document_bytes, skips)
    files = find_files(spec.path, tuple(spec.options["extensions"].split(",")))
    return lambda skips: read_files(files, max_document_bytes, skips)


def reader_task(name: str, reader: Reader, skips: Skips) -> Any:
    """A Task over a generator of texts, registered anew, with one split, train."""

    def texts(split: str) -> Iterator[str]:
        return reader(skips)

    seqio = import_seqio()
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    return add_text_task(name, texts, splits=("train",))


def add_text_task(name: str, texts: Callable[[str], Iterator[str]], splits: tuple[str, ...] = SPLITS) -> Any:
    """Registers a seqio Task whose examples are {"text": ...}.

    Args:
      name: of the Task.
      texts: split → its documents.
      splits: those that it has.
    """
    seqio, tensorflow = import_seqio(), import_tensorflow()

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> Any:
        signature = {"text": tensorflow.TensorSpec([None], tensorflow.string)}
        dataset = tensorflow.data.Dataset.from_generator(lambda: _grouped(texts(split)), output_signature=signature)
        return dataset.unbatch()

    source = seqio.FunctionDataSource(dataset, splits=splits)
    return seqio.TaskRegistry.add(name, source, preprocessors=[], output_features=_text_features())


def _grouped(texts: Iterator[str]) -> Iterator[dict[str, list[str]]]:
    """Texts by `_GROUP`, or fewer where they are long: each passage from Python to TensorFlow costs about 1 ms."""
    group, size = [], 0
    for text in texts:
        group.append(text)
        size += len(text)
        if len(group) == _GROUP or size > _GROUP_CHARACTERS:
            yield {"text": group}
            group, size = [], 0
    if group:
        yield {"text": group}


def _text_features() -> dict[str, Any]:
    seqio = import_seqio()
    vocabulary = seqio.PassThroughVocabulary(1)
    return {"text": seqio.Feature(vocabulary, add_eos=False, dtype=import_tensorflow().string, rank=0)}


def _tfds_task(spec: Spec) -> Any:
    seqio = import_seqio()
    field, directory = spec.options["field"], spec.options["data_dir"] or None
    name = f"tfds_{_digest(spec.path, field, directory)}"
    if name in seqio.TaskRegistry.names():
        return seqio.TaskRegistry.get(name)

    def keep_text(dataset: Any) -> Any:
        return dataset.map(lambda example: {"text": example[field]})

    try:
        source = seqio.TfdsDataSource(tfds_name=spec.path, tfds_data_dir=directory)
        source.splits  # noqa: B018  (looks for the data set now)
    except Exception as error:  # TFDS raises many kinds, and pages of other names
        reason = str(error).partition("\n")[0]
        raise ValueError(f"tfds:{spec.path} cannot be read ({reason}); change it in Corpus.sources") from error
    return seqio.TaskRegistry.add(name, source, preprocessors=[keep_text], output_features=_text_features())


def _digest(*values: object) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


@functools.cache
def import_tensorflow() -> ModuleType:
    """TensorFlow with accelerators hidden from it: it would take the memory that jax needs."""
    import tensorflow

    for kind in ("GPU", "TPU"):
        tensorflow.config.set_visible_devices([], kind)
    return tensorflow


@functools.cache
def import_seqio() -> ModuleType:
    """seqio, imported when a Task is first read: it takes seconds, and reading a written store does without."""
    import_tensorflow()
    import seqio

    return seqio
