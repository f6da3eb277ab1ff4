"""Between many coroutines and the one thread that owns the engine."""

import asyncio
import contextlib
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from hcxjax.inference.requests import Delta, Request
from hcxjax.inference.scheduler import QueueFull
from hcxjax.serving.refusals import Refusal, invalid

_log = logging.getLogger(__name__)


class EngineLike(Protocol):
    """What the bridge needs of an engine; see `hcxjax.inference.engine.Engine`."""

    @property
    def idle(self) -> bool: ...
    @property
    def waiting(self) -> int: ...
    @property
    def active_slots(self) -> int: ...
    def warm_up(self) -> None: ...
    def submit(self, request: Request) -> int: ...
    def cancel(self, number: int) -> None: ...
    def advance(self) -> list[Delta]: ...


class Arrival(NamedTuple):
    """A delta, and which of the call's requests it belongs to."""

    place: int
    delta: Delta


def failed() -> Refusal:
    """The engine has died under a request."""
    return Refusal(500, "the engine failed while it worked on this request", code="engine_failed")


def full() -> Refusal:
    """More wait than may."""
    return Refusal(429, "too many requests wait already; try again later", code="queue_full")


def unread() -> Refusal:
    """A stream's reader is too far behind."""
    return Refusal(408, "the stream was not read fast enough and has been cancelled", code="reader_too_slow")


class Call:
    """Requests that belong to one answer, and what has arrived for them and was not read yet.

    Made and read in the event loop. What waits here is bounded: a reader more than `most` tokens behind loses the call.

    Attributes:
      requests: what the engine was asked for.
      accepted: done when the engine has taken them.
      error: why the call has failed, if it has.
      loop: the event loop.
    """

    def __init__(self, requests: Sequence[Request], most: int | None):
        self.requests = tuple(requests)
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.loop = asyncio.get_running_loop()
        self._most = most
        self._arrived: deque[Arrival] = deque()
        self._behind = 0
        self._running = sum(request.samples for request in requests)
        self.error: Refusal | None = None
        self._news = asyncio.Event()

    @property
    def over(self) -> bool:
        """Nothing more will arrive."""
        return self._running == 0 or self.error is not None

    async def read(self) -> list[Arrival]:
        """All that has arrived since the last time; waits for something; [] after the end.

        Raises:
          Refusal: the call has failed; what had arrived before is given first.
        """
        while not self._arrived and not self.over:
            self._news.clear()
            await self._news.wait()
        if not self._arrived and self.error is not None:
            raise self.error
        arrived = list(self._arrived)
        self._arrived.clear()
        self._behind = 0
        return arrived

    def put(self, arrivals: Sequence[Arrival]) -> bool:
        """Takes news; false where the reader is too far behind, and the call has failed."""
        if self.over:
            return True
        self._arrived += arrivals
        self._behind += sum(len(arrival.delta.tokens) for arrival in arrivals)
        self._running -= sum(arrival.delta.finish is not None for arrival in arrivals)
        if self._most is not None and self._behind > self._most and not self.over:
            self._arrived.clear()
            self.fail(unread())
            return False
        self._news.set()
        return True

    def fail(self, error: Refusal) -> None:
        """Ends the call with an error, unless it is over."""
        if not self.accepted.done():
            self.accepted.set_exception(error)
            self.error = error
        elif not self.over:
            self.error = error
        self._news.set()


class Bridge:
    """Owns the engine's thread: calls go in from the event loop, what is written comes back into it.

    Args:
      engine: used by this thread alone from `start` on.
      capacity: requests that may be under way, waiting ones included.
      active: what the thread works within (`Layout.active`).
      observe: is shown the deltas of every round, in the engine's thread.

    Attributes:
      state: 'warming up', 'ready', 'failed' or 'shutting down'.
      waiting, active_slots: the engine's, as they were after its last round.
    """

    def __init__(
        self,
        engine: EngineLike,
        capacity: int,
        active: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
        observe: Callable[[Sequence[Delta]], None] = lambda deltas: None,
    ):
        self.engine, self.state = engine, "warming up"
        self.waiting, self.active_slots = 0, 0
        self._capacity, self._active, self._observe = capacity, active, observe
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._calls: dict[int, tuple[Call, int]] = {}
        self._left: dict[int, int] = {}
        self._open: set[Call] = set()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the thread, which compiles first; `state` says when it is 'ready'."""
        self._thread.start()

    def close(self, seconds: float) -> bool:
        """Ends the thread; false where it has not ended in time."""
        self.stop()
        self._inbox.put(None)
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def stop(self) -> None:
        """No new call is taken from now on; those under way go on."""
        if self.state != "failed":
            self.state = "shutting down"

    @property
    def under_way(self) -> int:
        """Requests of open calls."""
        return sum(len(call.requests) for call in self._open)

    async def open(self, requests: Sequence[Request], most: int | None = None) -> Call:
        """Hands requests to the engine, all of them or none.

        Args:
          most: tokens that the reader may be behind; None for one that always reads.
        Raises:
          Refusal: the engine is not ready, has failed, has no room in its queue, or refuses a request.
        """
        self.check_ready()
        if self.under_way + len(requests) > self._capacity:
            raise full()
        call = Call(requests, most)
        self._open.add(call)
        self._inbox.put(lambda: self._submit(call))
        try:
            await call.accepted
        except BaseException:
            self.cancel(call)
            raise
        return call

    def cancel(self, call: Call) -> None:
        """Gives up a call: its slots are free after the round that runs. One that is over is only forgotten."""
        self._open.discard(call)
        if not call.over:
            self._inbox.put(lambda: self._cancel(call))

    def abort(self, error: Refusal) -> None:
        """Ends all calls with an error."""
        for call in list(self._open):
            self.cancel(call)
            call.fail(error)

    def check_ready(self) -> None:
        """503 where no call is taken."""
        if self.state != "ready":
            code = "engine_failed" if self.state == "failed" else "not_ready"
            raise Refusal(503, f"the server cannot answer now: {self.state}", code=code)

    # Everything below runs in the engine's thread.

    def _run(self) -> None:
        try:
            with self._active():
                self.engine.warm_up()
                if self.state == "warming up":
                    self.state = "ready"
                while self._take_orders():
                    self._deliver(self.engine.advance())
                    self._look()
        except Exception:
            _log.exception("the engine failed; nothing more is served")
            self.state, self.waiting, self.active_slots = "failed", 0, 0
            for call in {call for call, _ in self._calls.values()}:
                self._tell(call, call.fail, failed())
            self._calls.clear()
            while order := self._inbox.get():
                order()

    def _take_orders(self) -> bool:
        """Does what was asked for; waits for something to do; false where the thread is to end."""
        wait = self.engine.idle
        while wait or not self._inbox.empty():
            order = self._inbox.get()
            if order is None:
                return False
            order()
            wait = False
        self._look()
        return True

    def _look(self) -> None:
        """What other threads may read at any time."""
        self.waiting, self.active_slots = self.engine.waiting, self.engine.active_slots

    def _submit(self, call: Call) -> None:
        if self.state == "failed":
            self._tell(call, call.fail, failed())
            return
        numbers: list[int] = []
        try:
            for request in call.requests:
                numbers.append(self.engine.submit(request))
        except Exception as error:  # a full queue, or a request that the engine refuses
            for number in numbers:
                self.engine.cancel(number)
            self._tell(call, call.fail, _refusal(error))
            return
        for place, (number, request) in enumerate(zip(numbers, call.requests, strict=True)):
            self._calls[number], self._left[number] = (call, place), request.samples
        self._tell(call, _accept, call)

    def _cancel(self, call: Call) -> None:
        for number in [number for number, (other, _) in self._calls.items() if other is call]:
            self.engine.cancel(number)

    def _deliver(self, deltas: Sequence[Delta]) -> None:
        self._observe(deltas)
        news: dict[Call, list[Arrival]] = {}
        for delta in deltas:
            if delta.request not in self._calls:
                continue
            call, place = self._calls[delta.request]
            news.setdefault(call, []).append(Arrival(place, delta))
            if delta.finish is not None:
                self._left[delta.request] -= 1
                if not self._left[delta.request]:
                    del self._calls[delta.request], self._left[delta.request]
        for call, arrivals in news.items():
            self._tell(call, self._put, call, arrivals)

    def _put(self, call: Call, arrivals: Sequence[Arrival]) -> None:
        """In the event loop."""
        if not call.put(arrivals):
            self._open.discard(call)
            self._inbox.put(lambda: self._cancel(call))

    @staticmethod
    def _tell(call: Call, action: Callable, *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            call.loop.call_soon_threadsafe(action, *arguments)


def _accept(call: Call) -> None:
    if not call.accepted.done():
        call.accepted.set_result(None)


def _refusal(error: Exception) -> Refusal:
    if isinstance(error, QueueFull):
        return full()
    if isinstance(error, ValueError):
        return invalid(str(error))
    _log.error("the engine could not take a request", exc_info=error)
    return failed()
