"""Tokenised documents, addressed by number: written in parts by any number of processes, checksummed, sealed once.

A store is a folder of parts, each published whole (`hcxjax.data.publishing`), and a manifest that is written last: a
store without a manifest is one that is being written.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hcxjax.data.publishing import measured, write_whole
from hcxjax.text.vocabulary import Vocabulary

FORMAT = 2
RECORD_TOKENS = 1 << 16
"""Tokens of one record: a longer document takes several, so that a row need not read all of it."""
_OPEN_FILES = 256
_TOKENS, _INDEX, _SUMMARY, MANIFEST = "tokens.array_record", "index.npz", "part.json", "manifest.json"


def part_folder(store: str, part: int) -> str:
    """Where a part of a store lies."""
    return os.path.join(store, f"part-{part:05d}")


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """An open folder of tokenised documents.

    Attributes:
      folder: where it lies.
      manifest: format, source, tokenizer fingerprint, counts, what was left out by reason, checksums by part.
      lengths: tokens of each document, int64.
      byte_lengths: UTF-8 bytes of each document, int64.
    """

    folder: str
    manifest: dict
    lengths: np.ndarray
    byte_lengths: np.ndarray
    _parts: tuple["_Part", ...]
    _ends: np.ndarray  # documents up to the end of each part

    @classmethod
    def open(cls, folder: str) -> "TokenStore":
        """Opens what `seal` made.

        Indices are verified whole. Of tokens only the size is: ArrayRecord sums every chunk and refuses a damaged one
        when it is read (`verify` reads them all).

        Raises:
          ValueError: a file is missing, truncated or altered; names it, and the folder to delete.
        """
        manifest = _manifest(folder)
        parts = tuple(
            _Part(part_folder(folder, number), summary, np.dtype(manifest["dtype"]))
            for number, summary in manifest["parts"].items()
        )
        lengths = np.concatenate([part.lengths for part in parts])
        byte_lengths = np.concatenate([part.byte_lengths for part in parts])
        return cls(folder, manifest, lengths, byte_lengths, parts, np.cumsum([len(part.lengths) for part in parts]))

    def __len__(self) -> int:
        return len(self.lengths)

    def tokens(self, document: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Ids start..stop-1 of one document, int32."""
        part = int(np.searchsorted(self._ends, document, side="right"))
        before = int(self._ends[part - 1]) if part else 0
        return self._parts[part].tokens(int(document) - before, start, stop)

    def verify(self) -> None:
        """Reads every byte. ValueError names the file that is not what was written."""
        for part in self._parts:
            for name in part.summary["files"]:
                _check_file(part.folder, name, part.summary, hashed=True)

    @property
    def fingerprint(self) -> str:
        """Stands for the documents' tokens, whatever folder they lie in."""
        return self.manifest["fingerprint"]


class _Part:
    """The documents of one part."""

    def __init__(self, folder: str, summary: dict, dtype: np.dtype):
        self.folder, self.summary, self._dtype = folder, summary, dtype
        self._path = os.path.join(folder, _TOKENS)
        _check_file(folder, _TOKENS, summary)
        _check_file(folder, _INDEX, summary, hashed=True)
        with np.load(os.path.join(folder, _INDEX)) as index:
            self.lengths, self.byte_lengths = index["lengths"], index["byte_lengths"]
        records = np.maximum(1, -(-self.lengths // RECORD_TOKENS))
        self._first_records = np.cumsum(records) - records

    def tokens(self, document: int, start: int, stop: int | None) -> np.ndarray:
        stop = int(self.lengths[document]) if stop is None else min(stop, int(self.lengths[document]))
        first, last = start // RECORD_TOKENS, max(start, stop - 1) // RECORD_TOKENS
        record = int(self._first_records[document])
        try:
            reader = _reader(self._path, os.stat(self._path).st_mtime_ns)
            chunks = reader.read(list(range(record + first, record + last + 1)))
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(f"{self._path} is corrupted ({error}); {_advice(os.path.dirname(self.folder))}") from error
        tokens = np.frombuffer(b"".join(chunks), self._dtype)
        return tokens[start - first * RECORD_TOKENS : stop - first * RECORD_TOKENS].astype(np.int32)


@functools.lru_cache(maxsize=_OPEN_FILES)
def _reader(path: str, changed: int) -> Any:
    """Random access to the records of a file as it was `changed`; what was not read for long is closed again."""
    from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

    return array_record_module.ArrayRecordReader(path, "readahead_buffer_size:0,max_parallelism:0")


def write_part(folder: str, texts: Iterable[str], vocabulary: Vocabulary) -> None:
    """Tokenises `texts` into `folder`, which exists and is empty; equal texts give equal bytes."""
    from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

    dtype = _dtype(vocabulary)
    writer = array_record_module.ArrayRecordWriter(os.path.join(folder, _TOKENS), "group_size:1")
    lengths, byte_lengths = [], []
    for text in texts:
        ids = np.asarray(vocabulary.encode(text), dtype)
        for start in range(0, max(1, len(ids)), RECORD_TOKENS):
            writer.write(ids[start : start + RECORD_TOKENS].tobytes())
        lengths.append(len(ids))
        byte_lengths.append(len(text.encode()))
    writer.close()
    np.savez(
        os.path.join(folder, _INDEX), lengths=np.array(lengths, np.int64), byte_lengths=np.array(byte_lengths, np.int64)
    )
    counts = {"documents": len(lengths), "tokens": sum(lengths), "bytes": sum(byte_lengths)}
    files = {name: measured(os.path.join(folder, name)) for name in (_TOKENS, _INDEX)}
    write_whole(os.path.join(folder, _SUMMARY), counts | {"files": files})


def seal(store: str, parts: Sequence[int], vocabulary: Vocabulary, about: dict[str, Any]) -> None:
    """Writes the manifest of a store whose `parts` are published; parts without a document are left out of it.

    Args:
      about: what else the manifest says: `source`, `split`, `left_out` (in words) and more.
    Raises:
      ValueError: a part is missing or damaged, or there is no document.
    """
    summaries = {}
    for part in parts:
        path = os.path.join(part_folder(store, part), _SUMMARY)
        summary = _read(path, part_folder(store, part))
        if summary["documents"]:
            summaries[part] = summary
    if not summaries:
        raise ValueError(
            f"source {about['source']!r} has no document in split {about['split']!r} ({about['left_out']}); "
            "change it in Corpus.sources"
        )
    counts = {name: sum(part[name] for part in summaries.values()) for name in ("documents", "tokens", "bytes")}
    tokens = [part["files"][_TOKENS]["sha256"] for part in summaries.values()]
    manifest = {"format": FORMAT, **about, "tokenizer": vocabulary.fingerprint, "dtype": _dtype(vocabulary).str}
    manifest |= {**counts, "fingerprint": hashlib.sha256("".join(tokens).encode()).hexdigest(), "parts": summaries}
    write_whole(os.path.join(store, MANIFEST), manifest)


def sealed(store: str) -> bool:
    """Is the store complete?"""
    return os.path.exists(os.path.join(store, MANIFEST))


def _dtype(vocabulary: Vocabulary) -> np.dtype:
    return np.dtype("<u2" if vocabulary.size <= 1 << 16 else "<u4")


def _advice(folder: str) -> str:
    return f"delete {folder} to have it written anew"


def _read(path: str, folder: str) -> dict:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); {_advice(folder)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} cannot be read (no object); {_advice(folder)}")
    return content


def _manifest(folder: str) -> dict:
    path = os.path.join(folder, MANIFEST)
    manifest = _read(path, folder)
    if (found := manifest.get("format")) != FORMAT:
        raise ValueError(f"{path} has format {found}, expected {FORMAT}; {_advice(folder)}")
    manifest["parts"] = {int(number): summary for number, summary in manifest["parts"].items()}
    return manifest


def _check_file(folder: str, name: str, summary: dict, hashed: bool = False) -> None:
    """ValueError unless the file has the size, and where `hashed` the sum, that it was written with."""
    place, expected = os.path.join(folder, name), summary["files"][name]
    advice = _advice(os.path.dirname(folder))
    if not os.path.isfile(place):
        raise ValueError(f"{place} is missing; {advice}")
    if (size := os.path.getsize(place)) != expected["bytes"]:
        raise ValueError(f"{place} is truncated or altered: {size} bytes, expected {expected['bytes']}; {advice}")
    if hashed and (found := measured(place)["sha256"]) != expected["sha256"]:
        raise ValueError(f"{place} is corrupted: sha256 {found}, expected {expected['sha256']}; {advice}")
