"""Folders with folders in them that are either whole or absent, and never written over."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_absent(target: Path) -> None:
    """ValueError where `target` is there and has something in it."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists; name another folder, or delete it first")


def check_space(target: Path, needed: int) -> None:
    """ValueError where the disk of `target` has fewer than `needed` bytes left."""
    there = next(folder for folder in target.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise ValueError(f"{target} needs up to {needed:,} bytes and {free:,} are free on its disk")


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, `target`.unfinished; when the block ends it is synced and becomes `target` by a rename.

    What a killed process has left in it is removed by the next one.

    Raises:
      ValueError: `target` exists, or another process is writing it.
    """
    check_absent(target)
    unfinished = target.absolute().with_name(target.name + ".unfinished")
    unfinished.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(unfinished, os.O_RDONLY)
    try:
        _lock(descriptor, unfinished)
        try:
            _clear(unfinished)
            yield unfinished
            _sync(unfinished)
            check_absent(target)
            unfinished.rename(target)
            _sync_one(target.absolute().parent)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    """The kernel lets go of it when the process dies, however it dies."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever had the lock may have renamed or removed the folder since it was opened.
        same = folder.is_dir() and os.path.samestat(os.fstat(descriptor), folder.stat())
    except BlockingIOError:
        same = False
    if not same:
        raise ValueError(f"another process is writing {folder}; wait for it to finish") from None


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
