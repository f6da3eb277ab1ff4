"""HTTP around the routes: who may ask, how much is read, how errors look, what is counted."""

import asyncio
import contextlib
import hmac
import ipaddress
import json
import time
from collections.abc import Awaitable, Callable, Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hcxjax.serving.metrics import Metrics
from hcxjax.serving.refusals import Refusal

_LINGER_SECONDS = 2.0
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
"""This machine, as a Host header names it."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def answer(error: Refusal) -> Response:
    """A refusal as a response."""
    # In ASCII: what it quotes may not be valid Unicode.
    return Response(json.dumps(error.body), error.status, error.headers, "application/json")


def as_refusal(error: Exception) -> Refusal:
    """What the framework raises, in our form."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, HTTPException):
        return Refusal(error.status_code, error.detail)
    return Refusal(500, "an error inside the server; its log has more", code="internal_error")


async def refused(request: Request, error: Exception) -> Response:
    """Starlette's handler of exceptions."""
    return answer(as_refusal(error))


class Guard:
    """Lets in requests that carry the key, or without one those that a page of another site cannot send.

    `/health` answers anyone.

    Args:
      app: what is guarded.
      key: that every other request must carry as a bearer token; None asks for none.
      hosts: names in the Host header that are let in without a key; None lets in all.
    """

    def __init__(self, app: ASGIApp, key: str | None, hosts: tuple[str, ...] | None):
        self._app, self._hosts = app, hosts
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != "/health" and (error := self._refusal(dict(scope["headers"]))):
            await answer(error)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, headers: Mapping[bytes, bytes]) -> Refusal | None:
        if self._key is not None:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._key):
                return Refusal(401, "no API key, or a wrong one: send it as a bearer token", code="invalid_api_key")
        elif self._hosts is not None:
            host = headers.get(b"host", b"").decode("latin-1")
            name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
            if name not in self._hosts:
                return Refusal(403, "without an API key only this machine's own names are let in", code="wrong_host")
        return None


class Counted:
    """Counts answers by route and status, and how long they took."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: frozenset[str]):
        self._app, self._metrics, self._routes = app, metrics, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Other paths share a label: whoever asks for them must not make the server remember them.
        route = scope["path"] if scope["path"] in self._routes else "other"
        start, status = time.monotonic(), "none"

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception:
            status = "500"  # it is answered further out
            raise
        finally:
            self._metrics.requests.labels(route, status).inc()
            self._metrics.duration.labels(route).observe(time.monotonic() - start)


async def body_of(request: Request, most: int, seconds: float) -> bytes:
    """The body of a JSON request.

    Raises:
      Refusal: 415 where it is not said to be JSON (what a page of another site may send unasked never is), 413 where it
        is larger than `most`, 408 where it takes longer than `seconds`.
      ClientDisconnect: the client has gone.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, "the body must be JSON, with the header 'Content-Type: application/json'", close=True)
    length = request.headers.get("content-length", "")
    too_large = Refusal(413, f"the body is larger than {most} bytes", code="body_too_large", close=True)
    told = length.isdigit() and int(length) > most
    if told and "expect" in request.headers:
        raise too_large
    chunks = request.stream()
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in chunks:
                if told or len(body) + len(chunk) > most:
                    await _linger(chunks, most)
                    raise too_large
                body += chunk
    except TimeoutError:
        raise Refusal(408, f"the body took longer than {seconds:g} s", code="body_too_slow", close=True) from None
    return bytes(body)


async def _linger(chunks, most: int) -> None:
    """Throws away some of what is still coming: a client that is cut off while it sends does not see the answer."""
    left = 8 * most
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            async for chunk in chunks:
                left -= len(chunk)
                if left < 0:
                    return
    except TimeoutError:
        return


async def unless_gone(receive: Receive, work: Callable[[], Awaitable[None]]) -> bool:
    """Does the work unless the client goes away first, which cancels it; false in that case."""
    job = asyncio.ensure_future(work())
    watch = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({job, watch}, return_when=asyncio.FIRST_COMPLETED)
        if job.done():
            job.result()
            return True
        return False
    finally:
        for task in (job, watch):
            task.cancel()
        await asyncio.gather(job, watch, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
