"""uvicorn, taught to give up on peers that stall and to end in time."""

import asyncio
import socket
from collections.abc import Callable
from typing import cast

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from hcxjax.serving.bridge import Bridge
from hcxjax.serving.refusals import Refusal

STALL_SECONDS = 30.0
"""A peer that sends no whole head of a request, or takes nothing of an answer, for so long is cut off."""
_BACKSTOP_SECONDS = 1.0
"""For the last words; after them connections are cut, such as of a client that is still sending its request."""


class Patient(H11Protocol):
    """A connection with an end to its patience, in both directions."""

    stall_seconds = STALL_SECONDS
    _head: asyncio.TimerHandle | None = None
    _writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport) -> None:
        """Waits for a request's head."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Waits on, or no more: bytes that trickle in do not lengthen the wait."""
        super().data_received(data)
        theirs, ours = self.conn.their_state, self.conn.our_state
        # After an answer that did not wait for the body, what is left of the body only delays the next head.
        if theirs is not h11.IDLE and not (theirs is h11.SEND_BODY and ours is h11.DONE):
            self._head = _stopped(self._head)
        elif self._head is None:
            self._await_head()

    def pause_writing(self) -> None:
        """The peer does not read: starts the clock."""
        super().pause_writing()
        if self._writing is None:
            self._writing = self._later(self.transport.abort)

    def resume_writing(self) -> None:
        """It has read most of what waited."""
        super().resume_writing()
        self._writing = _stopped(self._writing)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more to wait for."""
        self._head, self._writing = _stopped(self._head), _stopped(self._writing)
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._head = self._later(self.transport.close)

    def _later(self, action: Callable[[], None]) -> asyncio.TimerHandle:
        return self.loop.call_later(self.stall_seconds, action)


def _stopped(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


class Server(uvicorn.Server):
    """Serves sockets (`run`) until SIGTERM or SIGINT, then lets what is under way end within `grace` seconds."""

    def __init__(self, app: ASGIApp, bridge: Bridge, *, grace: float, connections: int = 1024):
        super().__init__(
            uvicorn.Config(
                app,
                http=Patient,
                ws="none",
                lifespan="off",
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=connections,
                timeout_graceful_shutdown=cast(int, grace + _BACKSTOP_SECONDS),  # a wait; fractions are fine
            )
        )
        self._bridge, self._grace = bridge, grace

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """No new call; those still under way after the grace are told why they end."""
        self._bridge.stop()
        error = Refusal(503, "the server is shutting down", code="shutting_down")
        timer = asyncio.get_running_loop().call_later(self._grace, self._bridge.abort, error)
        await super().shutdown(sockets)
        timer.cancel()
