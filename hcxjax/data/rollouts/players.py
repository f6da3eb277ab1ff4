"""When episodes are played: as they are asked for, or updates ahead, in a thread and on devices of their own."""

import collections
import concurrent.futures
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from hcxjax.data.rollouts.player import Call, Played
from hcxjax.protocols import Params


class Taken(NamedTuple):
    """What was played for an update, and the seconds that the trainer waited for it."""

    played: Played
    waited_s: float


class InTurn:
    """Every update's episodes are written by the parameters that it starts from, while the trainer waits.

    Args:
      play: plays a call.
    """

    lag = 0

    def __init__(self, play: Callable[[Call, Params], Played]):
        self._play = play

    def take(self, calls: Callable[[int], Call], update: int, policy: Callable[[], Params]) -> Taken:
        """The episodes of `update`.

        Args:
          calls: update → what is to be played for it.
          policy: gives the parameters that `update` starts from.
        """
        started = time.perf_counter()
        return Taken(self._play(calls(update), policy()), time.perf_counter() - started)

    def waiting(self) -> list[Played]:
        """What was played for later updates."""
        return []

    def restore(self, update: int, waiting: Sequence[Played]) -> None:
        """Goes on before `update`, with what was played for it and those after it."""
        assert not waiting

    def close(self) -> None:
        """Lets go of threads."""


class Ahead:
    """The episodes of update u are written by the parameters that update u − lag starts from, in a thread.

    So what is played depends on the updates' numbers alone, and not on who is faster; `waiting` waits for what is being
    played. The first `lag` updates have the parameters that the run starts from.

    Source: HyperCLOVA X, arXiv:2404.01954, on PPO: rollouts run beside the updates and collect in a queue.

    Args:
      play: plays a call; it is handed copies of parameters that live as long as it runs.
      lag: updates ahead; 0 waits for every one.
    """

    def __init__(self, play: Callable[[Call, Params], Played], lag: int):
        self._play, self.lag = play, lag
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="rollouts")
        self._queue: collections.deque[concurrent.futures.Future[Played]] = collections.deque()
        self._asked = 0

    def take(self, calls: Callable[[int], Call], update: int, policy: Callable[[], Params]) -> Taken:
        """The episodes of `update`; those of `update` + lag begin to be played. Arguments as of `InTurn.take`."""
        assert self._asked - len(self._queue) == update, "updates are taken one after the other"
        copied = policy()
        while self._asked <= update + self.lag:
            self._queue.append(self._thread.submit(self._play, calls(self._asked), copied))
            self._asked += 1
        started = time.perf_counter()
        played = self._queue.popleft().result()
        return Taken(played, time.perf_counter() - started)

    def waiting(self) -> list[Played]:
        """What was played for later updates, once it is finished."""
        return [future.result() for future in self._queue]

    def restore(self, update: int, waiting: Sequence[Played]) -> None:
        """Goes on before `update`, with what was played for it and those after it."""
        self._queue.clear()
        for played in waiting:
            done: concurrent.futures.Future[Played] = concurrent.futures.Future()
            done.set_result(played)
            self._queue.append(done)
        self._asked = update + len(waiting)

    def close(self) -> None:
        """Ends the thread; a player that was stopped ends at its next round."""
        self._thread.shutdown(wait=True, cancel_futures=True)
