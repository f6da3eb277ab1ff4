import os

import pytest

from hcxjax.data.engine import Local


def test_parts_that_another_command_writes_are_left_for_the_end():
    calls = []

    def work(name, wait):
        calls.append((name, wait))
        return wait or name != "busy"

    Local().each(work, [("busy",), ("free",)], "working")
    assert calls == [("busy", False), ("free", False), ("busy", True)]


def test_an_error_in_a_worker_reaches_the_caller():
    with pytest.raises(FileNotFoundError):
        Local(2).each(os.mkdir, [("/no/where",), ("/no/where/else",)], "working")


def test_workers_are_checked():
    with pytest.raises(ValueError, match=r"Local.workers is 0; "):
        Local(0)
