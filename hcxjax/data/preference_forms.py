"""The common forms of comparisons in files, as answers to a prompt and which of them was preferred to which.

| fields                                     | what becomes of them                                              |
|--------------------------------------------|-------------------------------------------------------------------|
| a prompt; `chosen`, `rejected`             | every chosen answer is preferred to every rejected one            |
| a prompt; `responses`, `scores`            | higher scores are preferred to lower ones; margin: the difference |
| a prompt; `responses`, `ranking`           | lower ranks are preferred to higher ones                          |
| `chosen`, `rejected`: whole conversations  | all but their last answers is the prompt, which both share        |

A prompt is `prompt` (a text, a list of messages, or a transcript "Human: … Assistant:"), `conversations`, `messages` or
`instruction` with `input`, as `dialogue_forms.request_of` reads them. An answer is a text, or one message ({role,
content} or {from, value}); `chosen` and `rejected` may also be lists of texts. Whole conversations are lists of
messages, or without a prompt beside them transcripts. `margin` beside chosen and rejected says how much better the
chosen one is.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hcxjax.data.dialogue_forms import DialogueError, request_of, transcript
from hcxjax.text.templates import ANSWER, Message

_PROMPTS = {"prompt", "conversations", "messages", "instruction"}


class Comparison(NamedTuple):
    """Of two answers, which was preferred.

    Attributes:
      chosen, rejected: numbers of answers.
      margin: how much better the chosen one is; 0 where that is not known.
    """

    chosen: int
    rejected: int
    margin: float


class Preference(NamedTuple):
    """What a record says.

    Attributes:
      prompt: messages, the last one a request.
      answers: texts.
      comparisons: of these.
    """

    prompt: Sequence[Message]
    answers: Sequence[str]
    comparisons: Sequence[Comparison]


def preference_of(record: Mapping[str, Any]) -> Preference:
    """What a record says; comparisons of equal answers are among it.

    Raises:
      DialogueError: the record is of no known form, or a prompt or an answer cannot be trained on.
    """
    present = {name for name, value in record.items() if value is not None}
    if "responses" in present:
        return _ranked(record, present)
    if not {"chosen", "rejected"} <= present:
        raise DialogueError("no known form (chosen and rejected, or responses with scores or ranking)")
    alone = not present & _PROMPTS
    sides = [_side(record[name], name, alone) for name in ("chosen", "rejected")]
    if any(before for before, _ in sides) and sides[0][0] != sides[1][0]:
        raise DialogueError("the two sides have different prompts")
    before, chosen = sides[0]
    _, rejected = sides[1]
    prompt = _prompt(record, present, before)
    margin = _number(record["margin"], "margin") if "margin" in present else 0.0
    pairs = [(one, len(chosen) + two) for one in range(len(chosen)) for two in range(len(rejected))]
    return Preference(prompt, _checked([*chosen, *rejected]), [Comparison(*pair, margin) for pair in pairs])


def _prompt(record: Mapping[str, Any], present: set[str], before: Sequence[Message]) -> list[Message]:
    """The prompt of a record, whose answers stand alone or after `before`."""
    if before:
        texts = [message.content.strip() for message in before]
        for name in sorted(present & {"prompt", "instruction", "system"}):
            if isinstance(record[name], str) and record[name].strip() not in texts:
                raise DialogueError(f"{name} beside whole conversations that do not have it")
        return request_of({"messages": [message._asdict() for message in before]})
    if not present & _PROMPTS:
        raise DialogueError("no prompt")
    given = next((record[name] for name in ("messages", "conversations", "prompt") if name in present), None)
    if isinstance(given, list) and given and isinstance(given[-1], dict):
        last = given[-1].get("role", given[-1].get("from"))
        if last in (ANSWER, "gpt"):
            raise DialogueError("the prompt ends with an answer")
    return request_of(record)


def _ranked(record: Mapping[str, Any], present: set[str]) -> Preference:
    answers = record["responses"]
    given = next((name for name in ("scores", "ranking") if name in present), None)
    if given is None:
        raise DialogueError("responses without scores or ranking")
    if not isinstance(answers, list) or not isinstance(record[given], list) or len(answers) != len(record[given]):
        raise DialogueError(f"responses and {given} are no lists of one length")
    worth = [_number(value, given) * (1 if given == "scores" else -1) for value in record[given]]
    pairs = [(one, two) for one in range(len(worth)) for two in range(len(worth)) if worth[one] > worth[two]]
    if not pairs:
        raise DialogueError(f"{given} that are all alike")
    told = given == "scores"  # ranks have no unit
    comparisons = [Comparison(one, two, worth[one] - worth[two] if told else 0.0) for one, two in pairs]
    texts = [_answer(entry, "responses") for entry in answers]
    return Preference(_prompt(record, present, ()), _checked(texts), comparisons)


def _side(given: Any, name: str, alone: bool) -> tuple[list[Message], list[str]]:
    """(what stands before the answer, answers) of `chosen` or `rejected`.

    Args:
      alone: the record has no prompt beside them, so a text may be a transcript.
    """
    if isinstance(given, list):
        if not given:
            raise DialogueError(f"{name} has no answer")
        if all(isinstance(entry, dict) for entry in given):
            *before, last = [_message(entry, name) for entry in given]
            if last.role != ANSWER:
                raise DialogueError(f"{name} does not end with an answer")
            return before, [last.content]
        return [], [_answer(entry, name) for entry in given]
    turns = transcript(given) if alone and isinstance(given, str) else None
    if turns is not None:
        if turns[-1].role != ANSWER:
            raise DialogueError(f"{name} does not end with an answer")
        return turns[:-1], [turns[-1].content]
    return [], [_answer(given, name)]


def _answer(entry: Any, name: str) -> str:
    if isinstance(entry, str):
        return entry
    message = _message(entry, name)
    if message.role != ANSWER:
        raise DialogueError(f"{name} is no answer but of role {message.role}")
    return message.content


def _message(entry: Any, name: str) -> Message:
    if isinstance(entry, dict):
        role, content = entry.get("role", entry.get("from")), entry.get("content", entry.get("value"))
        if isinstance(role, str) and isinstance(content, str):
            return Message({"human": "user", "gpt": ANSWER}.get(role, role), content)
    raise DialogueError(f"{name} is neither a text nor a message")


def _checked(answers: list[str]) -> list[str]:
    if not all(answer.strip() for answer in answers):
        raise DialogueError("an answer is empty")
    return answers


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DialogueError(f"{name} is no number")
    return float(value)
