"""The routes."""

import asyncio
import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hcxjax.checks import whole
from hcxjax.inference import requests as engine_requests
from hcxjax.serving import calls, prompts
from hcxjax.serving.answering import Answering
from hcxjax.serving.bridge import Bridge
from hcxjax.serving.calls import Chat, Completion, Options
from hcxjax.serving.fields import decoded
from hcxjax.serving.http import Counted, Guard, body_of, refused
from hcxjax.serving.metrics import CONTENT_TYPE, Metrics
from hcxjax.serving.prompts import Served
from hcxjax.serving.refusals import Refusal
from hcxjax.serving.responses import ChatForm, CompletionForm, Form

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
ROUTES = frozenset((COMPLETIONS, CHAT, "/v1/models", "/health", "/metrics"))


@dataclasses.dataclass(frozen=True)
class Door:
    """Who may ask, and how much of a request is read.

    Attributes:
      key: API key that requests carry; None asks for none.
      hosts: Host headers that are let in without a key; None lets in all.
      body_bytes: of a request, at most.
      body_seconds: in which it has to arrive.
      behind: tokens that the reader of a stream may be behind.
    """

    key: str | None = dataclasses.field(default=None, repr=False)
    hosts: tuple[str, ...] | None = None
    body_bytes: int = 2**20
    body_seconds: float = 30.0
    behind: int = 1024

    def __post_init__(self):
        whole(self, 1, "body_bytes", "behind")


def application(served: Served, bridge: Bridge, metrics: Metrics, door: Door) -> Starlette:
    """The server's ASGI application; `bridge` is started and closed by who made it."""
    house = _House(served, bridge, metrics, door)
    metrics.gauge("queue_length", "requests that wait for a slot", lambda: bridge.waiting)
    metrics.gauge("active_slots", "samples that are written at this time", lambda: bridge.active_slots)
    routes = [
        Route("/v1/models", house.models),
        Route("/v1/models/{name:path}", house.model),
        Route(COMPLETIONS, house.completions, methods=["POST"]),
        Route(CHAT, house.chat, methods=["POST"]),
        Route("/health", house.health),
        Route("/metrics", house.measures),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Counted, metrics, ROUTES), Middleware(Guard, door.key, door.hosts)],
        exception_handlers={Refusal: refused, HTTPException: refused, Exception: refused, ClientDisconnect: _nobody},
    )


async def _nobody(request: Request, error: Exception) -> Response:
    """For the log of what was counted: the client is not there any more."""
    return Response(status_code=499)


class _House:
    def __init__(self, served: Served, bridge: Bridge, metrics: Metrics, door: Door):
        self._served, self._bridge, self._metrics, self._door = served, bridge, metrics, door
        self._created = int(time.time())
        # One thread: a vocabulary remembers what it encoded and is not made for several.
        self._encoding = ThreadPoolExecutor(1, "encoding")

    async def health(self, request: Request) -> Response:
        state = self._bridge.state
        return JSONResponse({"status": state}, 200 if state == "ready" else 503)

    async def measures(self, request: Request) -> Response:
        return Response(self._metrics.exposed(), media_type=CONTENT_TYPE)

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> Response:
        self._served.check_model(request.path_params["name"])
        return JSONResponse(self._card())

    def _card(self) -> dict[str, Any]:
        return {
            "id": self._served.name,
            "object": "model",
            "created": self._created,
            "owned_by": "hcxjax",
            "max_model_len": self._served.context,
        }

    async def completions(self, request: Request) -> Answering:
        def prepared(body: bytes) -> tuple[Completion, list[engine_requests.Request]]:
            call = calls.completion(decoded(body), self._served.limits)
            return call, prompts.completion_requests(self._served, call)

        def form(call: Completion) -> Form:
            echoes = [self._echoed(prompt) for prompt in call.prompts for _ in range(call.options.samples)]
            model, vocabulary = self._served.name, self._served.vocabulary
            return CompletionForm(model, vocabulary, call.options.logprobs, echoes if call.echo else ())

        return await self._answering(request, prepared, form)

    async def chat(self, request: Request) -> Answering:
        def prepared(body: bytes) -> tuple[Chat, list[engine_requests.Request]]:
            call = calls.chat(decoded(body), self._served.limits)
            return call, prompts.chat_requests(self._served, call)

        def form(call: Chat) -> Form:
            return ChatForm(self._served.name, self._served.vocabulary, call.options.logprobs)

        return await self._answering(request, prepared, form)

    def _echoed(self, prompt: str | tuple[int, ...]) -> str:
        return prompt if isinstance(prompt, str) else self._served.vocabulary.decode(prompt)

    async def _answering(self, request: Request, prepared: Callable, form: Callable[[Any], Form]) -> Answering:
        arrived = time.monotonic()
        self._bridge.check_ready()
        body = await body_of(request, self._door.body_bytes, self._door.body_seconds)
        call, wanted = await asyncio.get_running_loop().run_in_executor(self._encoding, prepared, body)
        options: Options = call.options
        opened = await self._bridge.open(wanted, self._door.behind if options.stream else None)
        return Answering(
            self._bridge,
            opened,
            form(call),
            self._metrics,
            stream=options.stream,
            counts=options.usage,
            arrived=arrived,
        )
