"""Documents from files, one at a time: what cannot be read is skipped, counted by reason, and never silently lost."""

import collections
import dataclasses
import glob
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple, cast

from hcxjax.data.zstd import open_zstd

MAX_DOCUMENT_BYTES = 8_000_000
JSONL_ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst")
PARQUET_ENDINGS = (".parquet",)
CODE_EXTENSIONS = ("py", "js", "ts", "java", "kt", "go", "rs", "c", "h", "cc", "cpp", "hpp", "cs", "rb", "php", "swift")
CODE_EXTENSIONS += ("scala", "sh", "sql", "html", "css")


class Document(NamedTuple):
    """A text of a source.

    Attributes:
      record: its number within its part, counting what is read of that part; the same in every run and process.
      text: what it says; not empty, and valid Unicode.
    """

    record: int
    text: str


@dataclasses.dataclass
class Skips:
    """Records that were left out.

    Attributes:
      counts: records by reason.
      examples: where the first of each reason stands, as file:line.
    """

    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    examples: dict[str, str] = dataclasses.field(default_factory=dict)

    def add(self, reason: str, place: str, count: int = 1) -> None:
        """Counts `count` more records that were left out for `reason`, the first of them found at `place`."""
        self.counts[reason] += count
        self.examples.setdefault(reason, place)

    def told(self) -> dict[str, tuple[int, str]]:
        """Reason → (count, the first of its examples), the most frequent first."""
        return {reason: (count, self.examples[reason]) for reason, count in self.counts.most_common()}

    def described(self) -> str:
        """`told` in a line."""
        return "; ".join(f"{reason} {count} (first: {example})" for reason, (count, example) in self.told().items())

    def absorb(self, other: "Skips") -> None:
        """Adds what `other` has counted, which then starts anew."""
        counts, other.counts = other.counts, collections.Counter()
        examples, other.examples = other.examples, {}
        self.counts.update(counts)
        self.examples = examples | self.examples


def rejection(text: object, max_document_bytes: int) -> str | None:
    """Why `text` is no document, or None if it is one."""
    if not isinstance(text, str):
        return f"text is {type(text).__name__}, not a string"
    if not text.strip():
        return "empty text"
    if len(text) > max_document_bytes:
        return "over max_document_bytes"
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "lone surrogate"
    return "over max_document_bytes" if size > max_document_bytes else None


def read_jsonl(path: str, field: str, max_document_bytes: int, skips: Skips) -> Iterator[str]:
    """Texts of JSON lines, one object a line, from a plain, a .gz or a .zst file.

    Args:
      field: key of the text.
      max_document_bytes: longer texts are skipped; a line is never held in memory beyond twice that.
    """
    for number, line in json_lines(path, 2 * max_document_bytes + 1024, skips):
        place = f"{path}:{number}"
        text = _parse(line, field, skips, place)
        if text is None:
            continue
        if reason := rejection(text, max_document_bytes):
            skips.add(reason, place)
        else:
            yield text


def _parse(line: bytes, field: str, skips: Skips, place: str) -> Any:
    """What stands under `field`, or None, counted."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return skips.add("invalid UTF-8", place)
    except (ValueError, RecursionError):
        return skips.add("malformed JSON", place)
    if not isinstance(record, dict) or field not in record:
        return skips.add(f"no field {field!r}", place)
    if record[field] is None:
        return skips.add("text is null", place)
    return record[field]


def json_lines(path: str, limit: int, skips: Skips) -> Iterator[tuple[int, bytes]]:
    """(number, line) of each line that is not blank; a line over `limit` bytes is counted and passed over in parts."""
    number = 0
    try:
        with _open(path) as file:
            while line := file.readline(limit):
                number += 1
                if len(line) == limit and not line.endswith(b"\n"):
                    skips.add("over max_document_bytes", f"{path}:{number}")
                    while line and not line.endswith(b"\n"):
                        line = file.readline(limit)
                elif line.strip():
                    yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile):
        kind = "zstd" if path.endswith(".zst") else "gzip"
        skips.add(f"truncated or corrupted {kind}", f"{path}:{number + 1}")
        return
    except OSError as error:
        skips.add(f"unreadable: {error.strerror}", f"{path}:{number + 1}")
        return
    if not number:
        skips.add("empty file", path)


def _open(path: str) -> BinaryIO:
    if path.endswith(".zst"):
        return open_zstd(path)
    return cast(BinaryIO, gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb"))


def read_parquet(path: str, field: str, max_document_bytes: int, skips: Skips) -> Iterator[str]:
    """Texts of one column of a Parquet file, a few rows of a row group at a time.

    A row group that cannot be read is counted row by row, and those after it are read.

    Args:
      field: name of the column; of strings or bytes.
      max_document_bytes: longer texts are skipped.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        return skips.add(parquet_reason(path, error), path)
    with file:
        if not file.metadata.num_rows:
            return skips.add("empty file", path)
        if field not in file.schema_arrow.names:
            return skips.add(f"no field {field!r}", f"{path}:1", file.metadata.num_rows)
        first = 1
        for group in range(file.num_row_groups):
            number = first
            try:
                for value in _column(file, group, field):
                    if isinstance(text := _text_of(value, max_document_bytes, skips, f"{path}:{number}"), str):
                        yield text
                    number += 1
            except (pyarrow.ArrowException, OSError) as error:
                missing = first + file.metadata.row_group(group).num_rows - number
                skips.add(parquet_reason(path, error), f"{path}:{number}", missing)
            first += file.metadata.row_group(group).num_rows


def parquet_reason(path: str, error: Exception) -> str:
    """Why a Parquet file, or a part of it, cannot be read."""
    if isinstance(error, OSError) and error.errno:
        return f"unreadable: {os.strerror(error.errno)}"
    return "empty file" if not os.path.getsize(path) else "truncated or corrupted Parquet"


def _column(file: Any, group: int, field: str) -> Iterator[Any]:
    """Values of a row group; text as bytes, because Parquet does not promise that it is valid UTF-8."""
    import pyarrow

    for batch in file.iter_batches(batch_size=64, row_groups=[group], columns=[field], use_threads=False):
        column = batch.column(0)
        if pyarrow.types.is_string(column.type):
            column = column.cast(pyarrow.binary())
        elif pyarrow.types.is_large_string(column.type):
            column = column.cast(pyarrow.large_binary())
        yield from (value.as_py() for value in column)


def _text_of(value: Any, max_document_bytes: int, skips: Skips, place: str) -> str | None:
    """The document that a value of a column is, or None, counted."""
    if value is None:
        return skips.add("text is null", place)
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return skips.add("invalid UTF-8", place)
    if reason := rejection(value, max_document_bytes):
        return skips.add(reason, place)
    return value


def read_files(paths: Iterable[str], max_document_bytes: int, skips: Skips) -> Iterator[str]:
    """Each file as one document."""
    for path in paths:
        try:
            if os.path.getsize(path) > max_document_bytes:
                skips.add("over max_document_bytes", path)
                continue
            with open(path, "rb") as file:
                content = file.read()
        except OSError as error:
            skips.add(f"unreadable: {error.strerror}", path)
            continue
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            skips.add("invalid UTF-8", path)
            continue
        if reason := rejection(text, max_document_bytes):
            skips.add(reason, path)
        else:
            yield text


def find_matching(pattern: str, endings: tuple[str, ...]) -> list[str]:
    """Files of a path, of a folder (those whose names end in one of `endings`) or of a glob; sorted.

    Raises:
      ValueError: there is none.
    """
    pattern = os.path.expanduser(pattern)
    if os.path.isdir(pattern):
        found = [path for path in _walk(pattern) if path.endswith(endings)]
    else:
        found = [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]
    if not found:
        raise ValueError(f"no {' or '.join(endings)} file matches {pattern!r}; change it in Corpus.sources")
    return sorted(found)


def find_files(folder: str, extensions: tuple[str, ...]) -> list[str]:
    """Files under `folder`, in an order of their names' hashes, so that any prefix is a fair sample.

    Raises:
      ValueError: no such folder, or no such file in it.
    """
    folder = os.path.expanduser(folder)
    if os.path.isfile(folder):
        return [folder]
    if not os.path.isdir(folder):
        raise ValueError(f"{folder!r} does not exist; change it in Corpus.sources")
    endings = tuple(f".{extension.strip().lstrip('.')}" for extension in extensions)
    found = [path for path in _walk(folder) if path.endswith(endings)]
    if not found:
        raise ValueError(f"no file under {folder!r} ends in {' '.join(endings)}; change it in Corpus.sources")

    def shuffled(path: str) -> bytes:
        return hashlib.sha256(os.path.relpath(path, folder).encode(errors="surrogateescape")).digest()

    return sorted(found, key=shuffled)


def _walk(folder: str) -> Iterator[str]:
    """Regular files below `folder`; hidden folders (.git and the like) are passed over."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (path for name in sorted(names) if os.path.isfile(path := os.path.join(place, name)))
