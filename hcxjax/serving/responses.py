"""What a client is sent: whole answers and the chunks of a stream, as JSON objects of OpenAI's API."""

import dataclasses
import json
import secrets
import time
from collections.abc import Sequence
from typing import Any, Protocol

from hcxjax.inference.requests import Delta
from hcxjax.text.vocabulary import StreamDecoder, Vocabulary

DONE = b"data: [DONE]\n\n"


def event(value: object) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


@dataclasses.dataclass
class Piece:
    """What one sample gained since the last piece of it, or the whole of it."""

    text: str = ""
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    finish: str | None = None

    def add(self, delta: Delta) -> None:
        """Takes the next delta."""
        self.text += delta.text
        self.tokens += delta.tokens
        self.logprobs += delta.logprobs
        self.finish = delta.finish


@dataclasses.dataclass
class Usage:
    """Counts of tokens; a prompt with several samples is read and counted once."""

    prompt: int
    written: int = 0

    @property
    def body(self) -> dict[str, int]:
        """As OpenAI's API names them."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.written,
            "total_tokens": self.prompt + self.written,
        }


class Form(Protocol):
    """How one kind of answer looks."""

    def head(self, *, chunk: bool) -> dict[str, Any]:
        """What every object of the answer has."""
        ...

    def opening(self, index: int) -> dict[str, Any] | None:
        """The choice that a sample's stream begins with, if any."""
        ...

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        """The choice of a stream's object."""
        ...

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """The choice of a whole answer."""
        ...


def whole(form: Form, pieces: Sequence[Piece], usage: Usage) -> dict[str, Any]:
    """A whole answer."""
    choices = [form.choice(index, piece) for index, piece in enumerate(pieces)]
    return {**form.head(chunk=False), "choices": choices, "usage": usage.body}


def part(form: Form, choice: dict[str, Any], *, usage: bool) -> bytes:
    """An event of a stream; with `usage` every one but the last says that its counts are still to come."""
    return event({**form.head(chunk=True), "choices": [choice], **({"usage": None} if usage else {})})


def counts(form: Form, usage: Usage) -> bytes:
    """The event with the counts, which has no choice."""
    return event({**form.head(chunk=True), "choices": [], "usage": usage.body})


class _Head:
    """An answer's number, time and model."""

    def __init__(self, model: str, prefix: str, kinds: tuple[str, str]):
        self._kinds = kinds
        self._fields = {"created": int(time.time()), "model": model}
        self._number = f"{prefix}-{secrets.token_hex(12)}"

    def head(self, *, chunk: bool) -> dict[str, Any]:
        """What every object of the answer has."""
        return {"id": self._number, "object": self._kinds[chunk], **self._fields}


class CompletionForm(_Head):
    """Answers of /v1/completions.

    Args:
      model: its name.
      vocabulary: says what text a token is.
      logprobs: wanted.
      echoes: the prompts that stand before what is written, one a choice; none where not wanted.
    """

    def __init__(self, model: str, vocabulary: Vocabulary, logprobs: bool, echoes: Sequence[str] = ()):
        super().__init__(model, "cmpl", ("text_completion", "text_completion"))
        self._vocabulary, self._logprobs, self._echoes = vocabulary, logprobs, echoes
        self._offsets: dict[int, _Offsets] = {}

    def opening(self, index: int) -> dict[str, Any] | None:
        """The prompt, where it is wanted."""
        return self._choice(index, self._echoes[index], Piece()) if self._echoes else None

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        """A part of the text."""
        return self._choice(index, piece.text, piece)

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """The whole text."""
        return self._choice(index, (self._echoes[index] if self._echoes else "") + piece.text, piece)

    def _choice(self, index: int, text: str, piece: Piece) -> dict[str, Any]:
        logprobs = None
        if self._logprobs:
            offsets = self._offsets.setdefault(index, _Offsets(self._vocabulary))
            logprobs = {
                "tokens": [_shown(self._vocabulary, token) for token in piece.tokens],
                "token_logprobs": piece.logprobs,
                "top_logprobs": None,
                "text_offset": [offsets.push(token) for token in piece.tokens],
            }
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": piece.finish}


class ChatForm(_Head):
    """Answers of /v1/chat/completions."""

    def __init__(self, model: str, vocabulary: Vocabulary, logprobs: bool):
        super().__init__(model, "chatcmpl", ("chat.completion", "chat.completion.chunk"))
        self._vocabulary, self._logprobs = vocabulary, logprobs

    def opening(self, index: int) -> dict[str, Any] | None:
        """Who speaks."""
        return self._choice(index, "delta", {"role": "assistant", "content": ""}, Piece())

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        """A part of the turn."""
        return self._choice(index, "delta", {"content": piece.text} if piece.text else {}, piece)

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """The whole turn."""
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return self._choice(index, "message", message, piece)

    def _choice(self, index: int, field: str, said: dict[str, Any], piece: Piece) -> dict[str, Any]:
        logprobs = None
        if self._logprobs:
            pairs = zip(piece.tokens, piece.logprobs, strict=True)
            content = [
                {
                    "token": _shown(self._vocabulary, token),
                    "logprob": logprob,
                    "bytes": list(self._vocabulary.token_bytes(token)),
                    "top_logprobs": [],
                }
                for token, logprob in pairs
            ]
            logprobs = {"content": content, "refusal": None}
        return {"index": index, field: said, "logprobs": logprobs, "finish_reason": piece.finish}


class _Offsets:
    """Where in a sample's text each token begins, in characters that were whole before it."""

    def __init__(self, vocabulary: Vocabulary):
        self._decoder, self._characters = StreamDecoder(vocabulary), 0

    def push(self, token: int) -> int:
        start = self._characters
        self._characters += len(self._decoder.push(token))
        return start


def _shown(vocabulary: Vocabulary, token: int) -> str:
    return vocabulary.decode([token], specials=True)
