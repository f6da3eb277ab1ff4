"""One answer: what the engine writes for a call, sent at once or as it comes."""

import time
from collections.abc import Awaitable, Callable

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from hcxjax.serving import responses
from hcxjax.serving.bridge import Arrival, Bridge, Call
from hcxjax.serving.http import answer, unless_gone
from hcxjax.serving.metrics import Metrics
from hcxjax.serving.refusals import Refusal
from hcxjax.serving.responses import Form, Piece, Usage


class Answering:
    """An ASGI response that reads a call to its end, and gives the call up where the client goes away.

    Args:
      bridge: the call's.
      call: taken by the engine.
      form: of the answer.
      metrics: counts times and calls given up.
      stream: send it as it comes.
      counts: end a stream with the counts of tokens.
      arrived: when the request did, `time.monotonic`.
    """

    def __init__(
        self, bridge: Bridge, call: Call, form: Form, metrics: Metrics, *, stream: bool, counts: bool, arrived: float
    ):
        self._bridge, self._call, self._form, self._metrics = bridge, call, form, metrics
        self._stream, self._counts, self._arrived = stream, counts, arrived
        self._starts = [0]
        for request in call.requests:
            self._starts.append(self._starts[-1] + request.samples)
        self._usage = Usage(sum(len(request.prompt) for request in call.requests))
        metrics.prompt_tokens.inc(self._usage.prompt)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers."""
        work = self._send_stream if self._stream else self._send_whole
        try:
            stayed = await unless_gone(receive, lambda: work(scope, receive, send))
            # A reader that was cut off because it did not read is no client that went away.
            why = self._call.error.code if self._call.error else None if stayed else "client_gone"
            if why is not None:
                self._metrics.cancelled.labels(why).inc()
        finally:
            self._bridge.cancel(self._call)

    async def _send_whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        pieces = [Piece() for _ in range(self._starts[-1])]
        try:
            while arrivals := await self._read():
                for arrival in arrivals:
                    pieces[self._index(arrival)].add(arrival.delta)
        except Refusal as error:
            await answer(error)(scope, _silent, send)
            return
        await JSONResponse(responses.whole(self._form, pieces, self._usage))(scope, _silent, send)

    async def _send_stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"),
                   (b"x-accel-buffering", b"no")]  # fmt: skip
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def put(data: bytes) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        try:
            await self._send_chunks(put)
        except Refusal as error:
            await put(responses.event(error.body))
        await put(responses.DONE)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_chunks(self, put: Callable[[bytes], Awaitable[None]]) -> None:
        for index in range(self._starts[-1]):
            if (opening := self._form.opening(index)) is not None:
                await put(responses.part(self._form, opening, usage=self._counts))
        held: dict[int, Piece] = {}
        while arrivals := await self._read():
            # All that came for a sample since the last look is one chunk, however slowly the client reads.
            for arrival in arrivals:
                held.setdefault(self._index(arrival), Piece()).add(arrival.delta)
            ripe = [index for index, piece in held.items() if piece.text or piece.finish]
            for index in ripe:
                choice = self._form.chunk(index, held.pop(index))
                await put(responses.part(self._form, choice, usage=self._counts))
        if self._counts:
            await put(responses.counts(self._form, self._usage))

    async def _read(self) -> list[Arrival]:
        arrivals = await self._call.read()
        written = sum(len(arrival.delta.tokens) for arrival in arrivals)
        if written and not self._usage.written:
            self._metrics.first_token.observe(time.monotonic() - self._arrived)
        self._usage.written += written
        return arrivals

    def _index(self, arrival: Arrival) -> int:
        return self._starts[arrival.place] + arrival.delta.sample


async def _silent() -> dict:
    raise AssertionError("a whole response reads nothing")
