"""Folders that are either whole or absent: written beside their place, synced, then renamed."""

import contextlib
import fcntl
import glob
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator

_POLL_SECONDS = 0.2
_SAY_EVERY_SECONDS = 30.0
_log = logging.getLogger(__name__)


def publish(folder: str, write: Callable[[str], None], *, timeout_s: float = 24 * 3600.0) -> None:
    """Makes `folder` by `write(temporary folder)` unless it is there already.

    One process at a time writes; others wait until the folder is there. On several hosts that share a file system all
    wait for the first; where each host has its own disk, each writes its own, and the contents are the same. A writer
    that was killed leaves a temporary folder, which the next one removes, and a lock that died with it.

    Raises:
      TimeoutError: another process held the lock for `timeout_s`.
    """
    if os.path.isdir(folder):
        return
    os.makedirs(os.path.dirname(os.path.abspath(folder)), exist_ok=True)
    with _locked(folder, timeout_s):
        if os.path.isdir(folder):
            return
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


@contextlib.contextmanager
def _locked(folder: str, timeout_s: float) -> Iterator[None]:
    """Holds `folder`.lock; the kernel lets go of it when the process dies, however it dies."""
    with open(folder + ".lock", "w") as lock:
        started = said = time.monotonic()
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                now = time.monotonic()
                if now - started > timeout_s:
                    raise TimeoutError(f"waited {timeout_s:.0f} s for another process to write {folder}") from None
                if now - said > _SAY_EVERY_SECONDS:
                    _log.info("waiting for another process to write %s (%.0f s)", folder, now - started)
                    said = now
                time.sleep(_POLL_SECONDS)
        yield


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
