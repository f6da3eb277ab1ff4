"""Folders of flat arrays that are mapped into memory when they are read, under a manifest with counts and checksums."""

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from hcxjax.data.hashing import fingerprint
from hcxjax.data.publishing import measured, write_whole

MANIFEST = "manifest.json"


def seal(folder: str, names: Sequence[str], version: int, about: dict[str, Any]) -> dict[str, Any]:
    """Writes the manifest of files that are complete, and returns it.

    Args:
      names: of the files in `folder`.
      version: of their format.
      about: what else the manifest says.
    """
    files = {name: measured(os.path.join(folder, name)) for name in names}
    manifest = {"format": version, **about, "files": files}
    write_whole(os.path.join(folder, MANIFEST), manifest)
    return manifest


def unsealed(folder: str, names: Sequence[str], version: int) -> dict[str, Any]:
    """The manifest of files that are as they were sealed.

    Raises:
      ValueError: one is missing, altered or of another format; names it, and the folder to delete.
    """
    manifest = _manifest(folder, version)
    for name in names:
        path = os.path.join(folder, name)
        if not os.path.isfile(path) or measured(path) != manifest["files"][name]:
            raise ValueError(f"{path} is missing or corrupted; delete {folder} to have it written anew")
    return manifest


def contents(manifest: dict[str, Any], names: Sequence[str]) -> int:
    """Stands for what the files hold, whatever folder they lie in."""
    return fingerprint([manifest["files"][name]["sha256"] for name in names])


def mapped(folder: str, name: str, kind: str) -> np.ndarray:
    """A file as an array of dtype `kind`, read when it is looked at."""
    path = os.path.join(folder, name)
    return np.memmap(path, kind, "r") if os.path.getsize(path) else np.zeros(0, kind)


def _manifest(folder: str, version: int) -> dict[str, Any]:
    path = os.path.join(folder, MANIFEST)
    try:
        with open(path, encoding="utf-8") as file:
            manifest = json.load(file)
        found = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); delete {folder} to have it written anew") from error
    if found != version:
        raise ValueError(f"{path} has format {found}, expected {version}; delete {folder} to have it written anew")
    return manifest
