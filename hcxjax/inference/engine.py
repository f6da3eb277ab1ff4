"""The engine: requests in, tokens out, many at once in slots that are filled again as they fall free."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from hcxjax.checks import whole
from hcxjax.inference import steps
from hcxjax.inference.prefill import Prefill
from hcxjax.inference.prefixes import Prefixes
from hcxjax.inference.requests import Continuation, Delta, Request, Scores
from hcxjax.inference.sampling import Draws
from hcxjax.inference.scheduler import Scheduler
from hcxjax.inference.writing import Writing
from hcxjax.kernels.cached import PART
from hcxjax.models.config import DecoderConfig
from hcxjax.protocols import Params
from hcxjax.text.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class EngineSettings:
    """Sizes of an engine; memory grows with slots x context.

    Attributes:
      slots: samples that are written at once.
      context: tokens of prompt and continuation that a slot holds; None takes the model's `max_length`.
      chunk: tokens of a prompt that are read at once, a power of two; longer prompts are read chunk by chunk, and what
        prompts share is shared in whole chunks.
      prefill_tokens: tokens of prompts read between two rounds of decoding, so that what runs is not held up long.
      steps: tokens written in a round, between two looks of the host.
      queue: requests that may wait for a slot.
      prefix_tokens: tokens of prompts whose keys and values are kept for prompts that begin alike; 0 keeps none.
      listed: stop ids, and watched ids, that a request may have.
      cache_dtype: of keys and values: None for the model's compute dtype, 'int8' for half or a quarter of its memory.
    """

    slots: int = 8
    context: int | None = None
    chunk: int = 128
    prefill_tokens: int = 512
    steps: int = 4
    queue: int = 1024
    prefix_tokens: int = 8192
    listed: int = 16
    cache_dtype: str | None = None

    def __post_init__(self):
        whole(self, 1, "slots", "chunk", "prefill_tokens", "steps", "queue", "listed")
        whole(self, 0, "prefix_tokens")
        if self.context is not None:
            whole(self, 2, "context")
        if self.chunk & (self.chunk - 1):
            raise ValueError(f"EngineSettings.chunk is {self.chunk}; it must be a power of two")
        if self.cache_dtype not in (None, "int8"):
            raise ValueError(f"EngineSettings.cache_dtype is {self.cache_dtype!r}; it must be None or 'int8'")


@dataclasses.dataclass
class Counts:
    """What an engine has done.

    Attributes:
      rounds: of decoding.
      slot_steps: steps times slots.
      written: tokens given to requests; of slot_steps, the share that was of use.
    """

    rounds: int = 0
    slot_steps: int = 0
    written: int = 0


class Engine:
    """Continuous batching over slots, as in Yu et al. 2022 (Orca), section 3.1, with a prefill apart from the steps.

    One thread calls it. With a mesh, everything happens inside `layout.active()`; with several processes, each makes
    the same calls.

    Args:
      model: the decoder's sizes.
      params: its parameters, on the mesh.
      vocabulary: for text and stop strings; None gives tokens only.
      settings: sizes.
    Raises:
      ValueError: the context is longer than the model's.
    """

    def __init__(
        self,
        model: DecoderConfig,
        params: Params,
        vocabulary: Vocabulary | None = None,
        settings: EngineSettings = EngineSettings(),
    ):
        if settings.context is not None and settings.context > model.max_length:
            raise ValueError(
                f"EngineSettings.context is {settings.context}; the model's context is {model.max_length} "
                "(DecoderConfig.max_length)"
            )
        self.model, self.vocabulary, self.settings = model, vocabulary, settings
        # Held where they lie: an array that jax may still move is another argument to it than one that is put there.
        self._shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
        self.params = jax.device_put(params, self._shardings)
        self.context = settings.context or model.max_length
        self.counts = Counts()
        step = max(settings.chunk, PART) if self.context > PART else settings.chunk
        capacity = -(-self.context // step) * step
        self._scheduler = Scheduler(settings.slots, settings.queue)
        self._writing: dict[int, Writing] = {}
        self._cancelled: set[int] = set()
        self._slots = steps.free_slots(model, settings.slots, capacity, settings.cache_dtype, settings.listed)
        new_row = functools.partial(steps.empty_row, model, capacity, settings.cache_dtype)
        self._prefixes = Prefixes(settings.chunk, settings.prefix_tokens)
        self._new_prefill = functools.partial(Prefill, model, new_row, settings.chunk, self._prefixes)
        self._prefill = self._new_prefill()

    @functools.cached_property
    def _scoring(self) -> Prefill:
        """A row of its own: a prompt that is half read is not disturbed."""
        return self._new_prefill()

    @property
    def idle(self) -> bool:
        """Is there nothing to do?"""
        return self._scheduler.idle

    @property
    def waiting(self) -> int:
        """Requests of which samples wait for a slot."""
        return self._scheduler.waiting

    @property
    def active_slots(self) -> int:
        """Slots in use."""
        return len(self._scheduler.running)

    @property
    def cache_bytes_per_token(self) -> int:
        """Memory of a token's keys and values."""
        cache = self._slots.cache
        return sum(leaf.nbytes for leaf in cache if leaf is not None) // (self.settings.slots * cache.capacity)

    def warm_up(self, scoring: bool = False) -> None:
        """Compiles everything; no later call compiles again.

        Args:
          scoring: also what `score` needs.
        """
        assert self.idle, "slots in use would be overwritten"
        self._prefill.warm_up(self.params, scored=False)
        if scoring:
            self._scoring.warm_up(self.params, scored=True)
        self._slots = steps.insert(self._slots, self._prefill.row, self._start(Request((0,)), 0, 0), np.int32(0))
        self._slots = steps.release(self._slots, np.ones(self.settings.slots, bool))
        self._slots, _ = steps.step_all(self.model, self.params, self._slots, self.settings.steps)

    def submit(self, request: Request) -> int:
        """Takes a request into the queue; its number comes back in every `Delta`.

        Raises:
          ValueError: an empty prompt, an id outside the vocabulary, no room to write, or too many listed ids.
          QueueFull: as many wait as may.
        """
        self._check(request)
        return self._scheduler.submit(request)

    def cancel(self, number: int) -> None:
        """Ends what is left of a request at the next `advance`; one that is done or unknown is left alone."""
        self._cancelled.add(number)

    def swap(self, params: Params) -> None:
        """Goes on with other weights of the same shapes, which compiles nothing; prompts are read anew with them.

        Weights that lie on the mesh in another way are moved. Samples that are being written keep the keys and values
        of the weights they were read with.

        Raises:
          ValueError: other shapes, dtypes or leaves.
        """
        ours, theirs = (jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) for tree in (self.params, params))
        if ours != theirs:
            raise ValueError("the parameters to swap in have other leaves, shapes or dtypes than the engine's")
        self.params = jax.device_put(params, self._shardings)
        self._prefill.forget()
        self._prefixes.clear()

    def advance(self) -> list[Delta]:
        """One round: cancels, reads prompts into free slots, writes up to `steps` tokens in every running slot."""
        deltas = self._cancel()
        self._admit()
        return deltas + (self._decode() if self._scheduler.running else [])

    def complete(self, requests: Sequence[Request]) -> list[list[Continuation]]:
        """All samples of every request, in the order given; waits for all of them. Errors as for `finished`."""
        found = [[Continuation() for _ in range(request.samples)] for request in requests]
        for place, sample, continuation in self.finished(requests):
            found[place][sample] = continuation
        return found

    def finished(self, requests: Sequence[Request]) -> Iterator[tuple[int, int, Continuation]]:
        """(place of the request, sample, its continuation) of all, each as soon as it has ended.

        Raises:
          ValueError: a request that cannot be, or the engine has other work: its results would be lost.
        """
        if not self.idle:
            raise ValueError("complete needs an engine that is idle; use submit and advance beside other requests")
        for request in requests:
            self._check(request)
        going: dict[tuple[int, int], Continuation] = {}
        places: dict[int, int] = {}
        coming = iter(enumerate(requests))
        left = len(requests)
        while left or not self.idle:
            while left and self.waiting < self.settings.queue:
                place, request = next(coming)
                places[self.submit(request)] = place
                left -= 1
            for delta in self.advance():
                here = (places[delta.request], delta.sample)
                going.setdefault(here, Continuation()).add(delta)
                if delta.finish is not None:
                    yield *here, going.pop(here)

    def score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Scores]:
        """What the model says of each (prompt, continuation), token by token of the continuation.

        Prompts that begin alike, and requests', share what was read of them.

        Raises:
          ValueError: an empty prompt or continuation, an id outside the vocabulary, more tokens than the context.
        """
        for number, (prompt, continuation) in enumerate(pairs):
            self._check_ids(prompt, f"prompt {number}")
            self._check_ids(continuation, f"continuation {number}")
            if len(prompt) + len(continuation) > self.context:
                raise ValueError(
                    f"pair {number} has {len(prompt) + len(continuation)} tokens; the context is {self.context} "
                    "(EngineSettings.context, DecoderConfig.max_length)"
                )
        return [self._scoring.scores(self.params, prompt, continuation) for prompt, continuation in pairs]

    def _check(self, request: Request) -> None:
        self._check_ids(request.prompt, "the prompt")
        if len(request.prompt) >= self.context:
            raise ValueError(
                f"the prompt has {len(request.prompt)} tokens; the model's context is {self.context}, prompt and "
                "answer together (EngineSettings.context, DecoderConfig.max_length)"
            )
        for name, ids in (("stop_ids", request.stop_ids), ("watch", request.watch)):
            if len(ids) > self.settings.listed:
                raise ValueError(f"{name} has {len(ids)} ids; EngineSettings.listed allows {self.settings.listed}")
            if ids:
                self._check_ids(ids, name)
        if not request.stop:
            return
        if self.vocabulary is None:
            raise ValueError("stop strings need an engine with a vocabulary; use stop_ids")
        vocabulary = self.vocabulary
        for string in request.stop:
            try:
                vocabulary.encode(string)
            except ValueError as error:
                raise ValueError(f"stop has {string!r}: {error}") from None

    def _check_ids(self, ids: Sequence[int], what: str) -> None:
        if not len(ids):
            raise ValueError(f"{what} has no token; a prompt begins at least with the end-of-text token")
        if not all(isinstance(token, int | np.integer) for token in ids):
            raise ValueError(f"{what} has something that is no whole number; it must be token ids")
        if min(ids) < 0 or max(ids) >= self.model.vocab_size:
            raise ValueError(f"{what} has an id outside 0..{self.model.vocab_size - 1}: another model's tokenizer?")

    def _cancel(self) -> list[Delta]:
        deltas: list[Delta] = []
        ended: list[int] = []
        for number in sorted(self._cancelled):
            slots, waiting = self._scheduler.cancel(number)
            deltas += [Delta(number, sample, (), (), "", "cancelled") for number, sample in waiting]
            for slot in slots:
                sample = self._scheduler.running[slot].sample
                deltas.append(Delta(number, sample, (), (), self._writing[slot].rest(), "cancelled"))
            ended += slots
        self._cancelled.clear()
        self._free(ended, running_on=ended)
        return deltas

    def _free(self, slots: Sequence[int], running_on: Sequence[int]) -> None:
        """Frees slots, of which the device does not know that those in `running_on` are done."""
        for slot in slots:
            self._scheduler.free(slot)
            del self._writing[slot]
        if running_on:
            keep_B = np.ones(self.settings.slots, bool)
            keep_B[list(running_on)] = False
            self._slots = steps.release(self._slots, keep_B)

    def _admit(self) -> None:
        """Reads prompts in their order, while slots are free and the round's share of reading is not spent."""
        budget = self.settings.prefill_tokens
        while budget > 0 and (job := self._scheduler.head()) is not None:
            request = job.request
            prompt = request.prompt[:-1]  # the last token is the first that a slot reads
            budget -= self._prefill.read(self.params, prompt, budget)
            if not self._prefill.holds(prompt):
                return
            room = min(request.new_tokens, self.context - len(request.prompt))
            start, writing = self._start(request, job.placed, room), Writing(request, room, self.vocabulary)
            slot, _ = self._scheduler.place()
            self._slots = steps.insert(self._slots, self._prefill.row, start, np.int32(slot))
            self._writing[slot] = writing

    def _start(self, request: Request, sample: int, room: int) -> steps.Start:
        seen_BV = np.zeros((1, self.model.vocab_size), bool)
        seen_BV[0, np.asarray(request.prompt)] = True

        def filled(ids: Sequence[int]) -> np.ndarray:
            return np.array([[*ids, *[steps.NO_TOKEN] * (self.settings.listed - len(ids))]], np.int32)

        return steps.Start(
            np.array(request.prompt[-1:], np.int32),
            np.array([len(request.prompt) - 1], np.int32),
            np.array([room], np.int32),
            seen_BV,
            steps.Ask(
                Draws.of(request.sampling, request.stream + sample),
                np.array([request.logprob_temperature], np.float32),
                filled(request.stop_ids),
                filled(request.watch),
            ),
        )

    def _decode(self) -> list[Delta]:
        self._slots, written = steps.step_all(self.model, self.params, self._slots, self.settings.steps)
        token_TB, logprob_TB, watched_TBW = (np.asarray(column) for column in written)
        count_B = (token_TB != steps.NO_TOKEN).sum(axis=0)
        deltas, ended, running_on = [], [], []
        for slot, placed in sorted(self._scheduler.running.items()):
            count, watch = int(count_B[slot]), len(placed.request.watch)
            used, text, finish = self._writing[slot].take(token_TB[:count, slot].tolist())
            tokens, logprobs = token_TB[:used, slot].tolist(), logprob_TB[:used, slot].tolist()
            watched = watched_TBW[:used, slot, :watch] if watch else None
            deltas.append(Delta(placed.number, placed.sample, tuple(tokens), tuple(logprobs), text, finish, watched))
            self.counts.written += used
            if finish is not None:
                ended.append(slot)
                # Only a stop string is seen here first; tokens after it were written in vain.
                running_on += [slot] if self._writing[slot].by_text else []
        self.counts.rounds += 1
        self.counts.slot_steps += int(count_B.max()) * self.settings.slots
        self._free(ended, running_on)
        return deltas
