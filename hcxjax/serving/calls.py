"""What a client asks for: requests of OpenAI's API as checked values, apart from HTTP, vocabulary and engine."""

import dataclasses
from typing import Any

from hcxjax.checks import whole
from hcxjax.inference.sampling import MOST_SEEDS, Sampling
from hcxjax.serving.fields import Fields, is_id, shown
from hcxjax.serving.refusals import invalid, unsupported
from hcxjax.text.templates import Message

STOP_STRINGS = 4
STOP_CHARACTERS = 256
STOP_IDS = 12
"""Fewer than the engine's `EngineSettings.listed`, because the vocabulary's own are added."""
_HARMLESS = (
    *("user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("parallel_tool_calls", "prompt_cache_options"),
)
"""Fields that are read over: they do not say what is to be written."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "best_of": (1,),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "top_logprobs": (0,),
    "store": (False,),
    "moderation": (),
}
"""Fields of OpenAI's API that are not supported, and the values that ask for nothing."""
_EMPTY = ("tool_calls", "function_call", "audio", "refusal", "annotations", "reasoning_content", "reasoning")
"""Fields of a message that an answer given back may hold, empty."""


@dataclasses.dataclass(frozen=True)
class CallLimits:
    """What one request may ask for.

    Attributes:
      max_tokens: tokens of one sample.
      prompts: prompts of one completion.
      samples: continuations of one prompt.
    """

    max_tokens: int = 1024
    prompts: int = 16
    samples: int = 8

    def __post_init__(self):
        whole(self, 1, "max_tokens", "prompts", "samples")


@dataclasses.dataclass(frozen=True)
class Options:
    """What completions and chat have in common.

    Attributes:
      model: name of the model.
      max_tokens: of one sample; None where the request does not say.
      samples: continuations of one prompt.
      sampling: how tokens are drawn; its seed counts only where `seeded`.
      seeded: the client gave a seed.
      stop: strings that a sample ends before.
      stop_ids: ids that a sample ends with.
      logprobs: log-probabilities of the tokens written are wanted.
      stream: the answer is sent as it is written.
      usage: a stream ends with the counts of tokens.
    """

    model: str
    max_tokens: int | None
    samples: int
    sampling: Sampling
    seeded: bool
    stop: tuple[str, ...]
    stop_ids: tuple[int, ...]
    logprobs: bool
    stream: bool
    usage: bool


@dataclasses.dataclass(frozen=True)
class Completion:
    """A request for completions.

    Attributes:
      prompts: texts or token ids.
      suffix: what follows the gap that is to be filled in; None where text is gone on with.
      echo: the prompt stands before what is written.
      options: the rest.
    """

    prompts: tuple[str | tuple[int, ...], ...]
    suffix: str | None
    echo: bool
    options: Options


@dataclasses.dataclass(frozen=True)
class Chat:
    """A request for the next turn of a conversation."""

    messages: tuple[Message, ...]
    options: Options


def completion(values: dict[str, Any], limits: CallLimits) -> Completion:
    """Reads a request to /v1/completions.

    Raises:
      Refusal: a field is missing, of another type, out of range, unknown, or not supported.
    """
    fields = Fields(values)
    logprobs = fields.whole("logprobs", 0)
    if logprobs is not None and logprobs > 1:
        raise unsupported("logprobs", "only the tokens written have log-probabilities; give 0 or 1")
    prompts = _prompts(fields, limits)
    suffix, echo = fields.text("suffix"), fields.flag("echo")
    if echo and (logprobs is not None or suffix is not None):
        other = "logprobs" if logprobs is not None else "suffix"
        raise unsupported("echo", f"it does not go together with {other}")
    max_tokens = fields.whole("max_tokens", 1, limits.max_tokens)
    options = _options(fields, limits, 16 if max_tokens is None else max_tokens, logprobs is not None)
    return Completion(prompts, suffix, echo, options)


def chat(values: dict[str, Any], limits: CallLimits) -> Chat:
    """Reads a request to /v1/chat/completions.

    Raises:
      Refusal: a field is missing, of another type, out of range, unknown, or not supported.
    """
    fields = Fields(values)
    messages = _messages(fields.raw("messages"))
    older, newer = (fields.whole(name, 1, limits.max_tokens) for name in ("max_tokens", "max_completion_tokens"))
    if older is not None and newer is not None and older != newer:
        raise invalid("max_tokens and max_completion_tokens say different things; give one", "max_tokens")
    return Chat(messages, _options(fields, limits, newer if older is None else older, fields.flag("logprobs")))


def _options(fields: Fields, limits: CallLimits, max_tokens: int | None, logprobs: bool) -> Options:
    model = fields.text("model")
    if not model:
        raise invalid("model is missing; /v1/models lists what there is", "model")
    seed = fields.whole("seed", -(2**63), 2**63 - 1)
    samples = fields.whole("n", 1, limits.samples) or 1
    sampling = _sampling(fields, seed or 0)
    stream, usage = fields.flag("stream"), fields.nested("stream_options")
    wanted = usage.flag("include_usage")
    usage.flag("include_obfuscation")
    usage.refuse_rest()
    if wanted and not stream:
        raise invalid("stream_options is for streams; set stream", "stream_options")
    options = Options(
        model=model,
        max_tokens=max_tokens,
        samples=samples,
        sampling=sampling,
        seeded=seed is not None,
        stop=_stop(fields.raw("stop")),
        stop_ids=fields.wholes("stop_token_ids", STOP_IDS),
        logprobs=logprobs,
        stream=stream,
        usage=wanted,
    )
    _refuse_others(fields)
    return options


def _sampling(fields: Fields, seed: int) -> Sampling:
    try:
        return Sampling(
            temperature=fields.number("temperature", 1.0, 0.0, 2.0),
            top_k=max(0, fields.whole("top_k", -1, 2**31 - 1) or 0),  # vLLM's -1 keeps all, as our 0 does
            top_p=fields.number("top_p", 1.0, 0.0, 1.0),
            min_p=fields.number("min_p", 0.0, 0.0, 1.0),
            repetition_penalty=fields.number("repetition_penalty", 1.0, 0.1, 10.0),
            seed=seed % MOST_SEEDS,
        )
    except ValueError as error:  # its messages begin with the field
        raise invalid(str(error), str(error).partition(" ")[0]) from None


def _refuse_others(fields: Fields) -> None:
    for name in _HARMLESS:
        fields.raw(name)
    for name, neutral in _NEUTRAL.items():
        value = fields.raw(name)
        if value is not None and value not in neutral:
            raise unsupported(name, f"this server cannot do what {shown(value)} asks for; leave it out")
    fields.refuse_rest()


def _stop(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    strings = value if isinstance(value, list) else [value]
    good = all(isinstance(item, str) and 0 < len(item) <= STOP_CHARACTERS for item in strings)
    if not good or len(strings) > STOP_STRINGS:
        kind = f"a string of 1 to {STOP_CHARACTERS} characters, or a list of at most {STOP_STRINGS} such"
        raise invalid(f"stop is {shown(value)}; it must be {kind}", "stop")
    for item in strings:
        _refuse_surrogates(item, "stop")
    return tuple(dict.fromkeys(strings))


def _prompts(fields: Fields, limits: CallLimits) -> tuple[str | tuple[int, ...], ...]:
    value = fields.raw("prompt")
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise invalid(f"prompt is {shown(value)}; it must be a string, a list of strings, or token ids", "prompt")
    if all(is_id(item) for item in value):
        return (tuple(value),)
    if len(value) > limits.prompts:
        raise invalid(f"prompt has {len(value)} entries; at most {limits.prompts} are taken at once", "prompt")
    for number, item in enumerate(value):
        if not isinstance(item, str) and not (isinstance(item, list) and item and all(is_id(token) for token in item)):
            kind = "a string or a list of token ids, not empty"
            raise invalid(f"prompt[{number}] is {shown(item)}; it must be {kind}", "prompt")
    return tuple(item if isinstance(item, str) else tuple(item) for item in value)


def _messages(value: object) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise invalid(f"messages is {shown(value)}; it must be a list of messages, not empty", "messages")
    return tuple(_message(entry, f"messages[{number}]") for number, entry in enumerate(value))


def _message(entry: object, name: str) -> Message:
    if not isinstance(entry, dict):
        raise invalid(f"{name} is {shown(entry)}; it must be an object", name)
    fields = Fields(entry, name)
    role, content = fields.text("role"), fields.raw("content")
    if role is None:
        raise invalid(f"{name} has no role", f"{name}.role")
    for field in _EMPTY:
        if fields.raw(field):
            raise unsupported(f"{name}.{field}", "messages are text")
    fields.refuse_rest()
    # OpenAI's newer name for the same.
    return Message("system" if role == "developer" else role, _content(content, f"{name}.content"))


def _content(value: object, name: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise invalid(f"{name} is {shown(value)}; it must be a string, or a list of parts of type 'text'", name)
    for number, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise unsupported(f"{name}[{number}]", f"a part must be of type 'text'; this is {shown(kind)}")
        if set(part) != {"type", "text"} or not isinstance(part["text"], str):
            raise invalid(f"{name}[{number}] must have type and text, and nothing else", f"{name}[{number}]")
    return "".join(part["text"] for part in value)


def _refuse_surrogates(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise invalid(f"{name} has a lone surrogate: not valid Unicode", name) from None
