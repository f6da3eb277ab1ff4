"""The text fields of evaluation sets: csv, tsv, json, jsonl and txt files, plain, gzipped, or in tar archives."""

import csv
import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

_KINDS = (".csv", ".tsv", ".jsonl", ".json", ".txt")


def evaluation_fields(paths: Sequence[str], left_out: Sequence[str] = ()) -> Iterator[str]:
    """Every string of the evaluation sets.

    Args:
      paths: files and folders; a folder's files of other kinds, such as licences, are passed over.
      left_out: names of fields (keys of JSON, columns of a table with a header) that are not read.
    Raises:
      ValueError: a path does not exist, is of another kind or cannot be read, or a folder holds no evaluation set.
    """
    for path in paths:
        for _, file in _files(path):
            try:
                yield from _of_file(file, frozenset(left_out))
            except (OSError, EOFError, ValueError, tarfile.TarError) as error:
                raise _unreadable(file, error) from error


def fingerprint_of(paths: Sequence[str]) -> str:
    """sha256 over the names, below each path, and the bytes of all files that hold the evaluation sets.

    Raises:
      ValueError: a path does not exist or cannot be read, or a folder holds no evaluation set.
    """
    total = hashlib.sha256()
    for path in paths:
        for name, file in _files(path):
            try:
                with open(file, "rb") as content:
                    digest = hashlib.file_digest(content, "sha256").hexdigest()
            except OSError as error:
                raise _unreadable(file, error) from error
            total.update(f"{name}\0{digest}\0".encode(errors="surrogateescape"))
    return total.hexdigest()


def _files(path: str) -> list[tuple[str, str]]:
    """(name, path) of the files of an evaluation set; a file in a folder is named from there."""
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        found = (os.path.join(place, name) for place, _, names in os.walk(path) for name in names)
        files = [(os.path.relpath(file, path), file) for file in sorted(found) if _is_tar(file) or _kind(file)]
    else:
        files = [(os.path.basename(path), path)]
    if not files or not os.path.isfile(files[0][1]):
        raise ValueError(f"no evaluation set at {path!r}; change it in BenchmarkOverlap.paths")
    return files


def _unreadable(file: str, error: Exception) -> ValueError:
    return ValueError(f"evaluation set {file!r} cannot be read ({error}); see BenchmarkOverlap.paths")


def _of_file(path: str, left_out: frozenset[str]) -> Iterator[str]:
    if _is_tar(path):
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and _kind(member.name) and (file := archive.extractfile(member)):
                    yield from _of_content(member.name, file.read(), left_out)
        return
    if not _kind(path):
        raise ValueError(f"it must end in {', '.join(_KINDS)}, any of them with .gz, or .tar.gz")
    with open(path, "rb") as file:
        yield from _of_content(path, file.read(), left_out)


def _of_content(name: str, content: bytes, left_out: frozenset[str]) -> Iterator[str]:
    text = (gzip.decompress(content) if name.lower().endswith(".gz") else content).decode("utf-8-sig", "replace")
    kind = _kind(name)
    if kind == ".txt":
        yield from text.splitlines()
    elif kind == ".json":
        try:
            yield from _strings(json.loads(text), left_out)
        except json.JSONDecodeError:
            # Some published .json files are JSON lines.
            yield from _of_lines(text, left_out)
    elif kind == ".jsonl":
        yield from _of_lines(text, left_out)
    else:
        yield from _of_table(text, kind, left_out)


def _of_lines(text: str, left_out: frozenset[str]) -> Iterator[str]:
    # Not splitlines: JSON strings may hold U+2028, which is no end of a line of JSON.
    for line in text.split("\n"):
        if line.strip():
            yield from _strings(json.loads(line), left_out)


def _of_table(text: str, kind: str | None, left_out: frozenset[str]) -> Iterator[str]:
    """Cells. The first row is a header where it names a field that is left out, and otherwise read like any other."""
    csv.field_size_limit(1 << 30)
    # A tab-separated file may hold lone quotes, which would swallow the rest of it.
    quoting = csv.QUOTE_NONE if kind == ".tsv" else csv.QUOTE_MINIMAL
    rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if kind == ".tsv" else ",", quoting=quoting)
    skipped: set[int] = set()
    for number, row in enumerate(rows):
        if number == 0:
            skipped = {column for column, cell in enumerate(row) if cell.strip().lower() in left_out}
        yield from (cell for column, cell in enumerate(row) if column not in skipped)


def _strings(value: Any, left_out: frozenset[str]) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, part in value.items():
            if key.lower() not in left_out:
                yield from _strings(part, left_out)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part, left_out)


def _is_tar(name: str) -> bool:
    return name.lower().endswith((".tar", ".tar.gz", ".tgz"))


def _kind(name: str) -> str | None:
    """The ending that says how to read `name`, or None."""
    ending = os.path.splitext(name.lower().removesuffix(".gz"))[1]
    hidden = os.path.basename(name).startswith(".")
    return ending if ending in _KINDS and not hidden else None
