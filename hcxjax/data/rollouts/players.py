"""When episodes are played: as they are asked for, or updates ahead, in a thread and on devices of their own."""

import collections
import concurrent.futures
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from hcxjax.data.rollouts.episodes import Episodes, joined
from hcxjax.data.rollouts.player import Call, Played
from hcxjax.protocols import Params


class Taken(NamedTuple):
    """What was played for an update, and the seconds that the trainer waited for it."""

    played: Played
    waited_s: float


class Held(NamedTuple):
    """What is played and not yet taken.

    Attributes:
      asked: calls (or episodes, where these are taken as they arrive) that were begun so far.
      episodes: in the order in which they will be taken, or None.
    """

    asked: int
    episodes: Episodes | None


class Players(Protocol):
    """Gives the trainer an update's episodes."""

    most: int
    """Rollouts that may be held at a time."""

    def take(self, calls: Callable[[int], Call], update: int, policy: Callable[[], Params]) -> Taken:
        """The episodes of `update`; updates are taken one after the other.

        Args:
          calls: update → what is to be played for it.
          policy: gives the parameters that `update` starts from.
        """
        ...

    def held(self) -> Held:
        """What a checkpoint has to hold; waits for what is being played."""
        ...

    def restore(self, update: int, held: Held) -> None:
        """Goes on before `update` with what was held."""
        ...

    def close(self) -> None:
        """Lets go of threads; the player was told to stop."""
        ...


class InTurn:
    """Every update's episodes are written by the parameters that it starts from, while the trainer waits.

    Args:
      play: plays a call.
    """

    most = 0

    def __init__(self, play: Callable[[Call, Params], Played]):
        self._play = play

    def take(self, calls: Callable[[int], Call], update: int, policy: Callable[[], Params]) -> Taken:
        started = time.perf_counter()
        return Taken(self._play(calls(update), policy()), time.perf_counter() - started)

    def held(self) -> Held:
        return Held(0, None)

    def restore(self, update: int, held: Held) -> None:
        assert held.episodes is None

    def close(self) -> None:
        pass


class Ahead:
    """The episodes of update u are written by the parameters that update u − lag starts from, in a thread.

    So what is played depends on the updates' numbers alone, and not on who is faster. The first `lag` updates have the
    parameters that the run starts from.

    Source: HyperCLOVA X, arXiv:2404.01954, on PPO: rollouts run beside the updates and collect in a queue.

    Args:
      play: plays a call; it is handed copies of parameters that live as long as it runs.
      lag: updates ahead; 0 waits for every one.
    """

    def __init__(self, play: Callable[[Call, Params], Played], lag: int):
        self._play, self.most = play, lag
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="rollouts")
        self._queue: collections.deque[concurrent.futures.Future[Played]] = collections.deque()
        self._asked = 0

    def take(self, calls: Callable[[int], Call], update: int, policy: Callable[[], Params]) -> Taken:
        assert self._asked - len(self._queue) == update, (self._asked, len(self._queue), update)
        copied = policy()
        while self._asked <= update + self.most:
            self._queue.append(self._thread.submit(self._play, calls(self._asked), copied))
            self._asked += 1
        started = time.perf_counter()
        played = self._queue.popleft().result()
        return Taken(played, time.perf_counter() - started)

    def held(self) -> Held:
        waiting = [future.result().episodes for future in self._queue]
        return Held(self._asked, joined(waiting) if waiting else None)

    def restore(self, update: int, held: Held) -> None:
        self._queue.clear()
        self._asked = held.asked
        if held.episodes is None:
            return
        size = len(held.episodes.prompt_B) // (held.asked - update)
        for start in range(0, len(held.episodes.prompt_B), size):
            done: concurrent.futures.Future[Played] = concurrent.futures.Future()
            done.set_result(Played(held.episodes.rows(start, start + size)))
            self._queue.append(done)

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
