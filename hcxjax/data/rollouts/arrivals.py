"""Episodes in the order in which they are finished: a long answer holds nobody up, and no run is like another."""

import collections
import threading
import time
from collections.abc import Callable

from hcxjax.data.rollouts.episodes import Episodes, joined
from hcxjax.data.rollouts.player import Call, Played, Player
from hcxjax.data.rollouts.players import Held, Taken
from hcxjax.inference.requests import Continuation
from hcxjax.protocols import Params


class ByArrival:
    """One thread keeps the engine full and swaps weights in as they come; the trainer takes what is finished first.

    NOT REPEATABLE: which episodes an update gets, and by which weights their tokens were drawn, follows from who was
    faster. At most `lag` + 1 rollouts are begun and not taken, which bounds how old an episode is.

    Source: HyperCLOVA X, arXiv:2404.01954, on PPO: gradients are computed as results arrive.

    Args:
      player: its engine is kept going.
      reference: gives the parameters of the reference.
      episodes: of a rollout.
      lag: rollouts ahead.
    """

    def __init__(self, player: Player, reference: Callable[[], Params], episodes: int, lag: int):
        self._player, self._reference, self._episodes, self.most = player, reference, episodes, lag + 1
        self._change = threading.Condition()
        self._policy: Params | None = None
        self._version, self._asked, self._going = 0, 0, 0
        self._ready: list[Episodes] = []
        self._calls: Callable[[int], Call] | None = None
        self._draining, self._closed = False, False
        self._failed: BaseException | None = None
        self._begun: collections.deque[Call] = collections.deque()
        self._writing: dict[int, tuple[Call, Continuation]] = {}
        self._finished: list[tuple[Episodes, str]] = []
        self._thread = threading.Thread(target=self._run, name="rollouts", daemon=True)

    def take(self, calls: Callable[[int], Call], update: int, policy: Callable[[], Params]) -> Taken:
        """The first episodes that are finished, whatever update their prompts were meant for."""
        copied, started = policy(), time.perf_counter()
        with self._change:
            self._calls, self._policy, self._version = calls, copied, update
            if not self._thread.ident:
                self._thread.start()
            self._change.notify_all()
            self._change.wait_for(lambda: len(self._ready) >= self._episodes or self._failed)
            self._raise()
            taken, self._ready = self._ready[: self._episodes], self._ready[self._episodes :]
            self._change.notify_all()
        waited = time.perf_counter() - started
        return Taken(Played(joined(taken)), waited)

    def held(self) -> Held:
        """All that was begun, finished; nothing new begins meanwhile."""
        with self._change:
            self._draining = True
            self._change.wait_for(lambda: not self._going or self._failed)
            self._raise()
            self._draining = False
            self._change.notify_all()
            return Held(self._asked, joined(self._ready) if self._ready else None)

    def restore(self, update: int, held: Held) -> None:
        """Goes on with the prompts that come next, and what was finished."""
        rows = 0 if held.episodes is None else len(held.episodes.prompt_B)
        self._asked = held.asked
        self._ready = [held.episodes.rows(row, row + 1) for row in range(rows)] if held.episodes is not None else []

    def close(self) -> None:
        """Ends the thread."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        if self._thread.ident:
            self._thread.join()

    def _raise(self) -> None:
        if self._failed is not None:
            raise self._failed

    def _run(self) -> None:
        try:
            with self._player.layout.active():
                while self._round():
                    pass
        except BaseException as error:
            with self._change:
                self._failed = error
                self._change.notify_all()

    def _round(self) -> bool:
        """Begins what may begin, has the engine write, judges what is finished; False at the end."""
        with self._change:
            self._change.wait_for(lambda: self._closed or self._going or self._room)
            if self._closed:
                return False
            policy, room = self._policy, self._room
            self._begun.extend(self._one(self._asked + number) for number in range(room))
            self._asked, self._going = self._asked + room, self._going + room
        self._write(policy)
        judged = self._judge()
        with self._change:
            self._ready += judged
            self._going -= len(judged)
            self._change.notify_all()
        return True

    @property
    def _room(self) -> int:
        """Episodes that may begin now."""
        if self._draining or self._calls is None:
            return 0
        return self.most * self._episodes - self._going - len(self._ready)

    def _one(self, number: int) -> Call:
        """Episode `number` of all, as a call of its own."""
        assert self._calls is not None
        update, row = divmod(number, self._episodes)
        call, here = self._calls(update), slice(row, row + 1)
        return Call(number, self._version, call.prompts[here], call.numbers[here], call.sources[here])

    def _write(self, policy: Params) -> None:
        """One round of the engine, under the newest weights."""
        engine = self._player.writer(policy)
        while self._begun and engine.waiting < engine.settings.queue:
            call = self._begun.popleft()
            (request,) = self._player.requests(call)
            self._writing[engine.submit(request)] = (call, Continuation())
        for delta in engine.advance():
            call, answer = self._writing[delta.request]
            answer.add(delta)
            if delta.finish is not None:
                del self._writing[delta.request]
                self._finished.append((self._player.written(call, answer), call.sources[0]))

    def _judge(self) -> list[Episodes]:
        """What is finished, once it is enough to be judged together, or nothing else is being written."""
        if not self._finished or (len(self._finished) < self._player.rows and (self._writing or self._begun)):
            return []
        some, self._finished = self._finished[: self._player.rows], self._finished[self._player.rows :]
        rows, sources = zip(*some, *[some[0]] * (self._player.rows - len(some)), strict=True)
        filled = joined(rows)
        self._player.judge(filled, self._reference(), sources)
        return [filled.rows(row, row + 1) for row in range(len(some))]
