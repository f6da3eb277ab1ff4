"""Who waits, who is in which slot: first come, first served; nothing here touches a device."""

import dataclasses
import heapq
from collections import OrderedDict

from hcxjax.inference.requests import Request


class QueueFull(RuntimeError):  # noqa: N818 (a state that passes, not a mistake)
    """As many requests wait as may; the caller should come again later."""


@dataclasses.dataclass
class Job:
    """A request of which samples are still to be placed."""

    number: int
    request: Request
    placed: int = 0


@dataclasses.dataclass(frozen=True)
class Placed:
    """A sample in a slot."""

    number: int
    sample: int
    request: Request


class Scheduler:
    """Requests in the order they came, and the slots.

    Args:
      slots: how many samples run at once.
      queue: how many requests may wait for a slot, besides those that free slots will take.
    """

    def __init__(self, slots: int, queue: int):
        self._free = list(range(slots))
        self._queue = queue
        self._next = 0
        self._waiting: OrderedDict[int, Job] = OrderedDict()
        self.running: dict[int, Placed] = {}

    @property
    def waiting(self) -> int:
        """Requests of which samples wait for a slot."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Is nothing waiting and nothing running?"""
        return not self._waiting and not self.running

    def submit(self, request: Request) -> int:
        """The request's number; QueueFull where too many wait."""
        if self.waiting >= self._queue + len(self._free):
            raise QueueFull(f"{self.waiting} requests wait, EngineSettings.queue allows no more")
        number, self._next = self._next, self._next + 1
        self._waiting[number] = Job(number, request)
        return number

    def head(self) -> Job | None:
        """The job whose sample comes next, or None where no slot is free or nothing waits."""
        if not self._free or not self._waiting:
            return None
        return next(iter(self._waiting.values()))

    def place(self) -> tuple[int, Placed]:
        """Puts the next sample of the head into the lowest free slot: (slot, sample)."""
        job = self.head()
        assert job is not None
        slot = heapq.heappop(self._free)
        placed = Placed(job.number, job.placed, job.request)
        job.placed += 1
        if job.placed == job.request.samples:
            del self._waiting[job.number]
        self.running[slot] = placed
        return slot, placed

    def free(self, slot: int) -> Placed:
        """Takes the sample out of `slot`."""
        placed = self.running.pop(slot)
        heapq.heappush(self._free, slot)
        return placed

    def cancel(self, number: int) -> tuple[list[int], list[tuple[int, int]]]:
        """(slots of the request's running samples, (request, sample) of those that never began); unknown: nothing."""
        slots = [slot for slot, placed in self.running.items() if placed.number == number]
        job = self._waiting.pop(number, None)
        waiting = [] if job is None else [(number, sample) for sample in range(job.placed, job.request.samples)]
        return slots, waiting
