"""A conversation as what is trained on: its tokens, and which of them are learnt.

Source: HyperCLOVA X, arXiv:2404.01954, on supervised fine-tuning: several turns a sample, the loss on the assistant's
turns alone. What ends an answer is part of it, or the model would never stop.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hcxjax.text.templates import ANSWER, THINK_ROLE, Message, Template
from hcxjax.text.vocabulary import Vocabulary

USER = "user"
LEAST_TARGETS = 8
"""Tokens of a cut answer below which it is no longer worth its request."""


class Rendered(NamedTuple):
    """A conversation's tokens.

    Attributes:
      tokens: ids, int32.
      learnt: the model writes this token itself: as a target it weighs 1, any other 0; bool, one per id.
    """

    tokens: np.ndarray
    learnt: np.ndarray


class Cut(NamedTuple):
    """What was left out so that a conversation fits.

    Attributes:
      turns: messages, from the oldest request on.
      answer: tokens at the end of the last answer, its end of turn among them.
    """

    turns: int = 0
    answer: int = 0


def render(messages: Sequence[Message], template: Template, vocabulary: Vocabulary) -> Rendered:
    """Tokens of a whole conversation, which ends as the model ends it.

    Text that spells a special stays text.

    Raises:
      ValueError: as `Template.spans`.
    """
    spans = template.spans(messages, vocabulary)
    tokens = [token for span in spans for token in span.tokens]
    learnt = [span.written for span in spans for _ in span.tokens]
    return Rendered(np.array(tokens, np.int32), np.array(learnt, bool))


def render_within(
    messages: Sequence[Message], template: Template, vocabulary: Vocabulary, length: int
) -> tuple[Rendered, Cut] | None:
    """The conversation in at most `length` positions, one fewer than it has tokens.

    The oldest requests go first, each with all up to the next; what stands before the first of them (a system message)
    stays. Where the last alone is too long, its answer keeps its beginning.

    Returns: None where fewer than `LEAST_TARGETS` tokens of an answer that is cut would be left.
    Raises:
      ValueError: as `Template.spans`.
    """
    requests = [number for number, message in enumerate(messages) if message.role == USER] or [0]
    rendered = render(messages, template, vocabulary)
    for start in requests:
        kept = [*messages[: requests[0]], *messages[start:]]
        rendered = render(kept, template, vocabulary) if start != requests[0] else rendered
        if len(rendered.tokens) <= length + 1:
            return rendered, Cut(turns=len(messages) - len(kept))
    short = Rendered(rendered.tokens[: length + 1], rendered.learnt[: length + 1])
    if short.learnt.sum() < LEAST_TARGETS:
        return None
    return short, Cut(len(messages) - len(kept), len(rendered.tokens) - length - 1)


def answered(messages: Sequence[Message]) -> list[Message]:
    """The messages up to the last answer; what follows it teaches nothing."""
    last = max((number for number, message in enumerate(messages) if message.role == ANSWER), default=-1)
    return list(messages[: last + 1])


def unseen_reasoning(messages: Sequence[Message]) -> int:
    """Turns of reasoning before the last request: a template leaves them out of the history."""
    last = max((number for number, message in enumerate(messages) if message.role == USER), default=-1)
    return sum(message.role == THINK_ROLE for message in messages[: max(0, last)])
