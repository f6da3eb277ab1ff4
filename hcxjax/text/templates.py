"""Chat templates as data: what stands before and after each turn, as text, as token ids, and as jinja for an export.

A template that comes with a checkpoint is a program of somebody else's; it is never run here. The forms of the models
that are read and trained here are written down as `HCXJAX`, `SEED`, `THINK` and `LLAMA3` instead.
"""

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from hcxjax.text.vocabulary import END_OF_TEXT, END_OF_TURN, StreamDecoder, Vocabulary

START = ""
"""In `Turn.follows`: nothing stands before."""
ANSWER, THINK_ROLE = "assistant", "think"
_MARK = re.compile(r"<\|[^|<>]+\|>")
_PIECE = re.compile(_MARK.pattern + "|.", re.DOTALL)


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


class Span(NamedTuple):
    """Tokens of one turn, or a part of it.

    Attributes:
      tokens: ids.
      role: whose turn it is.
      written: the model writes these itself: an answer, its reasoning, and what ends them. Supervised fine-tuning has
        its loss on these and nowhere else.
    """

    tokens: list[int]
    role: str
    written: bool


@dataclasses.dataclass(frozen=True)
class Turn:
    """How one role's turn is marked. In `before`, `after` and `end`, what spells a special is that special.

    Attributes:
      before: stands before the content.
      after: stands after it where another turn follows.
      follows: roles that may stand before it; `START` is the beginning.
      end: what the model writes to end such a turn; "" where it is never the model's, or never its last.
    """

    before: str
    after: str
    follows: tuple[str, ...]
    end: str = ""


class _Part(NamedTuple):
    """What is tokenised in one go: marks, whose specials are ids, and content, in which all is text."""

    role: str
    written: bool
    before: str = ""
    content: str = ""
    after: str = ""

    @property
    def text(self) -> str:
        return self.before + self.content + self.after


@dataclasses.dataclass(frozen=True)
class Template:
    """The form of a conversation.

    Attributes:
      name: as command lines know it.
      turns: by role.
      stops: specials that end an answer, by name.
      begins: stands before everything.
      always: roles that stand first in this order, with empty content where the conversation has none.
      thinks: the model may reason before it answers, in a turn of role `think`; in the history such turns are left
        out.
    """

    name: str
    turns: Mapping[str, Turn]
    stops: tuple[str, ...]
    begins: str = ""
    always: tuple[str, ...] = ()
    thinks: bool = False

    def text(self, messages: Sequence[Message], *, answer: bool = True, think: bool = True) -> str:
        """The conversation as one string, specials spelled out: to be looked at. Arguments as in `tokens`."""
        return "".join(part.text for part in self._parts(messages, answer, think))

    def tokens(
        self, messages: Sequence[Message], vocabulary: Vocabulary, *, answer: bool = True, think: bool = True
    ) -> list[int]:
        """What a model is given.

        Text that spells a special stays text; only the template's own marks become specials.

        Args:
          answer: open the answer at the end; otherwise the conversation is closed as the model closes it.
          think: where the template has reasoning, the answer begins with it.
        Raises:
          ValueError: no message, a role that the template lacks or that cannot stand there, or a special that the
            vocabulary lacks; names it.
        """
        spans = self.spans(messages, vocabulary, answer=answer, think=think)
        return [token for span in spans for token in span.tokens]

    def spans(
        self, messages: Sequence[Message], vocabulary: Vocabulary, *, answer: bool = False, think: bool = True
    ) -> list[Span]:
        """`tokens` in parts that say whose they are, and which of them the model writes: what fine-tuning learns.

        A history is tokenised as it was written: an answer's tokens never run together with what stands before it.
        The last reasoning turn is kept where no request follows it, so a conversation whose every reasoning is to be
        learnt is given once for each answer.
        """
        parts = self._parts(messages, answer, think)
        return [Span(_encoded(part, vocabulary), part.role, part.written) for part in parts]

    def stop_ids(self, vocabulary: Vocabulary) -> tuple[int, ...]:
        """Ids that end an answer."""
        return tuple(vocabulary.special(name) for name in self.stops)

    def opening(self, last: str, think: bool) -> str:
        """The role whose turn is opened after one of role `last`."""
        return THINK_ROLE if self.thinks and think and last != THINK_ROLE else ANSWER

    def _parts(self, messages: Sequence[Message], answer: bool, think: bool) -> list[_Part]:
        self._check(messages, answer)
        parts = [_Part(START, False, before=self.begins)] if self.begins else []
        shown, before = self._shown(messages), START
        for number, message in enumerate(shown):
            last = number == len(shown) - 1 and not answer
            parts += self._turn(message, before, last)
            before = message.role
        if answer:
            role = self.opening(before, think)
            parts.append(_Part(role, False, before=self.turns[role].before))
        return parts

    def _turn(self, message: Message, before: str, last: bool) -> Iterator[_Part]:
        role, content = message
        turn = self.turns[role]
        if role not in (ANSWER, THINK_ROLE):
            yield _Part(role, False, turn.before, content, turn.after)
            return
        # After its reasoning the model opens the answer itself.
        yield _Part(role, before == THINK_ROLE, before=turn.before)
        after = turn.end if last and turn.end else turn.after
        # What the model ends a turn with may be more than the history keeps, or less.
        own = len(_shared(turn.end, after)) if turn.end else len(after)
        yield _Part(role, True, content=content, after=after[:own])
        if after[own:]:
            yield _Part(role, False, after=after[own:])

    def _shown(self, messages: Sequence[Message]) -> list[Message]:
        given = dict(messages)
        first = [Message(role, given.get(role, "")) for role in self.always]
        asked = max((number for number, message in enumerate(messages) if message.role == "user"), default=-1)
        return first + [
            message
            for number, message in enumerate(messages)
            if message.role not in self.always and (message.role != THINK_ROLE or number > asked)
        ]

    def _check(self, messages: Sequence[Message], answer: bool) -> None:
        if not messages:
            raise ValueError("a conversation needs at least one message; this one is empty")
        before = START
        for number, (role, _) in enumerate(messages):
            if role not in self.turns:
                raise ValueError(
                    f"message {number} has the role {role!r}; the template {self.name} has {', '.join(self.turns)}"
                )
            follows = self.turns[role].follows
            if before not in follows:
                may = " or ".join(repr(other) if other else "the beginning" for other in follows)
                stands = f"after {before!r}" if before else "at the beginning"
                raise ValueError(f"message {number} of role {role!r} cannot stand {stands}; it stands after {may}")
            before = role
        if answer and before not in ("user", THINK_ROLE):
            raise ValueError(f"the last message has the role {before!r}; an answer follows a message of role 'user'")

    def jinja(self) -> str:
        """The same form as a `chat_template` of Hugging Face tokenizers.

        `skip_reasoning` (SEED's own name) opens the answer without reasoning. Roles that the template lacks fail; the
        order of roles is not looked at.
        """
        turns = {role: dataclasses.asdict(turn) for role, turn in self.turns.items()}
        values = {
            "BEFORE": {role: turn["before"] for role, turn in turns.items()},
            "AFTER": {role: turn["after"] for role, turn in turns.items()},
            "END": {role: turn["end"] or turn["after"] for role, turn in turns.items()},
            "BEGINS": self.begins,
            "ALWAYS": list(self.always),
        }
        program = _JINJA_THINKING if self.thinks else _JINJA_ANSWER
        sets = (f"{{%- set {name} = {json.dumps(value, ensure_ascii=False)} -%}}" for name, value in values.items())
        return "\n".join([*sets, _JINJA_TURNS, program])


def _encoded(part: _Part, vocabulary: Vocabulary) -> list[int]:
    """Ids of a part, where text between two specials is tokenised as one, content and what is around it alike."""
    ids, text = [], ""
    for string, marks in ((part.before, True), (part.content, False), (part.after, True)):
        start = 0
        for found in _MARK.finditer(string) if marks else ():
            ids += [*vocabulary.encode(text + string[start : found.start()]), vocabulary.special(found.group())]
            text, start = "", found.end()
        text += string[start:]
    return [*ids, *vocabulary.encode(text)]


def _shared(one: str, other: str) -> str:
    """What two strings begin with alike, no special cut in two."""
    pairs = zip(_PIECE.findall(one), _PIECE.findall(other), strict=False)
    return "".join(piece for piece, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


_JINJA_TURNS = """\
{{- BEGINS -}}
{%- for role in ALWAYS -%}
{%- set given = messages | selectattr("role", "equalto", role) | list -%}
{{- BEFORE[role] + (given[0]["content"] if given else "") + AFTER[role] -}}
{%- endfor -%}
{%- set seen = namespace(asked=-1) -%}
{%- for message in messages -%}
{%- if message["role"] == "user" -%}{%- set seen.asked = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
{%- if message["role"] not in ALWAYS and (message["role"] != "think" or loop.index0 > seen.asked) -%}
{{- BEFORE[message["role"]] + message["content"] -}}
{{- END[message["role"]] if loop.last and not add_generation_prompt else AFTER[message["role"]] -}}
{%- endif -%}
{%- endfor -%}"""
_JINJA_ANSWER = '{%- if add_generation_prompt -%}{{- BEFORE["assistant"] -}}{%- endif -%}'
_JINJA_THINKING = """\
{%- if add_generation_prompt -%}
{%- set answers = (skip_reasoning is defined and skip_reasoning) or messages[-1]["role"] == "think" -%}
{{- BEFORE["assistant" if answers else "think"] -}}
{%- endif -%}"""

_CHAT_ML_STOPS = (END_OF_TEXT, "<|stop|>", END_OF_TURN)


def _chat_ml(role: str, follows: tuple[str, ...], after: str = "<|im_end|>\n", end: str = "") -> Turn:
    return Turn(f"<|im_start|>{role}\n", after, follows, end)


HCXJAX = Template(
    "hcxjax",
    {
        "system": Turn("", "\n\n", (START,)),
        "user": Turn("<|user|>", "<|endofturn|>\n", (START, "system", ANSWER)),
        ANSWER: Turn("<|assistant|>", "<|endofturn|>\n", ("user",), end="<|endofturn|>"),
    },
    stops=(END_OF_TURN, END_OF_TEXT),
    begins=END_OF_TEXT,
)
"""The form in the report's appendix (arXiv:2404.01954): a preamble, a blank line, and a line a turn. As every document
that our models have read it begins with the end-of-text token."""

SEED = Template(
    "seed",
    {
        "tool_list": _chat_ml("tool_list", (START,)),
        "system": _chat_ml("system", (START, "tool_list")),
        "user": _chat_ml("user", (START, "tool_list", "system", ANSWER)),
        ANSWER: _chat_ml(ANSWER, ("user",), end="<|im_end|><|endofturn|>"),
    },
    stops=_CHAT_ML_STOPS,
    always=("tool_list",),
)
"""HyperCLOVAX-SEED-Text-Instruct. Answers in the history lack the `<|endofturn|>` that the model ends its own with."""

THINK = Template(
    "think",
    {
        "tool_list": SEED.turns["tool_list"],
        "system": SEED.turns["system"],
        "user": SEED.turns["user"],
        THINK_ROLE: _chat_ml("assistant/think", ("user",)),
        ANSWER: _chat_ml(
            ANSWER, ("user", THINK_ROLE), after="<|im_end|><|endofturn|>\n", end="<|im_end|><|endofturn|>"
        ),
    },
    stops=_CHAT_ML_STOPS,
    always=("tool_list", "system"),
    thinks=True,
)
"""HyperCLOVAX-SEED-Think-14B, by its model card: empty blocks for tools and system text, answers closed by
`<|endofturn|>` in the history too. Deviations: whether the model reasons is said when the answer is opened, not left to
it; calls of tools have no role here."""

_EOT = "<|eot_id|>"


def _llama3(role: str, follows: tuple[str, ...], end: str = "") -> Turn:
    return Turn(f"<|start_header_id|>{role}<|end_header_id|>\n\n", _EOT, follows, end)


LLAMA3 = Template(
    "llama3",
    {
        "system": _llama3("system", (START,)),
        "user": _llama3("user", (START, "system", ANSWER)),
        ANSWER: _llama3(ANSWER, ("user",), end=_EOT),
    },
    stops=(_EOT, "<|end_of_text|>"),
    begins="<|begin_of_text|>",
)
"""Llama 3 Instruct, by its model card. Deviations: content is not stripped of the spaces around it, and the block with
dates that later versions put first is not written."""

TEMPLATES = {template.name: template for template in (HCXJAX, SEED, THINK, LLAMA3)}


def template_named(name: str) -> Template:
    """A template by name; ValueError that names those there are."""
    if name not in TEMPLATES:
        raise ValueError(f"template is {name!r}; there are {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def template_for(vocabulary: Vocabulary) -> Template | None:
    """The template whose marks and stops the vocabulary has; None where it has those of none.

    `THINK` has the marks of `SEED`, so it is never chosen by these and has to be named.
    """
    for template in (HCXJAX, SEED, LLAMA3):
        marks = [template.begins, *(turn.before + turn.after + turn.end for turn in template.turns.values())]
        if {*_MARK.findall("".join(marks)), *template.stops} <= vocabulary.specials.keys():
            return template
    return None


def fitting_template(name: str | None, vocabulary: Vocabulary) -> Template:
    """The template of that name, or the one whose marks the vocabulary has; its specials are all there.

    Raises:
      ValueError: none is named and none fits, or the one named does not.
    """
    found = template_for(vocabulary) if name is None else template_named(name)
    if found is None:
        raise ValueError(
            f"{vocabulary.path} has the specials of no chat template; name one (TEMPLATE): {', '.join(TEMPLATES)}"
        )
    found.tokens([Message("user", "")], vocabulary)
    found.stop_ids(vocabulary)  # a special that is missing is an error now, not one in every dialogue
    return found


def messages_of(entries: Any) -> list[Message]:
    """Messages of decoded JSON, a list of {"role": …, "content": …}.

    Raises:
      ValueError: it is something else; names the message.
    """
    if not isinstance(entries, list):
        raise ValueError(f"messages is {entries!r:.60}; it must be a list of objects with role and content")
    for number, entry in enumerate(entries):
        strings = isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("role", "content"))
        if not strings:
            raise ValueError(f"message {number} is {entry!r:.60}; it must have strings role and content")
    return [Message(entry["role"], entry["content"]) for entry in entries]


class AnswerStream:
    """Parts what a model writes into its reasoning and its answer, as it comes.

    Args:
      opened: the role that the prompt has opened (`Template.opening`).
    """

    def __init__(self, template: Template, vocabulary: Vocabulary, opened: str):
        self.role = opened
        self._vocabulary, self._decoder = vocabulary, StreamDecoder(vocabulary)
        thinking = template.turns.get(THINK_ROLE)
        self._between = thinking.after + template.turns[ANSWER].before if thinking else ""
        self._end = vocabulary.special(_MARK.findall(self._between)[0]) if thinking else None
        self._passed: list[int] = []

    def push(self, token: int) -> str:
        """The text that `token` adds to the turn of `role`, which may now be the next."""
        if not self._passed and not (self.role == THINK_ROLE and token == self._end):
            return self._decoder.push(token)
        self._passed.append(token)
        spelled = self._vocabulary.decode(self._passed, specials=True)
        if self._between.startswith(spelled) and spelled != self._between:
            return ""
        # All that stands between the two, perhaps with the answer's beginning; or another text, of which nothing is
        # lost.
        self.role, text = ANSWER, self._decoder.text(self._passed)
        self._passed = []
        return text.removeprefix(_MARK.sub("", self._between)) if spelled.startswith(self._between) else text
