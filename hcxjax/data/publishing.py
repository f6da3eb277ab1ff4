"""Folders and files that are either whole or absent: written beside their place, synced, then renamed."""

import contextlib
import fcntl
import glob
import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

_POLL_SECONDS = 0.2
_SAY_EVERY_SECONDS = 30.0
_log = logging.getLogger(__name__)


def publish(folder: str, write: Callable[[str], None], *, wait: bool = True, timeout_s: float = 24 * 3600.0) -> bool:
    """Makes `folder` by `write(temporary folder)` unless it is there already; True where it then is.

    One process at a time writes; others wait until the folder is there. On several hosts that share a file system all
    wait for the first; where each host has its own disk, each writes its own, and the contents are the same. A writer
    that was killed leaves a temporary folder, which the next one removes, and a lock that died with it.

    Args:
      wait: False comes back at once where another process is writing.
    Raises:
      TimeoutError: another process held the lock for `timeout_s`.
    """
    if os.path.isdir(folder):
        return True
    os.makedirs(os.path.dirname(os.path.abspath(folder)), exist_ok=True)
    with _locked(folder, timeout_s if wait else 0.0) as held:
        if not held:
            return False
        if os.path.isdir(folder):
            return True
        for leftover in glob.glob(glob.escape(folder) + ".writing-*"):
            _log.warning("removing %s, left by a writer that did not finish", leftover)
            shutil.rmtree(leftover)
        temporary = f"{folder}.writing-{os.getpid()}"
        os.mkdir(temporary)
        try:
            write(temporary)
            _sync(temporary)
            os.rename(temporary, folder)
            _sync_folder(os.path.dirname(os.path.abspath(folder)))
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return True


@contextlib.contextmanager
def _locked(folder: str, timeout_s: float) -> Iterator[bool]:
    """Holds `folder`.lock; the kernel lets go of it when the process dies, however it dies.

    False: another process holds it, and `timeout_s` is 0.
    """
    with open(folder + ".lock", "w") as lock:
        started = said = time.monotonic()
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not timeout_s:
                    yield False
                    return
                now = time.monotonic()
                if now - started > timeout_s:
                    raise TimeoutError(f"waited {timeout_s:.0f} s for another process to write {folder}") from None
                if now - said > _SAY_EVERY_SECONDS:
                    _log.info("waiting for another process to write %s (%.0f s)", folder, now - started)
                    said = now
                time.sleep(_POLL_SECONDS)
        yield True


def write_whole(path: str, content: Any) -> None:
    """Writes `content` as JSON; a reader finds all of it or the file as it was."""
    partial = f"{path}.writing-{os.getpid()}-{threading.get_ident()}"
    try:
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(partial)
        raise


def measured(path: str) -> dict[str, int | str]:
    """A file's size in bytes and sha256, as manifests keep them."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": os.path.getsize(path), "sha256": digest}


def _sync(folder: str) -> None:
    for name in os.listdir(folder):
        with open(os.path.join(folder, name), "rb") as file:
            os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
