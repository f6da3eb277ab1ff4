"""The common forms of dialogues in files, as messages.

| fields                                           | what becomes of them                                    |
|--------------------------------------------------|---------------------------------------------------------|
| `messages`: [{role, content}, …]                 | as they are                                             |
| `conversations`: [{from, value}, …]              | human → user, gpt → assistant                           |
| `instruction`, `input`, `output` (or `response`) | instruction, a blank line and input ask; the answer     |
| `prompt`, `completion`                           | request and answer; or lists of messages, in this order |

A field `system` beside the last three is a system message before the rest. The first form whose fields are there
counts.
"""

import re
from collections.abc import Mapping
from typing import Any

from hcxjax.text.rendering import answered
from hcxjax.text.templates import ANSWER, Message

_SPEAKERS = {"human": "user", "gpt": ANSWER}
_TOLD = {"Human": "user", "Assistant": ANSWER}
_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \t]*")


class DialogueError(ValueError):
    """A record that cannot be trained on; the message is the reason, alike for records that fail alike."""


def dialogue_of(record: Mapping[str, Any]) -> tuple[list[Message], int]:
    """(the messages up to the last answer, how many followed it).

    Raises:
      DialogueError: the record is of no known form, has no answer, or one without text.
    """
    messages = _messages(record)
    kept = answered(messages)
    if not kept:
        raise DialogueError("no answer")
    for role, content in kept:
        if role == ANSWER and not content.strip():
            raise DialogueError("an answer is empty")
        if role == "user" and not content.strip():
            raise DialogueError("a request is empty")
    return kept, len(messages) - len(kept)


def request_of(record: Mapping[str, Any]) -> list[Message]:
    """The messages up to the last request, as a model is asked to answer them.

    Beside the forms of this module's table, `prompt` alone (a text, a `transcript` that opens the answer, or a list of
    messages) and `instruction` alone will do; answers that stand there are not looked at.

    Raises:
      DialogueError: the record is of no known form, has no request, an empty turn, or begins with an answer.
    """
    present = {name for name, value in record.items() if value is not None}
    if "messages" in present or "conversations" in present:
        messages = _messages(record)
    else:
        asked = next((name for name in ("prompt", "instruction") if name in present), None)
        if asked is None:
            raise DialogueError("no known form (prompt, messages, conversations, instruction)")
        messages = [Message("system", _text(record, "system"))] if record.get("system") else []
        messages += _prompt(record) if asked == "prompt" else [Message("user", _instruction(record))]
    last = max((number for number, message in enumerate(messages) if message.role == "user"), default=-1)
    if last < 0:
        raise DialogueError("no request")
    turns = [message for message in messages[: last + 1] if message.role != "system"]
    if turns[0].role == ANSWER:
        raise DialogueError("it begins with the assistant")
    if not all(message.content.strip() for message in turns):
        raise DialogueError("an empty turn")
    return messages[: last + 1]


def transcript(text: str) -> list[Message] | None:
    """Turns of "Human: … Assistant: …", as in Anthropic's HH-RLHF; None where the text is none."""
    text = text.strip()
    _, *parts = _SPEAKER.split(text)
    if _SPEAKER.match(text) is None or "Assistant" not in parts[::2]:
        return None
    return [Message(_TOLD[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True)]


def _prompt(record: Mapping[str, Any]) -> list[Message]:
    turns = transcript(record["prompt"]) if isinstance(record["prompt"], str) else None
    if turns is None:
        return _part(record, "prompt", "user")
    if turns[-1] != Message(ANSWER, ""):
        raise DialogueError("a transcript that does not end by opening the answer")
    return turns[:-1]


def _instruction(record: Mapping[str, Any]) -> str:
    return "\n\n".join(text for name in ("instruction", "input") if (text := _text(record, name)))


def _messages(record: Mapping[str, Any]) -> list[Message]:
    present = {name for name, value in record.items() if value is not None}
    if "messages" in present:
        return _turns(record["messages"], "messages", "role", "content")
    system = [Message("system", _text(record, "system"))] if record.get("system") else []
    if "conversations" in present:
        turns = _turns(record["conversations"], "conversations", "from", "value")
        return system + [Message(_SPEAKERS.get(role, role), content) for role, content in turns]
    answer = next((name for name in ("output", "response") if name in present), None)
    if "instruction" in present and answer:
        return [*system, Message("user", _instruction(record)), Message(ANSWER, _text(record, answer))]
    if {"prompt", "completion"} <= present:
        return system + _part(record, "prompt", "user") + _part(record, "completion", ANSWER)
    raise DialogueError("no known form (messages, conversations, instruction and output, prompt and completion)")


def _part(record: Mapping[str, Any], name: str, role: str) -> list[Message]:
    if isinstance(record[name], str):
        return [Message(role, record[name])]
    return _turns(record[name], name, "role", "content")


def _turns(entries: Any, name: str, role: str, content: str) -> list[Message]:
    if not isinstance(entries, list):
        raise DialogueError(f"{name} is {type(entries).__name__}, not a list")
    for entry in entries:
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get(role), str)
            or not isinstance(entry.get(content), str)
        ):
            raise DialogueError(f"{name}: a turn without strings {role} and {content}")
    return [Message(entry[role], entry[content]) for entry in entries]


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DialogueError(f"{name} is {type(value).__name__}, not a string")
    return value
