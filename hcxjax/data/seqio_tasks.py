"""seqio Tasks as sources of text, and texts as sources of seqio Tasks; all that the data knows of TensorFlow."""

import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from hcxjax.data.hashing import fingerprint
from hcxjax.data.readers import Document, Skips, rejection

SPLITS = ("train", "validation")
_GROUP, _GROUP_CHARACTERS = 64, 1 << 20


def file_identity(path: str, name: str) -> tuple[str, int, int]:
    """(name, size, time of the last change) of a file: it changes with the contents, and not with the folder."""
    try:
        found = os.stat(path)
    except OSError:
        return name, -1, -1
    return name, found.st_size, found.st_mtime_ns


@dataclasses.dataclass(frozen=True)
class TaskParts:
    """The shards of a registered Task; a Mixture, which has none, is one part.

    Attributes:
      source: as `Corpus.sources` spells it; for reports.
      task: the seqio Task or Mixture.
      max_document_bytes: longer documents are skipped.
    """

    source: str
    task: Any
    max_document_bytes: int
    _listed: dict[str, Sequence[str]] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self):
        if "train" not in self.task.splits:
            splits = ", ".join(sorted(self.task.splits)) or "none"
            raise ValueError(f"source {self.source!r} has no split 'train' (its splits: {splits})")
        if not self._shards("train"):
            raise ValueError(f"source {self.source!r} has no shard: the files that its Task names are not there")

    @property
    def own_validation(self) -> bool:
        """Whether there is a validation split."""
        return "validation" in self.task.splits

    def _shards(self, split: str) -> Sequence[str]:
        if split not in self._listed:  # listing may mean looking through a folder of thousands
            source = getattr(self.task, "source", None)
            self._listed[split] = [self.task.name] if source is None else source.list_shards(split)
        return self._listed[split]

    def parts(self, split: str) -> int:
        """Number of parts of a split."""
        return len(self._shards(split))

    def part_name(self, split: str, part: int) -> str:
        """The name of the shard, without its folder."""
        return os.path.basename(self._shards(split)[part])

    def fingerprint(self, split: str, part: int) -> int:
        """Of the names of Task and shard; where the shard is a local file, of its size and time too."""
        shard = self._shards(split)[part]
        name = os.path.basename(shard)
        return fingerprint(self.task.name, file_identity(shard, name) if os.path.isfile(shard) else name)

    def documents(self, split: str, part: int, skips: Skips) -> Iterator[Document]:
        """Documents of a part; what is none is counted in `skips`, also by readers of ours below the Task."""
        place = self.source if self.parts(split) == 1 else f"{self.source}:{self.part_name(split, part)}"
        try:
            yield from self._valid(place, self._contents(split, part), skips)
        finally:
            for task in getattr(self.task, "tasks", [self.task]):
                if isinstance(below := getattr(task.source, "skips", None), Skips):
                    skips.absorb(below)

    def _valid(self, place: str, contents: Iterator[bytes], skips: Skips) -> Iterator[Document]:
        for record, content in enumerate(contents):
            try:
                text = content.decode()
            except UnicodeDecodeError:
                skips.add("invalid UTF-8", f"{place}:{record}")
                continue
            if reason := rejection(text, self.max_document_bytes):
                skips.add(reason, f"{place}:{record}")
            else:
                yield Document(record, text)

    def _contents(self, split: str, part: int) -> Iterator[bytes]:
        """The feature `text` of each example; fetched in groups, which is six times as fast as one by one."""
        seqio, parts = import_seqio(), self.parts(split)
        shard = seqio.ShardInfo(index=part, num_shards=parts) if parts > 1 else None
        # Unasked, a Mixture repeats its Tasks for ever, in an order that differs from process to process.
        dataset = self.task.get_dataset(None, split=split, shuffle=False, num_epochs=1, seed=0, shard_info=shard)
        if "text" not in dataset.element_spec:
            features = ", ".join(sorted(dataset.element_spec))
            raise ValueError(
                f"Task {self.task.name!r} has features {features}, but no 'text': give it a preprocessor that does"
            )
        for group in dataset.map(lambda example: example["text"]).batch(_GROUP).as_numpy_iterator():
            yield from group


def registered(name: str) -> Any:
    """The Task or Mixture of that name.

    Raises:
      ValueError: there is none.
    """
    seqio = import_seqio()
    known = sorted([*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()])
    if name not in known:
        raise ValueError(
            f"source {name!r} is no registered seqio Task or Mixture (there are {', '.join(known)}); "
            f"name the module that adds it in Corpus.task_modules, or a file as in jsonl:PATH"
        )
    return seqio.get_mixture_or_task(name)


def tfds_task(path: str, field: str, data_dir: str, train: str, validation: str) -> Any:
    """A Task over a TensorFlow Datasets name, whose own shards are its parts.

    Args:
      path: name, with configuration and version where it has them: wiki40b/ko:1.3.0.
      field: the feature that is the text.
      data_dir: where it lies; empty for TFDS's own folder.
      train: its split that is trained on; may be a slice, such as train[:10%].
      validation: its split that is held out; "validation" need not exist.
    Raises:
      ValueError: there is no such data set, or no such split.
    """
    seqio = import_seqio()
    name = f"tfds_{digest(path, field, data_dir, train, validation)}"
    if name in seqio.TaskRegistry.names():
        return seqio.TaskRegistry.get(name)

    def keep_text(dataset: Any) -> Any:
        return dataset.map(lambda example: {"text": example[field]})

    try:
        found = seqio.TfdsDataSource(tfds_name=path, tfds_data_dir=data_dir or None)
        if not found.splits:  # known to TFDS, but not here: it has no shards before it is fetched
            found.tfds_dataset.builder.download_and_prepare()
        known = sorted(found.splits)
    except Exception as error:  # TFDS raises many kinds, and pages of other names
        reason = str(error).partition("\n")[0]
        raise ValueError(f"tfds:{path} cannot be read ({reason}); change it in Corpus.sources") from error
    wanted = {"train": train, "validation": validation}
    if validation == "validation" not in known:
        del wanted["validation"]
    for split, chosen in wanted.items():
        if chosen.partition("[")[0] not in known:
            raise ValueError(f"tfds:{path} has no split {chosen!r}; give {split}= one of {', '.join(known)}")
    source = seqio.TfdsDataSource(tfds_name=path, tfds_data_dir=data_dir or None, splits=wanted)
    return seqio.TaskRegistry.add(name, source, preprocessors=[keep_text], output_features=text_features())


def add_text_task(name: str, texts: Callable[[str], Iterator[str]], splits: tuple[str, ...] = SPLITS) -> Any:
    """Registers a seqio Task whose examples are {"text": ...}.

    Args:
      name: of the Task.
      texts: split → its documents.
      splits: those that it has.
    """
    source = text_source(lambda split, part, skips: texts(split), {split: [split] for split in splits})
    return import_seqio().TaskRegistry.add(name, source, preprocessors=[], output_features=text_features())


def text_features() -> dict[str, Any]:
    """The `output_features` of a Task whose examples are {"text": ...}."""
    seqio = import_seqio()
    vocabulary = seqio.PassThroughVocabulary(1)
    return {"text": seqio.Feature(vocabulary, add_eos=False, dtype=import_tensorflow().string, rank=0)}


Texts = Callable[[str, int, Skips], Iterator[str]]
"""(split, number of a shard, where to count what is skipped) → its documents."""


def text_source(texts: Texts, shards: Mapping[str, Sequence[str]]) -> Any:
    """A `seqio.DataSource` of {"text": ...} over generators of texts.

    Args:
      texts: what yields the documents of a shard.
      shards: split → the names of its shards.
    """
    return _text_source_class()(texts, shards)


@functools.cache
def _text_source_class() -> Any:
    seqio, tensorflow = import_seqio(), import_tensorflow()

    class TextSource(seqio.DataSource):
        """Texts from Python; a process asks for its shards alone."""

        def __init__(self, texts: Texts, shards: Mapping[str, Sequence[str]]):
            super().__init__(splits=tuple(shards))
            self._texts, self._shards, self.skips = texts, shards, Skips()

        @property
        def supports_arbitrary_sharding(self) -> bool:
            return False

        def list_shards(self, split: str) -> Sequence[str]:
            return self._shards[split]

        def open(self, split="train", shuffle=True, seed=None, shard_info=None, **unused) -> Any:
            index, step = (shard_info.index, shard_info.num_shards) if shard_info else (0, 1)
            if step > len(self._shards[split]):
                raise ValueError(f"num_shards is {step}; split {split!r} has {len(self._shards[split])} shards")
            chosen = tensorflow.data.Dataset.range(index, len(self._shards[split]), step)
            if shuffle:
                chosen = chosen.shuffle(len(self._shards[split]), seed=seed)

            def read(shard: Any) -> Any:
                signature = {"text": tensorflow.TensorSpec([None], tensorflow.string)}
                groups = tensorflow.data.Dataset.from_generator(grouped, args=[shard], output_signature=signature)
                return groups.unbatch()

            def grouped(shard: Any) -> Iterator[dict[str, list[str]]]:
                return _grouped(self._texts(split, int(shard), self.skips))

            return chosen.flat_map(read)

        get_dataset = open  # what seqio calls it

    return TextSource


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


def digest(*values: object) -> str:
    """Sixteen letters of a hash, for the name of a Task."""
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
    """seqio, imported when a Task is first read: it takes seconds, and files and written stores are read without."""
    import_tensorflow()
    with _any_protobuf():
        import seqio

    return seqio


@contextlib.contextmanager
def _any_protobuf() -> Iterator[None]:
    """Lets sentencepiece's generated code, which seqio imports, load on the protobuf that apache-beam holds below 7.

    The code of sentencepiece 0.2.3 was generated by 7.36 and asks for that version, but runs on 6.33 as it is.
    """
    name = "TEMPORARILY_DISABLE_PROTOBUF_VERSION_CHECK"
    before = os.environ.get(name)
    os.environ[name] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
