"""SIGTERM becomes an answer, and afterwards is what it was before."""

import os
import signal
import threading

from hcxjax.preemption import preemption


def test_sigterm_is_an_answer_while_it_is_asked_for():
    before = signal.getsignal(signal.SIGTERM)
    with preemption() as preempted:
        assert not preempted(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert preempted(2)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_thread_leaves_signals_alone():
    """Only the main thread may set handlers."""
    seen = []

    def asked():
        with preemption() as preempted:
            seen.append((preempted(1), signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=asked)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
