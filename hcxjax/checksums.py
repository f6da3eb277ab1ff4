"""Checksums of the files of a folder, kept in the folder itself."""

import json
import os
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

CHECKSUMS = "checksums.json"
_READ_BYTES = 1 << 22


def seal(folder: Path, unsealed: Collection[str] = ()) -> None:
    """Writes the sizes and checksums of all files below `folder` into it; they are on disk when this returns.

    Args:
      unsealed: names of files that are left out, because they change afterwards.
    """
    with (folder / CHECKSUMS).open("w") as file:
        json.dump(dict(_checksums(folder, unsealed)), file, indent=0)
        file.flush()
        os.fsync(file.fileno())


def damage(folder: Path, unsealed: Collection[str] = ()) -> str | None:
    """What is wrong with the files of a sealed folder, or None."""
    recorded = folder / CHECKSUMS
    if not recorded.exists():
        return f"{CHECKSUMS} is missing"
    try:
        expected = json.loads(recorded.read_text())
    except (OSError, ValueError) as error:
        return f"{CHECKSUMS} cannot be read: {error}"
    found = dict(_checksums(folder, unsealed))
    for file, (size, crc) in expected.items():
        if file not in found:
            return f"{file} is missing"
        if found[file][0] != size:
            return f"{file} has {found[file][0]} bytes, {size} were written"
        if found[file][1] != crc:
            return f"{file} has other contents than were written"
    return None


def _checksums(folder: Path, unsealed: Collection[str]) -> Iterator[tuple[str, list[int]]]:
    """(file, [bytes, crc32]) of every file below `folder`."""
    left_out = {CHECKSUMS, *unsealed}
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in left_out):
        crc, size = 0, 0
        with file.open("rb") as opened:
            while block := opened.read(_READ_BYTES):
                crc, size = zlib.crc32(block, crc), size + len(block)
        yield str(file.relative_to(folder)), [size, crc]
