"""What a policy answers to prompts, at points of a run: one engine, compiled once, given the weights of the moment."""

from collections.abc import Sequence
from typing import Protocol

from hcxjax.inference.engine import Engine, EngineSettings
from hcxjax.inference.requests import Continuation, Request
from hcxjax.inference.sampling import Sampling
from hcxjax.models.config import DecoderConfig
from hcxjax.protocols import Params

_CHUNK = 64


class Writes(Protocol):
    """An objective whose parameters hold a decoder that writes."""

    @property
    def model(self) -> DecoderConfig:
        """The decoder's sizes."""
        ...

    def policy(self, params: Params) -> Params:
        """The decoder's parameters."""
        ...


class AnswerWriter:
    """Answers to fixed prompts under changing parameters; the same parameters give the same answers.

    Args:
      objective: whose decoder writes.
      prompts: token ids.
      stop_ids: ids that end an answer.
      new_tokens: of an answer, at most.
      temperature: of sampling; 0 takes the likeliest token.
      slots: answers that are written at once.
    Raises:
      ValueError: the longest prompt leaves no room for an answer.
    """

    def __init__(
        self,
        objective: Writes,
        prompts: Sequence[Sequence[int]],
        stop_ids: tuple[int, ...],
        new_tokens: int,
        temperature: float,
        slots: int = 32,
    ):
        longest = max(map(len, prompts))
        model = objective.model
        if longest + new_tokens > model.max_length:
            raise ValueError(
                f"the longest prompt has {longest} tokens and an answer up to {new_tokens} (new_tokens); the model's "
                f"context is {model.max_length} (DecoderConfig.max_length)"
            )
        self._objective = objective
        self._requests = [
            Request(prompt, new_tokens, Sampling(temperature=temperature), stop_ids, stream=number)
            for number, prompt in enumerate(prompts)
        ]
        self._settings = EngineSettings(
            slots=min(slots, len(prompts)),
            context=longest + new_tokens,
            chunk=_CHUNK,
            prefill_tokens=_CHUNK * slots,
            prefix_tokens=0,
        )
        self._engine: Engine | None = None

    def __call__(self, params: Params) -> list[Continuation]:
        """The answers, without text, in the order of the prompts. Called inside `layout.active()`."""
        policy = self._objective.policy(params)
        if self._engine is None:
            self._engine = Engine(self._objective.model, policy, None, self._settings)
        else:
            self._engine.swap(policy)
        return [answer for (answer,) in self._engine.complete(self._requests)]
