"""A process of a run that hangs or fails at a step: python -m tests.stuck POINT STEP [arguments of hcxjax.main].

Its heart goes on beating, which is what jax looks at.
"""

import sys
import time

from hcxjax import main
from hcxjax.checkpoint import CheckpointFolder
from hcxjax.phases import Phases


def hang(*_):
    time.sleep(3600)


def fail(*_):
    raise ValueError("the disk of this machine is upside down")


def at_batch(act, wanted):
    taken = Phases.next

    def next_batch(self, params, step):
        if step == wanted:
            act()
        return taken(self, params, step)

    Phases.next = next_batch


def at_save(act, wanted):
    barrier = CheckpointFolder._barrier

    def wait(self, *, key, timeout_ms):
        if "async_write_complete" in key and self._pending == wanted:
            act()
        barrier(self, key=key, timeout_ms=timeout_ms)

    CheckpointFolder._barrier = wait


POINTS = {"batch hangs": (at_batch, hang), "batch fails": (at_batch, fail), "save hangs": (at_save, hang)}


if __name__ == "__main__":
    arm, act = POINTS[sys.argv[1]]
    arm(act, int(sys.argv[2]))
    sys.exit(main.main(sys.argv[3:]))
