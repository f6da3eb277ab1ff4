"""What the engine is asked for, and what it gives back."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hcxjax.checks import number, whole
from hcxjax.inference.sampling import MOST_SEEDS, Sampling


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt and how it is gone on with.

    Attributes:
      prompt: token ids; a text that is begun anew starts with the end-of-text token.
      new_tokens: at most this many; the engine's context limits them too.
      sampling: how tokens are drawn.
      stop_ids: a sample ends with one of these; it is in the tokens and never in the text.
      stop: strings that a sample ends before; never in the text.
      samples: continuations of the one prompt, which is prefilled once.
      stream: number of the request under its seed: draws are a function of (seed, stream + sample, position).
      watch: ids whose log-probabilities are wanted at every position.
      logprob_temperature: divides the logits of the log-probabilities that are told. Reinforcement learning has them
        under the distribution that it samples from; else they are the model's own.
    """

    prompt: Sequence[int]
    new_tokens: int = 128
    sampling: Sampling = Sampling()
    stop_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    samples: int = 1
    stream: int = 0
    watch: tuple[int, ...] = ()
    logprob_temperature: float = 1.0

    def __post_init__(self):
        whole(self, 1, "new_tokens", "samples")
        whole(self, 0, "stream")
        number(self, "logprob_temperature")
        if not 0 < self.logprob_temperature < float("inf"):
            raise ValueError(f"logprob_temperature is {self.logprob_temperature}; it must be above 0 and finite")
        if self.stream + self.samples > MOST_SEEDS:
            raise ValueError(f"stream is {self.stream}; with {self.samples} samples it must stay below 2^32")
        if isinstance(self.stop, str) or not all(self.stop):
            raise ValueError(f"stop is {self.stop!r}; it must be a tuple of strings, none of them empty")


class Delta(NamedTuple):
    """What one sample gained in a round.

    Attributes:
      request, sample: whose.
      tokens: new ids.
      logprobs: log p of each under the model itself (nothing dropped or penalised, `Request.logprob_temperature`), in
        nats.
      text: whole characters; what may be the beginning of a stop string is held back until that is known.
      finish: None while it goes on, then 'stop' (a stop id or string), 'length' or 'cancelled'.
      watched: float32 [tokens, watch], log-probabilities of the watched ids; None if none are.
    """

    request: int
    sample: int
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish: str | None
    watched: np.ndarray | None = None


@dataclasses.dataclass
class Continuation:
    """A sample from its first token to its last; fields as in `Delta`."""

    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    text: str = ""
    finish: str | None = None
    watched: np.ndarray | None = None

    def add(self, delta: Delta) -> None:
        """Takes the next of its deltas."""
        self.tokens += delta.tokens
        self.logprobs += delta.logprobs
        self.text += delta.text
        self.finish = delta.finish
        if delta.watched is not None:
            known = delta.watched if self.watched is None else np.concatenate([self.watched, delta.watched])
            self.watched = known


class Scores(NamedTuple):
    """Of a given continuation: log p of each token in nats, whether it is the likeliest there, and which that is."""

    logprobs: np.ndarray
    top: np.ndarray
    likeliest: np.ndarray
