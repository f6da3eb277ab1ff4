"""Plays episodes: the engine writes answers to prompts, and frozen models judge them as they are finished."""

import dataclasses
import threading
import time
from collections.abc import Sequence

import numpy as np

from hcxjax.data.rollouts.episodes import Episodes
from hcxjax.data.rollouts.judges import Judge, Reference
from hcxjax.inference.engine import Engine, EngineSettings
from hcxjax.inference.requests import Continuation, Request
from hcxjax.inference.sampling import MOST_SEEDS, Sampling
from hcxjax.mesh import Layout
from hcxjax.models.config import DecoderConfig
from hcxjax.protocols import Array, Params


class Stopped(Exception):  # noqa: N818 (no error: the run ends)
    """The player was told to stop before it was done."""


@dataclasses.dataclass(frozen=True)
class Call:
    """One update's episodes, to be played.

    Attributes:
      update: of the trainer, from 0; draws are a function of (seed, update, row).
      version: the update before which the parameters are these.
      prompts: tokens of each, in the order of the rows.
      numbers: of the prompts in their set.
      sources: of the prompts.
    """

    update: int
    version: int
    prompts: Sequence[Sequence[int]]
    numbers: np.ndarray
    sources: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Played:
    """Episodes, and the seconds they took: until all were written, and then until all were judged."""

    episodes: Episodes
    writing_s: float = 0.0
    judging_s: float = 0.0


class Player:
    """One engine, one reference, one judge; a thread at a time calls it.

    Answers are judged `rows` at a time, those of neighbouring prompts together, as soon as the last of them is
    finished: what is judged together follows from the prompts' order, not from who was finished first.

    Args:
      model: sizes of the policy.
      width: places of an episode, prompt and answer.
      new_tokens: of an answer, at most.
      temperature: of the policy.
      stop_ids: what ends an answer.
      seed: of all draws.
      rows: episodes that are judged at once.
      settings: of the engine; its context is `width`.
      layout: the engine's devices.
    """

    def __init__(
        self,
        model: DecoderConfig,
        reference: Reference,
        judge: Judge,
        *,
        width: int,
        new_tokens: int,
        temperature: float,
        stop_ids: tuple[int, ...],
        seed: int,
        rows: int,
        settings: EngineSettings,
        layout: Layout,
    ):
        self.rows, self.layout = rows, layout
        self._model, self._reference, self._judge = model, reference, judge
        self._width, self._new_tokens, self._temperature = width, new_tokens, temperature
        self._stop_ids = stop_ids
        self._sampling = Sampling(temperature=temperature, seed=seed)
        self._settings = dataclasses.replace(settings, context=width)
        self._engine: Engine | None = None
        self._policy: Params | None = None
        self._stop = threading.Event()

    def stop(self) -> None:
        """Makes a `play` in another thread end at its next round."""
        self._stop.set()

    def play(self, call: Call, policy: Params, reference: Params) -> Played:
        """The episodes of a call.

        Args:
          policy: parameters that write; they must live until this returns.
          reference: parameters of the reference.
        Raises:
          Stopped: `stop` was called meanwhile.
        """
        started = time.perf_counter()
        episodes = Episodes.empty(len(call.prompts), self._width)
        episodes.prompt_B[:], episodes.version_B[:] = call.numbers, call.version
        left = [self.rows] * (len(call.prompts) // self.rows)
        judged: dict[int, tuple[Array, Array]] = {}
        with self.layout.active():
            for row, _, answer in self.writer(policy).finished(self.requests(call)):
                if self._stop.is_set():
                    # The engine is left with work that nobody wants; a player that was stopped plays no more.
                    raise Stopped
                episodes.put(row, call.prompts[row], answer)
                part = row // self.rows
                left[part] -= 1
                if not left[part]:
                    judged[part] = self._judging(episodes.rows(part * self.rows, (part + 1) * self.rows), reference)
        written = time.perf_counter()
        for part, found in sorted(judged.items()):
            here = slice(part * self.rows, (part + 1) * self.rows)
            self._take(episodes.rows(here.start, here.stop), found, call.sources[here])
        return Played(episodes, written - started, time.perf_counter() - written)

    def writer(self, policy: Params) -> Engine:
        """The engine under these parameters."""
        if self._engine is None:
            self._engine = Engine(self._model, policy, settings=self._settings)
        elif policy is not self._policy:
            self._engine.swap(policy)
        self._policy = policy
        return self._engine

    def requests(self, call: Call) -> list[Request]:
        """What the engine is asked for each prompt of a call."""
        first = call.update * len(call.prompts)
        return [
            Request(
                prompt,
                self._new_tokens,
                self._sampling,
                self._stop_ids,
                stream=(first + row) % MOST_SEEDS,
                logprob_temperature=self._temperature,
            )
            for row, prompt in enumerate(call.prompts)
        ]

    def written(self, call: Call, answer: Continuation) -> Episodes:
        """The one episode of a call, not yet judged."""
        episodes = Episodes.empty(1, self._width)
        episodes.prompt_B[:], episodes.version_B[:] = call.numbers, call.version
        episodes.put(0, call.prompts[0], answer)
        return episodes

    def judge(self, episodes: Episodes, reference: Params, sources: Sequence[str]) -> None:
        """Fills in what the reference and the judge say of `rows` episodes."""
        self._take(episodes, self._judging(episodes, reference), sources)

    def _judging(self, episodes: Episodes, reference: Params) -> tuple[Array, Array]:
        """(reference_BT, score_B) of `rows` episodes, being computed when this returns."""
        batch = episodes.batch()
        return self._reference.logprobs(reference, batch), self._judge.scores(batch, episodes.ends_B - 1)

    def _take(self, episodes: Episodes, found: tuple[Array, Array], sources: Sequence[str]) -> None:
        reference_BT, score_B = found
        episodes.reference_BT[:, : reference_BT.shape[1]] = np.asarray(reference_BT)
        episodes.score_B[:] = self._judge.rewards(np.asarray(score_B), sources)
