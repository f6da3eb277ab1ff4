"""Tokenised documents, addressed by number: written once, checksummed, whole or absent."""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from tqdm import tqdm

from hcxjax.data.readers import Skips
from hcxjax.text.vocabulary import Vocabulary

_log = logging.getLogger(__name__)
FORMAT = 1
_TOKENS, _INDEX, _MANIFEST = "tokens.array_record", "index.npz", "manifest.json"


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """An open folder of tokenised documents.

    Attributes:
      folder: where it lies.
      manifest: format, source, tokenizer fingerprint, counts, skipped records by reason, checksums.
      lengths: tokens of each document, int64.
      byte_lengths: UTF-8 bytes of each document, int64.
    """

    folder: str
    manifest: dict
    lengths: np.ndarray
    byte_lengths: np.ndarray
    _reader: Any
    _dtype: np.dtype

    @classmethod
    def open(cls, folder: str) -> "TokenStore":
        """Opens what `write_store` wrote.

        Raises:
          ValueError: a file is missing, truncated or altered; names it, and the folder to delete.
        """
        from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

        manifest = _verified_manifest(folder)
        with np.load(os.path.join(folder, _INDEX)) as index:
            lengths, byte_lengths = index["lengths"], index["byte_lengths"]
        options = "readahead_buffer_size:0,max_parallelism:0"  # random access
        reader = array_record_module.ArrayRecordReader(os.path.join(folder, _TOKENS), options)
        return cls(folder, manifest, lengths, byte_lengths, reader, np.dtype(manifest["dtype"]))

    def __len__(self) -> int:
        return len(self.lengths)

    def tokens(self, document: int) -> np.ndarray:
        """Ids of one document, int32."""
        (record,) = self._reader.read([int(document)])
        return np.frombuffer(record, self._dtype).astype(np.int32)

    @property
    def fingerprint(self) -> str:
        """Stands for the documents' tokens, whatever folder they lie in."""
        return self.manifest["files"][_TOKENS]["sha256"]


def write_store(
    folder: str, texts: Iterable[str], vocabulary: Vocabulary, skips: Skips, source: str, split: str
) -> None:
    """Tokenises `texts` into `folder`, which exists and is empty.

    Args:
      skips: what the reader of `texts` left out; goes into the manifest.
      source, split: names for messages and the manifest.
    Raises:
      ValueError: there was no document.
    """
    from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

    dtype = np.dtype("<u2" if vocabulary.size <= 1 << 16 else "<u4")
    writer = array_record_module.ArrayRecordWriter(os.path.join(folder, _TOKENS), "group_size:1")
    lengths, byte_lengths = [], []
    with tqdm(desc=f"store: {source} {split}", unit="doc", leave=False) as bar:
        for text in texts:
            ids = vocabulary.encode(text)
            writer.write(np.asarray(ids, dtype).tobytes())
            lengths.append(len(ids))
            byte_lengths.append(len(text.encode()))
            bar.update()
    writer.close()
    report_skips(skips, source, split)
    if not lengths:
        raise ValueError(
            f"source {source!r} has no document in split {split!r} ({describe(skips)}); change it in Corpus.sources"
        )
    np.savez(
        os.path.join(folder, _INDEX), lengths=np.array(lengths, np.int64), byte_lengths=np.array(byte_lengths, np.int64)
    )
    manifest = {
        "format": FORMAT,
        "source": source,
        "split": split,
        "tokenizer": vocabulary.fingerprint,
        "dtype": dtype.str,
        "documents": len(lengths),
        "tokens": sum(lengths),
        "bytes": sum(byte_lengths),
        "skipped": dict(skips.counts),
        "skipped_first_at": skips.examples,
        "files": {name: _measured(os.path.join(folder, name)) for name in (_TOKENS, _INDEX)},
    }
    with open(os.path.join(folder, _MANIFEST), "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=2, ensure_ascii=False)


def report_skips(skips: Skips, source: str, split: str) -> None:
    """Logs what was left out, if anything was."""
    if skips.counts:
        _log.warning("%s %s: skipped %s", source, split, describe(skips))


def describe(skips: Skips) -> str:
    """Skipped records by reason in one line, each with the first place it was found."""
    reasons = [f"{count} x {reason} (first: {skips.examples[reason]})" for reason, count in skips.counts.most_common()]
    return "; ".join(reasons) if reasons else "nothing skipped"


def _verified_manifest(folder: str) -> dict:
    """The manifest, once every file is found to be what it says."""
    advice = f"delete {folder} to have it written anew"
    path = os.path.join(folder, _MANIFEST)
    try:
        with open(path, encoding="utf-8") as file:
            manifest = json.load(file)
        files, found_format = manifest["files"], manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); {advice}") from error
    if found_format != FORMAT:
        raise ValueError(f"{path} has format {found_format}, expected {FORMAT}; {advice}")
    for name, expected in files.items():
        place = os.path.join(folder, name)
        if not os.path.isfile(place):
            raise ValueError(f"{place} is missing; {advice}")
        if (size := os.path.getsize(place)) != expected["bytes"]:
            raise ValueError(f"{place} is truncated or altered: {size} bytes, expected {expected['bytes']}; {advice}")
        if (found := _measured(place)["sha256"]) != expected["sha256"]:
            raise ValueError(f"{place} is corrupted: sha256 {found}, expected {expected['sha256']}; {advice}")
    return manifest


def _measured(path: str) -> dict[str, int | str]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": os.path.getsize(path), "sha256": digest}
