"""The processes of a run end together, whatever one of them dies of; what they leave behind goes on."""

import signal
import threading
import time

import jax
import pytest

from hcxjax import peers
from hcxjax.peers import AGAIN, Peers, TimeLimits
from tests.runs import assert_same_course, checkpoints, finish, reached, start, together, wait_for


class Store:
    """What processes share; one that is stopped is no longer answered."""

    def __init__(self):
        self.kept, self.answers = {}, True

    def key_value_set(self, key, value, allow_overwrite=False):
        self._answer()
        if key in self.kept and not allow_overwrite:
            raise jax.errors.JaxRuntimeError(f"ALREADY_EXISTS: {key}")
        self.kept[key] = value

    def key_value_dir_get(self, key):
        self._answer()
        return [(name, value) for name, value in self.kept.items() if name.startswith(key)]

    def wait_at_barrier(self, barrier_id, timeout_in_ms):
        self._answer()

    def _answer(self):
        if not self.answers:
            raise jax.errors.JaxRuntimeError("UNAVAILABLE")


class LeftError(Exception):
    """A process that has ended, with its status."""


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

        def sleep(self, seconds):
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(peers, "time", clock)
    return clock


def leave(status):
    raise LeftError(status)


def processes(count, store, heartbeat_s=10):
    made = [Peers(store, number, count, heartbeat_s, leave) for number in range(count)]
    for one in made:
        one.at("update 3", 60)
    for one in (*made, made[0]):  # the first hears of all
        one.talk()
    return made


def pass_by(clock, seconds, *judging, talking=()):
    """Turns of the processes that run, one a second; the others are held up."""
    for _ in range(seconds):
        clock.now += 1
        for one in talking:
            one.talk()
        for one in judging:
            one.judge()


def test_processes_that_talk_stay(clock):
    first, second = processes(2, Store())
    for _ in range(20):
        for one in (first, second):
            one.at("update 3", 60)
        pass_by(clock, 5, first, second, talking=(first, second))


def test_one_that_is_silent_is_named_by_all(clock, capsys):
    first, second, _ = processes(3, Store())
    for one in (first, second):
        one.at("update 4", 60)
    pass_by(clock, 8, first, second)
    second.talk()
    first.talk()
    pass_by(clock, 3, first, second)
    second.talk()
    with pytest.raises(LeftError, match=str(AGAIN)):
        first.talk()
    told = "process 2 has not been heard of for 11 s, last at update 3 (--heartbeat_s=10)"
    assert told in capsys.readouterr().err
    with pytest.raises(LeftError, match=str(AGAIN)):
        second.talk()
    assert f"error: process 0: {told}" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["starting", "done"])
def test_one_that_starts_or_is_done_may_be_silent(clock, what):
    """Training a tokenizer holds Python's lock for minutes."""
    first, second = processes(2, Store())
    first.at("starting")
    second.at(what)
    second.talk()
    if what == "done":
        second.close()
    pass_by(clock, 1000, first, talking=(first,))


@pytest.mark.parametrize("held_s", [15, 4000])
def test_one_that_was_held_up_hears_the_others_before_it_judges(clock, held_s):
    """By Python's lock, which neither of its threads had; or all were stopped, and go on."""
    first, second = processes(2, Store())
    first.at("starting")
    second.at("starting")
    clock.now += held_s
    for one in (second, first):  # their threads wake in any order
        one.judge()
    pass_by(clock, 20, first, second, talking=(first, second))
    for one in (first, second):
        one.at("update 1", 60)
    pass_by(clock, 2, first, second, talking=(first, second))
    clock.now += held_s
    first.talk()  # what it has of the other is as old as it was held up itself
    for one in (first, second):
        one.judge()
    pass_by(clock, 20, first, second, talking=(second, first))


def test_one_that_was_held_up_still_misses_who_is_gone(clock, capsys):
    store = Store()
    first, second, third = processes(3, store)
    clock.now += 4000
    pass_by(clock, 8, first, second, talking=(first, second))
    with pytest.raises(LeftError, match=str(AGAIN)):
        pass_by(clock, 3, first, second, talking=(first, second))
    assert "process 2 has not been heard of for" in capsys.readouterr().err
    store.answers = False
    clock.now += 4000
    third.judge()
    with pytest.raises(LeftError, match=str(AGAIN)):
        pass_by(clock, 11, third)
    assert "process 0, which keeps the processes together, has not answered for" in capsys.readouterr().err


def test_the_first_is_missed_when_it_does_not_answer(clock, capsys):
    store = Store()
    _, second = processes(2, store)
    store.answers = False
    pass_by(clock, 11, second)
    with pytest.raises(LeftError, match=str(AGAIN)):
        pass_by(clock, 1, second)
    assert "process 0, which keeps the processes together, has not answered for 12 s" in capsys.readouterr().err


def test_work_that_hangs_is_told_with_who_is_at_what(clock, capfd):
    all_four = processes(4, Store(), heartbeat_s=1000)
    all_four[2].at("the batch of step 3", 60)
    pass_by(clock, 60, *all_four)
    clock.now += 1
    for one in all_four:
        one.talk()
    with pytest.raises(LeftError, match=str(AGAIN)):
        all_four[1].judge()
    message = capfd.readouterr().err
    assert "update 3 takes longer than 60 s (TimeLimits): process 2 at the batch of step 3 for 61 s; " in message
    assert "3 processes (0, 1, 3) at update 3 for 61 s" in message
    assert "test_work_that_hangs" in message, "where it hangs"
    with pytest.raises(LeftError, match=str(AGAIN)):
        all_four[2].talk()
    assert "test_work_that_hangs" in capfd.readouterr().err, "all say where they are"


def test_an_error_of_one_is_the_end_of_all_with_its_status(clock, capsys):
    first, second, third = processes(3, Store())
    with pytest.raises(LeftError, match="1"):
        second.stop(1, "its disk is full")
    with pytest.raises(LeftError, match="2"):
        third.stop(2, "an error of its own")
    with pytest.raises(LeftError, match="1"):
        first.talk()
    told = ["its disk is full", "an error of its own", "process 1: its disk is full"]
    assert capsys.readouterr().err == "".join(f"\nerror: {message}\n" for message in told)


def test_both_threads_run_and_end(capfd):
    ended = threading.Event()
    one = Peers(Store(), 1, 2, 0.1, lambda status: ended.set())
    one.start()
    one.at("update 1", 0.05)
    assert ended.wait(10)
    one.close()
    assert "update 1 takes longer than 0.05 s" in capfd.readouterr().err


def test_alone_nothing_is_watched_and_an_error_is_printed(capsys):
    peers.at("update 1", 0.0)
    assert peers.stop(1, "no such file") == 1
    peers.leave()
    assert capsys.readouterr().err == "error: no such file\n"


@pytest.mark.parametrize("field", ["step_s", "save_s"])
def test_limits_that_cannot_be(field):
    with pytest.raises(ValueError, match=rf"TimeLimits.{field} is 0; it must be a whole number of at least 1"):
        TimeLimits(**{field: 0})


LIMITS = ("Experiment.limits=@TimeLimits()", "TimeLimits.step_s=60", "TimeLimits.save_s=10")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "step", "status", "message"),
    [
        ("batch fails", 6, 1, "process 1: the disk of this machine is upside down"),
        ("batch hangs", 6, AGAIN, "process 1 at the batch of step 6 for"),
        ("save hangs", 8, AGAIN, "within 10 s (TimeLimits.save_s): process 1 did not write its part"),
    ],
)
def test_one_that_hangs_or_fails_ends_both_and_they_go_on(whole, compiled, tmp_path, point, step, status, message):
    """Its heart beats on, so that jax sees nothing."""
    run, stuck = tmp_path / "run", ("-m", "tests.stuck", point, str(step))
    first, second = together(run, whole, compiled, 2, *LIMITS, arguments=("--heartbeat_s=5",), last=stuck)
    assert message in finish(first, expected=status)
    finish(second, expected=status)
    assert checkpoints(run) == [4], "the last whole checkpoint stays"
    for process in together(run, whole, compiled, 2, *LIMITS):
        finish(process)
    assert_same_course(run, whole, exact=0)


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_one_that_is_stopped_ends_the_other(whole, compiled, tmp_path, stopped):
    run = tmp_path / "run"
    both = together(run, whole, compiled, 2, "STEPS=4000", arguments=("--heartbeat_s=5",))
    wait_for(reached(run, 6), both[0])
    both[stopped].send_signal(signal.SIGSTOP)
    before = time.monotonic()
    messages = finish(both[1 - stopped], expected=AGAIN)
    assert f"process {stopped}" in messages and "it hangs, or its machine is gone" in messages
    assert time.monotonic() - before < 40
    both[stopped].kill()
    both[stopped].communicate()
    assert 4 in checkpoints(run)


@pytest.mark.slow
def test_jax_ends_the_others_when_the_first_dies(whole, compiled, tmp_path):
    run = tmp_path / "run"
    first, second = together(run, whole, compiled, 2, "STEPS=4000")
    wait_for(reached(run, 6), first)
    first.kill()
    finish(second, expected=-signal.SIGABRT, seconds=60)
    first.communicate()


@pytest.mark.slow
def test_two_that_were_killed_go_on_as_four_with_two_devices_each_and_then_as_one(whole, compiled, tmp_path):
    run, killed = tmp_path / "run", ("-m", "tests.killed", "update was sent", "7")
    two = together(run, whole, compiled, 2, arguments=("--heartbeat_s=5",), last=killed)
    finish(two[0], expected=AGAIN)
    finish(two[1], expected=-signal.SIGKILL)
    killed = ("-m", "tests.killed", "update was sent", "7")
    mesh = ("Layout.data=2", "Layout.fsdp=2", "Layout.tensor=2")
    arguments = ("--cpu_devices=2", "--heartbeat_s=10")
    *left, lost = together(run, whole, compiled, 4, *mesh, arguments=arguments, last=killed)
    for process in left:
        finish(process, expected=AGAIN)
    finish(lost, expected=-signal.SIGKILL)
    assert 8 in checkpoints(run) and 12 not in checkpoints(run)
    finish(start(run, whole, compiled))
    assert_same_course(run, whole, exact=0)
