"""Whether a policy keeps to the length and the form it is asked for: what alignment is stopped on.

Source: HyperCLOVA X, arXiv:2404.01954, on PPO: against answers that grow, training is stopped early by a set of
instructions that constrain length and format. The report does not disclose the set; this one is our own.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from hcxjax.checks import number, whole
from hcxjax.evaluation.answers import AnswerWriter, Writes
from hcxjax.evaluation.constraints import keeps, shipped
from hcxjax.evaluation.known_reward import Reader
from hcxjax.mesh import Layout
from hcxjax.protocols import Params
from hcxjax.text.templates import Message, Template
from hcxjax.text.vocabulary import Vocabulary

_log = logging.getLogger(__name__)


class ChatForm(Protocol):
    """What knows how a run's chat is written; `hcxjax.data.prompts.Prompts` does."""

    def vocabulary(self) -> Vocabulary: ...
    def form(self, vocabulary: Vocabulary) -> Template: ...


class Checked(NamedTuple):
    """A request as token ids, the answer opened, and the rule for its answers."""

    group: str
    tokens: Sequence[int]
    follows: Callable[[str], bool]


class CheckedSet(NamedTuple):
    """Requests, and how their answers are read."""

    requests: Sequence[Checked]
    stop_ids: tuple[int, ...]
    vocabulary: Vocabulary


class Provider(Protocol):
    """What gives requests: `ConstrainedRequests` or `WorldForms`."""

    def load(self) -> CheckedSet: ...


@dataclasses.dataclass(frozen=True)
class ConstrainedRequests:
    """The requests that come with the project, in Korean and English (`hcxjax.evaluation.constraints`).

    Attributes:
      chat: gives vocabulary and template.
      length: most tokens of a request; longer ones are left out and counted.
    """

    chat: ChatForm
    length: int = 256

    def load(self) -> CheckedSet:
        """Tokenises them. ValueError where all are too long."""
        vocabulary = self.chat.vocabulary()
        template = self.chat.form(vocabulary)
        requests = [
            Checked(
                one.language,
                template.tokens([Message("user", one.prompt)], vocabulary, think=False),
                lambda answer, one=one: keeps(answer, one.constraints),
            )
            for one in shipped()
        ]
        fitting = [request for request in requests if len(request.tokens) <= self.length]
        if not fitting:
            raise ValueError(f"ConstrainedRequests.length is {self.length}; no request is as short")
        if len(fitting) < len(requests):
            _log.warning(
                "%d of %d requests have more than %d tokens and are left out (ConstrainedRequests.length)",
                len(requests) - len(fitting),
                len(requests),
                self.length,
            )
        return CheckedSet(fitting, template.stop_ids(vocabulary), vocabulary)


@dataclasses.dataclass(frozen=True)
class WorldForms:
    """Held-out instructions of the small world, of which only the form is checked.

    Attributes:
      prompts: gives them.
      count: of the instructions.
    """

    prompts: Reader
    count: int = 120

    def load(self) -> CheckedSet:
        """Reads them. ValueError where a prompt is no instruction."""
        asked = self.prompts.load("validation")
        requests = []
        for at in asked.batch(0, min(self.count, len(asked)), 0):
            instruction = asked.instructions[at]
            if instruction is None:
                raise ValueError(f"WorldForms.prompts: those of {asked.sources[at]!r} are no instructions of the world")
            requests.append(Checked(asked.sources[at], asked.tokens[at], instruction.is_of_the_form))
        return CheckedSet(requests, asked.stop_ids, asked.vocabulary)


@dataclasses.dataclass
class InstructionFollowing:
    """The share of requests whose answers keep to the length and the form that they ask for, checked by rules.

    An answer that did not come to its end keeps to nothing.

    Attributes:
      objective: whose policy answers.
      instructions: gives the requests.
      every: updates between measurements.
      new_tokens: of an answer, at most.
      temperature: of sampling; 0 takes the likeliest token.
    """

    objective: Writes
    instructions: Provider
    every: int
    new_tokens: int = 128
    temperature: float = 0.0

    def __post_init__(self):
        whole(self, 1, "every", "new_tokens")
        number(self, "temperature")

    def start(self, layout: Layout, run_dir: str) -> None:
        """Tokenises the requests."""
        self._set = self.instructions.load()
        tokens = [request.tokens for request in self._set.requests]
        self._write = AnswerWriter(self.objective, tokens, self._set.stop_ids, self.new_tokens, self.temperature)

    def evaluate(self, params: Params, step: int) -> dict[str, float]:
        """`eval/instructions/followed`, the same by group (language, or source), and `.../length` in tokens."""
        answers = self._write(params)
        followed: list[bool] = []
        groups: dict[str, list[bool]] = {}
        for request, answer in zip(self._set.requests, answers, strict=True):
            text = self._set.vocabulary.decode(answer.tokens)
            followed.append(answer.finish == "stop" and request.follows(text))
            groups.setdefault(request.group, []).append(followed[-1])
        results = {f"eval/instructions/followed/{name}": float(np.mean(kept)) for name, kept in groups.items()}
        return results | {
            "eval/instructions/followed": float(np.mean(followed)),
            "eval/instructions/length": float(np.mean([len(answer.tokens) for answer in answers])),
            "eval/instructions/stop_rate": float(np.mean([answer.finish == "stop" for answer in answers])),
        }
