"""The processes of a run end together: none waits for ever for one that died, that hangs, or that an error stopped.

jax ends a job whose process no longer answers, by SIGABRT, and does not say for how long; it sees nothing wrong with a
process whose heart beats while its work hangs; and one that stops with an error leaves the others in a collective until
then. So every process tells the others, through the key-value store of jax.distributed, what it is at, and all leave
with one message and one exit status when one is missing, stuck or stopped. Nothing here runs where a run is alone.
"""

import contextlib
import dataclasses
import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import jax

from hcxjax.checks import whole

AGAIN = os.EX_TEMPFAIL
"""Exit status 75: the run is not complete, and the same command goes on with it."""

_AT = "hcxjax/at/"
_END = "hcxjax/end"


@dataclasses.dataclass(frozen=True)
class TimeLimits:
    """How long a run of several processes waits before it is given up, so that one of them cannot hang all.

    Attributes:
      step_s: seconds that a part of a step may take: its batch (a rollout, too), its update with compiling, its
        evaluation.
      save_s: seconds that a checkpoint may take to be written, until all processes have written their part.
    """

    step_s: int = 3600
    save_s: int = 1200

    def __post_init__(self):
        whole(self, 1, "step_s", "save_s")


class KeyValueStore(Protocol):
    """What is used of the client of jax.distributed."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None: ...

    def key_value_dir_get(self, key: str) -> Sequence[tuple[str, str]]: ...

    def wait_at_barrier(self, barrier_id: str, timeout_in_ms: int) -> None: ...


@dataclasses.dataclass(frozen=True)
class _At:
    """What a process is at, since when by its own run time, and how long that may take; None: as long as it likes."""

    what: str = "starting"
    since: float = 0.0
    limit_s: float | None = None


@dataclasses.dataclass(frozen=True)
class _Peer:
    """What was heard of a process last: the number of its beat, when, what it was at and for how long."""

    beat: int
    heard: float
    what: str
    for_s: float
    limited: bool


class _RunTime:
    """Seconds that this process was run for, as far as a thread that takes turns can tell.

    A gap between two turns is the time of whatever held this process up, such as a call that keeps Python's lock (a
    tokenizer's training, for minutes) or SIGSTOP: nobody's silence is heard in it, and no more of it counts than
    `longest_s`.
    """

    def __init__(self, longest_s: float):
        self._longest_s = longest_s
        self._turn = (0.0, time.monotonic())  # one object, so that no thread reads the half of it

    @property
    def seconds(self) -> float:
        """Until now."""
        seconds, turned = self._turn
        return seconds + min(time.monotonic() - turned, self._longest_s)

    def turn(self) -> float:
        """Takes a turn; the seconds until now."""
        self._turn = (self.seconds, time.monotonic())
        return self._turn[0]


class Peers:
    """One process's view of the others, kept by two threads: one talks, and may hang; one judges, and may not.

    Args:
      store: shared by all processes; it lives in process 0.
      process, processes: this one's number and how many there are.
      heartbeat_s: a process that was not heard of for as many seconds is taken to be lost.
      leave: ends this process at once with a status.
    """

    def __init__(
        self,
        store: KeyValueStore,
        process: int,
        processes: int,
        heartbeat_s: float,
        leave: Callable[[int], object] = os._exit,
    ):
        self._store, self._process, self._processes = store, process, processes
        self._heartbeat_s, self._leave = heartbeat_s, leave
        self._every_s = min(5.0, heartbeat_s / 10)
        self._run_time = _RunTime(2 * self._every_s)
        self._at = _At()
        self._beat, self._answered = 0, self._run_time.seconds
        self._peers: dict[int, _Peer] = {}
        self._left, self._ending = threading.Event(), threading.Lock()
        self._threads = [
            threading.Thread(target=self._repeat, args=(action,), name=f"peers: {action.__name__}", daemon=True)
            for action in (self.talk, self.judge)
        ]

    def start(self) -> None:
        """Begins to talk and to judge."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stops both; the others no longer expect to hear of this process."""
        self.at("done")
        self._left.set()
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._tell()

    def at(self, what: str, limit_s: float | None = None) -> None:
        """Says what this process is at from now on; one that has no limit may be silent, too."""
        self._at = _At(what, self._run_time.seconds, limit_s)

    def _repeat(self, action: Callable[[], None]) -> None:
        while not self._left.wait(self._every_s):
            # A store that does not answer is judged by how long it has not.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                action()

    def talk(self) -> None:
        """Tells what this process is at and hears of the others, or of the end."""
        self._tell()
        ends = self._store.key_value_dir_get(_END)
        self._answered = self._run_time.seconds
        if ends:
            end = json.loads(ends[0][1])
            self._end(end["status"], end["message"], end["stuck"])
        elif self._process == 0:
            self._hear()
            if silent := self._silent():
                self.stop(AGAIN, silent)

    def _tell(self) -> None:
        at, self._beat = self._at, self._beat + 1
        told = [self._beat, at.what, self._run_time.seconds - at.since, at.limit_s is not None]
        self._store.key_value_set(f"{_AT}{self._process}", json.dumps(told), allow_overwrite=True)

    def _hear(self) -> None:
        now, peers = self._run_time.seconds, dict(self._peers)
        for key, told in self._store.key_value_dir_get(_AT):
            process, (beat, what, for_s, limited) = int(key.rpartition("/")[2]), json.loads(told)
            if process not in peers or peers[process].beat != beat:
                peers[process] = _Peer(beat, now, what, for_s, limited)
        self._peers = peers  # at once: the other thread may be reading

    def _silent(self) -> str | None:
        """Who was not heard of for too long. One that is starting may be: it may hold Python's lock for minutes."""
        now = self._run_time.seconds
        lost = {
            process: peer
            for process, peer in self._peers.items()
            if peer.limited and now - peer.heard > self._heartbeat_s
        }
        if not lost:
            return None
        told = "; ".join(
            f"process {process} has not been heard of for {now - peer.heard:.0f} s, last at {peer.what}"
            for process, peer in sorted(lost.items())[:5]
        )
        more = f"; and {len(lost) - 5} more" if len(lost) > 5 else ""
        return f"{told}{more} (--heartbeat_s={self._heartbeat_s:g}): it hangs, or its machine is gone"

    def judge(self) -> None:
        """Ends this process where process 0 does not answer, or all where its own work takes longer than it may.

        Whoever was held up is not judged at once by the time that this took: the other thread comes to its turn first.
        """
        now, at = self._run_time.turn(), self._at
        if now - self._answered > self._heartbeat_s + self._every_s:
            self._end(
                AGAIN,
                f"process 0, which keeps the processes together, has not answered for {now - self._answered:.0f} s "
                f"(--heartbeat_s={self._heartbeat_s:g}): it hangs, or its machine is gone",
            )
        elif at.limit_s is not None and now - at.since > at.limit_s:
            _within(self._every_s, self._hear)
            message = f"{at.what} takes longer than {at.limit_s:g} s (TimeLimits): {self._course()}"
            self.stop(AGAIN, message, stuck=True)

    def _course(self) -> str:
        """Who is at what, and for how long: first what the fewest are at, for that is what the others wait for."""
        groups: dict[str, list[int]] = {}
        for process, peer in sorted(self._peers.items()):
            groups.setdefault(peer.what, []).append(process)
        return "; ".join(
            f"{_listed(processes)} at {what} for {max(self._peers[process].for_s for process in processes):.0f} s"
            for what, processes in sorted(groups.items(), key=lambda group: len(group[1]))
        )

    def wait(self) -> None:
        """Gives the others time to say who is missing, which ends this process; returns where none is."""
        self._left.wait(self._heartbeat_s + 3 * self._every_s)

    def stop(self, status: int, message: str, stuck: bool = False) -> None:
        """Ends all processes with `status`.

        Args:
          message: why; the others say that it comes from this one.
          stuck: nobody knows who hangs, so that all say where they are.
        """
        end = json.dumps({"status": status, "message": f"process {self._process}: {message}", "stuck": stuck})
        # Where another one has stopped first, the others leave with its message, and this one with its own.
        _within(self._every_s, lambda: self._store.key_value_set(f"{_END}/it", end))
        self._end(status, message, stuck)

    def _end(self, status: int, message: str, stuck: bool = False) -> None:
        if not self._ending.acquire(blocking=False):
            threading.Event().wait()  # another thread is ending this process
        print(f"\nerror: {message}", file=sys.stderr, flush=True)  # there may be a progress bar
        if stuck:
            faulthandler.dump_traceback()
        # Whoever outlives the store, in process 0, is ended by jax with a status of its own.
        wait_ms = int(3000 * self._every_s)
        _within(4 * self._every_s, lambda: self._store.wait_at_barrier("hcxjax/left", wait_ms))
        if self._process == 0:
            time.sleep(min(1.0, self._every_s))
        sys.stdout.flush()
        self._leave(status)


def _listed(processes: Sequence[int]) -> str:
    shown = ", ".join(map(str, processes[:8])) + (", …" if len(processes) > 8 else "")
    return f"process {shown}" if len(processes) == 1 else f"{len(processes)} processes ({shown})"


def _within(seconds: float, action: Callable[[], object]) -> None:
    """Does it in a thread that may be left behind: the store may hang, too."""

    def quietly() -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            action()

    thread = threading.Thread(target=quietly, daemon=True)
    thread.start()
    thread.join(seconds)


_joined: Peers | None = None
"""The others, as jax.distributed is of the whole process; None where it is alone."""


def join(coordinator: str | None, processes: int | None, process: int | None, heartbeat_s: int) -> None:
    """Starts jax.distributed, which finds out what is None on TPU pods, SLURM and Kubernetes, and watches the others.

    Args:
      coordinator: HOST:PORT of process 0.
      heartbeat_s: a process that was not heard of for as many seconds is taken to be lost.
    Raises:
      ValueError: nothing here says where the other processes are.
    """
    from jax._src import distributed  # its client has no public name

    global _joined
    try:
        # jax's own heartbeats are the second line, for a process that hangs while it starts. They may end a process
        # after half of their time, and then say less than the first.
        jax.distributed.initialize(coordinator, processes, process, heartbeat_timeout_seconds=3 * heartbeat_s + 10)
    except ValueError as error:
        raise ValueError(
            f"{error} --distributed knows TPU pods, SLURM and Kubernetes; elsewhere name --coordinator=HOST:PORT of "
            "process 0, --processes and --process"
        ) from error
    state = distributed.global_state
    if state.num_processes > 1:
        assert state.client is not None
        _joined = Peers(state.client, state.process_id, state.num_processes, heartbeat_s)
        _joined.start()


def at(what: str, limit_s: float | None = None) -> None:
    """Says what this process is at from now on, and how many seconds that may take; None: as many as it likes."""
    if _joined is not None:
        _joined.at(what, limit_s)


def stop(status: int, message: str, hangs: bool = False) -> int:
    """Says why this process stops, and ends the others with it; returns `status` where there are none.

    Args:
      hangs: some thread does, and would keep this process from ending.
    """
    if _joined is not None:
        if status == AGAIN and not hangs:
            _joined.wait()  # a collective that failed here may be another's doing
        _joined.stop(status, message, stuck=hangs)
    print(f"error: {message}", file=sys.stderr, flush=True)
    if hangs:
        os._exit(status)
    return status


def leave() -> None:
    """Is done: the others no longer expect to hear of this process."""
    global _joined
    if _joined is not None:
        _joined.close()
        _joined = None
