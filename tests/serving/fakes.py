"""An engine without a model, whose speed, failures and text a test decides; and a server on a free port."""

import contextlib
import socket
import threading
import time
import zlib
from typing import NamedTuple

from hcxjax.inference.requests import Delta
from hcxjax.inference.scheduler import QueueFull
from hcxjax.inference.text_stream import TextStream
from hcxjax.serving.app import Door, application
from hcxjax.serving.bridge import Bridge
from hcxjax.serving.calls import CallLimits
from hcxjax.serving.metrics import Metrics
from hcxjax.serving.prompts import Served
from hcxjax.serving.server import Server
from hcxjax.text.templates import template_for
from hcxjax.text.vocabulary import Vocabulary

KEY = "sk-loopback"
WORDS = "일요일|아침에|민준은|장을|보러|갔다.|The|market|was|busy;|뷁쀍😀|value|=|3\n".split("|")  # noqa: SIM905


def text_for(prompt, seed, sample):
    """What the fake writes: long, Korean, and different for every prompt, seed and sample."""
    number = zlib.crc32(repr((tuple(prompt), seed, sample)).encode())
    return f"{number:08x} " + " ".join(WORDS[(number >> (place % 28)) % len(WORDS)] for place in range(200))


class FakeEngine:
    """The engine's API. `round_seconds` is what a round takes, `gate` holds it up, `fails` makes the next one raise."""

    def __init__(self, vocabulary, *, slots=4, queue=100, steps=3, context=256):
        self.vocabulary, self.slots, self.queue, self.steps, self.context = vocabulary, slots, queue, steps, context
        self.ids = vocabulary.size
        self.round_seconds, self.fails, self.warm = 0.0, False, threading.Event()
        self.warm.set()
        self.gate, self.inside = threading.Event(), threading.Event()
        self.gate.set()
        self.requests, self.cancels = [], []
        self._jobs, self._cancelled, self._next = [], set(), 0

    idle = property(lambda self: not self._jobs)
    active_slots = property(lambda self: min(self.slots, len(self._jobs)))
    waiting = property(lambda self: len({job.number for job in self._jobs[self.slots :]}))

    def warm_up(self):
        self.warm.wait()

    def submit(self, request):
        if len(request.prompt) >= self.context:
            raise ValueError("the prompt is too long for the fake")
        if self.waiting >= self.queue:
            raise QueueFull
        self.requests.append(request)
        number, self._next = self._next, self._next + 1
        for sample in range(request.samples):
            text = text_for(request.prompt, request.sampling.seed if request.sampling.temperature else 0, sample)
            tokens = self.vocabulary.encode(text)[: request.new_tokens]
            self._jobs.append(Job(number, sample, tokens, TextStream(self.vocabulary, request.stop), [0]))
        return number

    def cancel(self, number):
        self.cancels.append(number)
        self._cancelled.add(number)

    def advance(self):
        self.inside.set()
        self.gate.wait()
        time.sleep(self.round_seconds)
        if self.fails:
            raise RuntimeError("the device is on fire")
        gone = [job for job in self._jobs if job.number in self._cancelled]
        deltas = [Delta(job.number, job.sample, (), (), "", "cancelled") for job in gone]
        self._jobs = [job for job in self._jobs if job not in gone]
        self._cancelled.clear()
        for job in self._jobs[: self.slots]:
            deltas.append(job.next(self.steps))
        done = {(delta.request, delta.sample) for delta in deltas if delta.finish}
        self._jobs = [job for job in self._jobs if (job.number, job.sample) not in done]
        return deltas


class Job(NamedTuple):
    number: int
    sample: int
    tokens: list
    stream: TextStream
    at: list

    def next(self, steps):
        start, end, finish = self.at[0], min(self.at[0] + steps, len(self.tokens)), None
        text = ""
        for place in range(start, end):
            text += self.stream.push(self.tokens[place])
            if self.stream.stopped:
                end, finish = place + 1, "stop"
                break
        if finish is None and end == len(self.tokens):
            text, finish = text + self.stream.flush(), "length"
            finish = "stop" if self.stream.stopped else finish
        self.at[0] = end
        tokens = self.tokens[start:end]
        return Delta(self.number, self.sample, tuple(tokens), tuple(-0.5 for _ in tokens), text, finish)


class Running(NamedTuple):
    url: str
    port: int
    engine: FakeEngine
    bridge: Bridge
    served: Served
    server: Server
    metrics: Metrics


@contextlib.contextmanager
def running(engine, vocabulary, *, key=KEY, hosts=None, grace=1.0, wait=True, connections=1024, **limits):
    """A server over an engine, in threads of this process."""
    door = Door(key, hosts, **{name: limits.pop(name) for name in list(limits) if name in Door.__annotations__})
    metrics = Metrics()
    capacity = limits.pop("capacity", 64)
    served = Served(
        "fake/korean", Vocabulary(vocabulary.path), template_for(vocabulary), engine.context, engine.ids,
        CallLimits(**{"max_tokens": 200, **limits}), (vocabulary.end_of_text,), (vocabulary.end_of_text,),
    )  # fmt: skip
    bridge = Bridge(engine, capacity, observe=metrics.observe)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = Server(application(served, bridge, metrics, door), bridge, grace=grace,
                    connections=connections)  # fmt: skip
    bridge.start()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        until(lambda: server.started and (not wait or bridge.state == "ready"))
        yield Running(f"http://127.0.0.1:{port}/v1", port, engine, bridge, served, server, metrics)
    finally:
        server.should_exit = True
        thread.join(20)
        engine.warm.set()
        assert not thread.is_alive()
        assert bridge.close(10)


def until(condition, seconds=10.0):
    """Waits for what happens in another thread."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
