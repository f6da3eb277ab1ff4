"""A run that kills itself: python -m tests.killed POINT COUNT [arguments of hcxjax.main].

SIGKILL, as a machine that is taken away: nothing is flushed, no handler runs, threads end where they are. Or a list of
runs, one after the other in a process, which saves starting one for each: python -m tests.killed [[arguments], ...].
"""

import functools
import json
import os
import signal
import sys

from hcxjax import main, train
from hcxjax.checkpoint import CheckpointFolder
from hcxjax.data.rollouts.log import RolloutLog
from hcxjax.data.rollouts.player import Player
from hcxjax.data.rollouts.source import Rollouts
from hcxjax.inference.engine import Engine
from hcxjax.train import UpdateLog

POINTS = {
    "rollout begins": (Player, "play", False),
    "tokens are written": (Engine, "advance", False),
    "rollout is written": (Player, "play", True),
    "reference and reward judge": (Player, "_judging", True),
    "policy and critic judge": (Rollouts, "_judge", False),
    "rollout is written down": (RolloutLog, "write", True),
    "update begins": (train, "compiled_update", False),
    "update was sent": (UpdateLog, "push", False),
    "save is not sealed": (CheckpointFolder, "_seal", False),
    "save is sealed and has no name": (CheckpointFolder, "_seal", True),
}
"""Name → (where, what is called, afterwards)."""


def deadly(called, count, afterwards):
    """`called`, but its call number `count`, from 1, is the last thing that the process does."""
    calls = 0

    @functools.wraps(called)
    def wrapped(*arguments, **named):
        nonlocal calls
        calls += 1
        if calls == count and not afterwards:
            os.kill(os.getpid(), signal.SIGKILL)
        result = called(*arguments, **named)
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return wrapped


def arm(point, count):
    where, name, afterwards = POINTS[point]
    called = getattr(where, name)
    if where is train:  # what it gives is called once for every update

        def made():
            return deadly(called(), count, afterwards)

        setattr(where, name, made)
    else:
        setattr(where, name, deadly(called, count, afterwards))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        sys.exit(max(main.main(arguments) for arguments in json.loads(sys.argv[1])))
    arm(sys.argv[1], int(sys.argv[2]))
    sys.exit(main.main(sys.argv[3:]))
