"""Whatever is submitted, placed, freed and cancelled in whatever order: nothing is lost, served twice or overtaken."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hcxjax.inference.requests import Request
from hcxjax.inference.scheduler import QueueFull, Scheduler

SLOTS, QUEUE = 3, 4


class Machine(RuleBasedStateMachine):
    """A model of plain lists beside the scheduler."""

    def __init__(self):
        super().__init__()
        self.scheduler = Scheduler(SLOTS, QUEUE)
        self.waiting = []  # (number, sample) in the order in which they must be placed
        self.running = {}  # slot → (number, sample)
        self.served = set()
        self.submitted = []

    @rule(samples=st.integers(1, 5))
    def submit(self, samples):
        requests_waiting = {number for number, _ in self.waiting}
        if len(requests_waiting) >= QUEUE + SLOTS - len(self.running):
            with pytest.raises(QueueFull):
                self.scheduler.submit(Request([1], samples=samples))
            return
        number = self.scheduler.submit(Request([1], samples=samples))
        assert number not in self.submitted
        self.submitted.append(number)
        self.waiting += [(number, sample) for sample in range(samples)]

    @rule()
    def place(self):
        head = self.scheduler.head()
        if not self.waiting or len(self.running) == SLOTS:
            assert head is None
            return
        assert head is not None and head.number == self.waiting[0][0], "first come, first served"
        slot, placed = self.scheduler.place()
        assert slot not in self.running
        sample = self.waiting.pop(0)
        assert (placed.number, placed.sample) == sample
        assert sample not in self.served
        self.served.add(sample)
        self.running[slot] = sample

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def free(self, data):
        slot = data.draw(st.sampled_from(sorted(self.running)))
        placed = self.scheduler.free(slot)
        assert (placed.number, placed.sample) == self.running.pop(slot)

    @precondition(lambda self: self.submitted)
    @rule(data=st.data())
    def cancel(self, data):
        number = data.draw(st.sampled_from(self.submitted))
        slots, dropped = self.scheduler.cancel(number)
        assert set(slots) == {slot for slot, sample in self.running.items() if sample[0] == number}
        assert dropped == [sample for sample in self.waiting if sample[0] == number]
        self.waiting = [sample for sample in self.waiting if sample[0] != number]
        for slot in slots:
            self.scheduler.free(slot)
            del self.running[slot]

    @invariant()
    def nothing_is_lost(self):
        assert {slot: (p.number, p.sample) for slot, p in self.scheduler.running.items()} == self.running
        assert self.scheduler.waiting == len({number for number, _ in self.waiting})
        assert self.scheduler.idle == (not self.waiting and not self.running)


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestScheduler = Machine.TestCase


def test_an_unknown_request_cancels_nothing():
    scheduler = Scheduler(1, 1)
    assert scheduler.cancel(5) == ([], [])


def test_the_lowest_free_slot_is_filled_first():
    scheduler = Scheduler(3, 9)
    for _ in range(5):
        scheduler.submit(Request([1]))
    assert [scheduler.place()[0] for _ in range(3)] == [0, 1, 2]
    scheduler.free(2)
    scheduler.free(0)
    assert [scheduler.place()[0] for _ in range(2)] == [0, 2]
