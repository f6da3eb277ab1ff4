"""Clients of a server, good and bad ones, by hand over sockets: what tools/load_test.py asks with."""

import asyncio
import dataclasses
import json
import random
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
_KOREAN = "민준은 일요일 아침 시장에서 사과를 사고 친구와 걸었다"
_WORDS = f"{_KOREAN} the market was open and def find(who): return 3".split()


class Case(NamedTuple):
    """A request whose answer is known."""

    path: str
    body: dict[str, Any]


class Answer(NamedTuple):
    """Texts and ends of all samples."""

    texts: tuple[str, ...]
    ends: tuple[str | None, ...]


class Outcome(NamedTuple):
    """How one request ended: 'ok', 'queue full', 'cut off' (a reader that was too slow), or what was wrong."""

    kind: str
    end: str
    seconds: float
    first: float | None = None


@dataclasses.dataclass(frozen=True)
class Target:
    """Where the server is.

    Attributes:
      key: API key, or None.
      limit: seconds in which every request has to end.
      slow: seconds for which a slow reader reads slowly.
    """

    host: str
    port: int
    model: str
    key: str | None
    limit: float
    slow: float


class Wrong(Exception):  # noqa: N818 (what is reported, not raised to anyone)
    """Something the server must not do."""


class Exchange:
    """One request over a connection of its own, and its response as it comes."""

    def __init__(self, target: Target, receive_buffer: int | None = None):
        self._target, self._receive_buffer = target, receive_buffer
        self.status = 0

    async def __aenter__(self) -> "Exchange":
        connection = socket.socket()
        if self._receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, (self._target.host, self._target.port))
        self.reader, self._writer = await asyncio.open_connection(sock=connection, limit=2**16)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.transport.abort()

    async def ask(self, method: str, path: str, body: bytes = b"", key: str | None = None) -> None:
        """Sends all of a request."""
        key = key or self._target.key
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
        head += "Content-Type: application/json\r\n" + (f"Authorization: Bearer {key}\r\n" if key else "")
        self._writer.write(head.encode() + b"\r\n" + body)
        await self._writer.drain()

    async def begin(self) -> None:
        """Reads the response's head."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        self.status = int(head.split()[1])
        self._chunked = b"transfer-encoding: chunked" in head.lower()

    async def rest(self) -> bytes:
        """Reads the response's body to its end."""
        return b"".join([piece async for piece in self.pieces()])

    async def pieces(self):
        """The body's pieces as they come."""
        if not self._chunked:
            yield await self.reader.read(-1)
            return
        while size := int(await self.reader.readline(), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]


def cases(model: str, count: int, seed: int, chat: bool) -> list[Case]:
    """Requests of every kind whose answers depend on nothing but themselves."""
    dice = random.Random(seed)
    found = []
    for number in range(count):
        text = " ".join(dice.choices(_WORDS, k=dice.randint(1, 12)))
        body: dict[str, Any] = {"model": model, "max_tokens": dice.choice((8, 24, 48)), "n": dice.choice((1, 1, 1, 2))}
        body |= {"temperature": 0} if number % 2 else {"temperature": 0.9, "top_p": 0.95, "seed": number}
        if chat and number % 3 == 0:
            found.append(Case(CHAT, {**body, "messages": [{"role": "user", "content": text}]}))
        elif number % 3 == 1:
            found.append(Case(COMPLETIONS, {**body, "prompt": text, "suffix": dice.choice(_WORDS)}))
        else:
            found.append(Case(COMPLETIONS, {**body, "prompt": text}))
    return found


def plain_answer(body: bytes) -> Answer:
    """Of a whole response."""
    choices = json.loads(body)["choices"]
    texts = (choice["text"] if "text" in choice else choice["message"]["content"] for choice in choices)
    return Answer(tuple(texts), tuple(choice["finish_reason"] for choice in choices))


def streamed_answer(events: Sequence[bytes], samples: int) -> Answer:
    """Of a stream's events.

    Raises:
      Wrong: it is not complete, or a character is cut.
    """
    if not events or events[-1] != b"data: [DONE]":
        raise Wrong("a stream without its end")
    texts, ends = [""] * samples, [None] * samples
    for event in events[:-1]:
        value = json.loads(event.decode().removeprefix("data: "))
        if "error" in value:
            raise Wrong(value["error"]["code"])
        choice = value["choices"][0]
        text = choice["text"] if "text" in choice else choice["delta"].get("content", "")
        texts[choice["index"]] += text
        ends[choice["index"]] = choice["finish_reason"]
    return Answer(tuple(texts), tuple(ends))


class Clients:
    """All behaviours, each a coroutine from a case and what its answer must be to how it ended."""

    def __init__(self, target: Target, known: dict[int, Answer], every: Sequence[Case], dice: random.Random):
        self._target, self._known, self._cases, self._dice = target, known, every, dice
        self.behaviours: dict[str, Callable[[int], Awaitable[tuple[str, float | None]]]] = {
            "plain": self._plain,
            "stream": self._stream,
            "slow reader": self._slow,
            "leaves a stream": self._leave_stream,
            "leaves a plain": self._leave_plain,
            "oversized": lambda number: self._refused(number, 413, b" " * (8 * 2**20)),
            "malformed": lambda number: self._refused(number, 400, b'{"model": "'),
            "wrong key": lambda number: self._refused(number, 401, key="wrong"),
        }

    async def one(self, kind: str) -> Outcome:
        """One request of a kind, and how it ended."""
        number, start = self._dice.randrange(len(self._cases)), time.monotonic()
        first = None
        try:
            async with asyncio.timeout(self._target.limit):
                end, first = await self.behaviours[kind](number)
        except TimeoutError:
            end = "HANGS"
        except Wrong as error:
            end = f"WRONG: {error}"
        except (OSError, asyncio.IncompleteReadError, ValueError, KeyError) as error:
            end = f"WRONG: {type(error).__name__} {error}"[:60]
        return Outcome(kind, end, time.monotonic() - start, first)

    async def alone(self, number: int) -> Answer:
        """The answer that a request gets when nobody else asks."""
        async with Exchange(self._target) as exchange:
            await self._send(exchange, number)
            await exchange.begin()
            body = await exchange.rest()
        if exchange.status != 200:
            raise Wrong(f"status {exchange.status}: {body.decode(errors='replace')}")
        return plain_answer(body)

    def _send(self, exchange: Exchange, number: int, **more: object) -> Awaitable[None]:
        case = self._cases[number]
        return exchange.ask("POST", case.path, json.dumps(case.body | more).encode())

    def _judged(self, number: int, got: Answer) -> str:
        if got == self._known[number]:
            return "ok"
        if got in self._known.values():
            return "WRONG: another's answer"
        return "WRONG: an answer that differs"

    async def _plain(self, number: int) -> tuple[str, float | None]:
        async with Exchange(self._target) as exchange:
            await self._send(exchange, number)
            await exchange.begin()
            body = await exchange.rest()
            if exchange.status == 429:
                return "queue full", None
            if exchange.status != 200:
                raise Wrong(f"status {exchange.status}")
            return self._judged(number, plain_answer(body)), None

    async def _stream(self, number: int, slow: float = 0.0) -> tuple[str, float | None]:
        start, first = time.monotonic(), None
        async with Exchange(self._target, 2048 if slow else None) as exchange:
            await self._send(exchange, number, stream=True)
            await exchange.begin()
            if exchange.status == 429:
                return "queue full", None
            if exchange.status != 200:
                raise Wrong(f"status {exchange.status}")
            data = b""
            async for piece in exchange.pieces():
                data += piece
                if first is None and b'"text":"' in data:
                    first = time.monotonic() - start
                if slow and time.monotonic() - start < slow:
                    await asyncio.sleep(self._dice.uniform(0.05, 0.5))
            events = [event for event in data.split(b"\n\n") if event]
            if slow and events and b'"reader_too_slow"' in events[-1] + events[-2 % len(events)]:
                return "cut off", first
            samples = self._cases[number].body["n"]
            return self._judged(number, streamed_answer(events, samples)), None if slow else first

    def _slow(self, number: int) -> Awaitable[tuple[str, float | None]]:
        return self._stream(number, self._target.slow)

    async def _leave_stream(self, number: int) -> tuple[str, float | None]:
        async with Exchange(self._target) as exchange:
            await self._send(exchange, number, stream=True)
            await exchange.begin()
            if exchange.status == 200:
                await exchange.reader.read(self._dice.randrange(1, 600))
            return ("ok" if exchange.status in (200, 429) else f"WRONG: status {exchange.status}"), None

    async def _leave_plain(self, number: int) -> tuple[str, float | None]:
        async with Exchange(self._target) as exchange:
            await self._send(exchange, number)
            await asyncio.sleep(self._dice.uniform(0, 0.5))
            return "ok", None

    async def _refused(
        self, number: int, status: int, body: bytes | None = None, key: str | None = None
    ) -> tuple[str, float | None]:
        case = self._cases[number]
        async with Exchange(self._target) as exchange:
            await exchange.ask("POST", case.path, json.dumps(case.body).encode() if body is None else body, key)
            await exchange.begin()
            answer = json.loads(await exchange.rest())
        if exchange.status != status or not answer["error"]["message"]:
            raise Wrong(f"status {exchange.status} in place of {status}")
        return "ok", None
