"""SIGTERM, which says that the machine is about to be taken away, as an answer that the loop asks for at every step."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Preempted:
    """Has SIGTERM come? All processes give the same answer at the same step."""

    def __init__(self):
        self.signalled = False

    def __call__(self, step: int) -> bool:
        if jax.process_count() == 1:
            return self.signalled
        return multihost_utils.reached_preemption_sync_point(step)

    def signal(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        self.signalled = True


@contextlib.contextmanager
def preemption() -> Iterator[Preempted]:
    """Turns SIGTERM into an answer that the loop asks for; several processes are told through jax.distributed."""
    preempted = Preempted()
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield preempted
        return
    before = signal.signal(signal.SIGTERM, preempted.signal)
    try:
        yield preempted
    finally:
        signal.signal(signal.SIGTERM, before)
