"""Starts a command again where it failed and that can help: python3 -m tools.launch.restarts --run_dir DIR -- COMMAND.

The command is one that goes on from the newest checkpoint in DIR, such as `srun python -m hcxjax.main ...`. Exit
status 0 ends it, and so do 1 and 2, which another start would meet again. Anything else is started again, after a pause
that doubles as long as no new checkpoint appears; --max_restarts and --without_progress bound it. SIGTERM or Ctrl-C is
passed on, and what it ends is not started again.

It needs nothing but Python, so that it runs beside a container too.
"""

import argparse
import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import Protocol

AGAIN = 75
"""hcxjax.main's exit status of a run that is not complete and may be started again."""

FINAL = {
    0: "complete",
    1: "an error that a new start would meet again; its message is above",
    2: "wrong usage",
    126: "the command cannot be run",
    127: "there is no such command",
}
OTHERS = {
    AGAIN: "saved on SIGTERM, or another process was lost",
    134: "SIGABRT: jax ended it, because another process no longer answered",
    137: "SIGKILL: out of memory, or the machine was taken away",
    143: "SIGTERM, before there was anything to save",
    255: "ssh lost the machine",
}
"""Exit status → what it means."""


@dataclasses.dataclass(frozen=True)
class Policy:
    """How often, and how soon, a command is started again.

    Attributes:
      max_restarts: in all.
      without_progress: in a row, with no new checkpoint.
      pause_s: seconds before a restart; doubled with every one in a row that brought no new checkpoint.
      longest_pause_s: seconds that it grows to.
    """

    max_restarts: int = 20
    without_progress: int = 3
    pause_s: float = 10.0
    longest_pause_s: float = 600.0

    def __post_init__(self):
        for name in ("max_restarts", "without_progress", "pause_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be at least 0")

    def pause(self, stuck: int) -> float:
        """Seconds to wait after `stuck` starts in a row without progress."""
        return min(self.pause_s * 2 ** max(stuck - 1, 0), self.longest_pause_s)


class Start(Protocol):
    """What is started, and started again."""

    def run(self) -> int:
        """Starts it, waits for its end, and gives its exit status; 128 + N where signal N ended it."""
        ...

    def stop(self) -> None:
        """Asks it to save and end."""
        ...

    def step(self) -> int | None:
        """How far its checkpoints are; None where that is not known."""
        ...


class Command:
    """A command on this machine.

    Args:
      command: goes on where it was stopped.
      run_dir: the folder of the run, or of a list of runs; None where it has none.
    """

    def __init__(self, command: Sequence[str], run_dir: str | None):
        self._command, self._run_dir = list(command), run_dir
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Was it asked to end?"""
        return self._stopped

    def run(self) -> int:
        """As `Start.run`."""
        # A session of its own: Ctrl-C would otherwise reach it twice.
        self._process = subprocess.Popen(self._command, start_new_session=True)
        try:
            if self._stopped:
                self.stop()
            status = self._process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            raise
        return status if status >= 0 else 128 - status

    def stop(self) -> None:
        """Passes SIGTERM on."""
        self._stopped = True
        if self._process is not None:
            self._process.terminate()

    def step(self) -> int | None:
        """The newest step of the run, or the sum of those of a list of runs."""
        if self._run_dir is None:
            return None
        folder = Path(self._run_dir)
        return newest_step(map(str, [*folder.glob("checkpoints/*"), *folder.glob("*/checkpoints/*")]))


def newest_step(paths: Iterable[str]) -> int:
    """The highest N of `.../checkpoints/N`, summed over the runs that the paths are of."""
    newest: dict[str, int] = {}
    for path in paths:
        if found := re.fullmatch(r"(.*/)?checkpoints/(\d+)/?", path.strip()):
            run = found[1] or ""
            newest[run] = max(newest.get(run, 0), int(found[2]))
    return sum(newest.values())


class _Stopping:
    """SIGTERM and SIGINT, while something runs, ask it to end; a second SIGINT ends it."""

    def __init__(self, start: Start):
        self._start, self.asked = start, False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "_Stopping":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._signalled)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        with contextlib.suppress(RuntimeError):  # the signal came while a line was being written
            say(f"{signal.Signals(number).name}: it saves and ends; a second Ctrl-C ends it at once")
        self._start.stop()

    def wait(self, seconds: float) -> bool:
        """Was it asked to end, within so many seconds? An Event could not be set by a handler that interrupts it."""
        until = time.monotonic() + seconds
        while not self.asked and time.monotonic() < until:
            time.sleep(min(0.2, max(until - time.monotonic(), 0)))
        return self.asked


def say(message: str) -> None:
    """A line for whoever watches."""
    print(f"launch: {message}", file=sys.stderr, flush=True)


def keep_going(start: Start, policy: Policy) -> int:
    """Starts, and starts again, until it is complete, it is stopped, or another start would not help.

    Returns: the last exit status.
    """
    restarts = stuck = best = 0
    with _Stopping(start) as stopping:
        while True:
            began = time.monotonic()
            status = start.run()
            meaning = FINAL.get(status) or OTHERS.get(status, "unknown")
            say(f"ended with {status} ({meaning}) after {time.monotonic() - began:,.0f} s")
            if status in FINAL or stopping.asked:
                return status
            step = start.step() or 0
            stuck, best = (0, step) if step > best else (stuck + 1, best)
            if refusal := _no_more(policy, restarts, stuck, best):
                say(refusal)
                return status
            restarts += 1
            pause = policy.pause(stuck)
            say(f"its checkpoints are at step {best}; restart {restarts} of {policy.max_restarts} in {pause:g} s")
            if stopping.wait(pause):
                return status


def _no_more(policy: Policy, restarts: int, stuck: int, best: int) -> str | None:
    """Why it is not started again."""
    if restarts >= policy.max_restarts:
        return f"not started again: there were {restarts} restarts (--max_restarts)"
    if stuck > policy.without_progress:
        return (
            f"not started again: {stuck} starts brought no checkpoint after step {best} "
            f"(--without_progress={policy.without_progress})"
        )
    return None


def add_policy(parser: argparse.ArgumentParser) -> None:
    """The flags of a `Policy`."""
    flags = parser.add_argument_group("restarts")
    flags.add_argument("--max_restarts", type=int, default=20, help="in all (default: %(default)s)")
    flags.add_argument(
        "--without_progress", type=int, default=3, help="in a row without a new checkpoint (default: %(default)s)"
    )
    flags.add_argument(
        "--pause_s", type=float, default=10.0, help="before a restart; it doubles, up to 600 (default: %(default)g)"
    )


def policy_of(options: argparse.Namespace) -> Policy:
    """What the flags say. ValueError where it cannot be."""
    return Policy(options.max_restarts, options.without_progress, options.pause_s)


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(before, after) the first `--`."""
    at = argv.index("--") if "--" in argv else len(argv)
    return list(argv[:at]), list(argv[at + 1 :])


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: the command's last one."""
    parser = argparse.ArgumentParser(
        prog="python3 -m tools.launch.restarts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--run_dir", metavar="DIR", help="the run's folder: new checkpoints in it are progress")
    parser.add_argument(
        "--requeue",
        action="store_true",
        help="where SIGTERM ended it, and nothing else, put the SLURM job back into the queue, if it got further",
    )
    add_policy(parser)
    ours, command = split(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(ours)
    if not command:
        parser.error("name what is started after --")
    if options.requeue and "SLURM_JOB_ID" not in os.environ:
        parser.error("--requeue is for a SLURM job, but there is no SLURM_JOB_ID")
    start = Command(command, options.run_dir)
    try:
        before = start.step() or 0
        status = keep_going(start, policy_of(options))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    # What ended by itself has had its restarts; in the queue it would have as many again.
    if options.requeue and start.stopped and status not in FINAL:
        if (start.step() or 0) > before:
            subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False)
        else:
            say(f"not put back into the queue: no checkpoint after step {before}, where this job began")
    return status


if __name__ == "__main__":
    sys.exit(main())
