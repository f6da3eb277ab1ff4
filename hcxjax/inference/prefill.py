"""Reading prompts into a row's cache, chunk by chunk, going on from what is kept of prompts that begin alike."""

from collections.abc import Callable, Sequence

import numpy as np

from hcxjax.inference import steps
from hcxjax.inference.prefixes import Prefixes
from hcxjax.inference.requests import Scores
from hcxjax.models.attention import KVCache
from hcxjax.models.config import DecoderConfig
from hcxjax.protocols import Params

LEAST = 16
"""Tokens of the shortest part that is compiled."""


def part_sizes(chunk: int) -> list[int]:
    """Lengths that a prompt's last part is padded to, ascending; the longest is a whole chunk."""
    sizes = [chunk]
    while sizes[0] % 2 == 0 and sizes[0] // 2 >= LEAST:
        sizes.insert(0, sizes[0] // 2)
    return sizes


class Prefill:
    """One row's cache, and how far it has been read.

    A prompt is cut on a grid of `chunk` from its start, and what is left is padded to the next of `part_sizes`: how it
    is computed follows from its tokens alone, not from what else was asked for.

    Args:
      model: the decoder's sizes.
      new_row: gives an empty row.
      chunk: tokens read at once.
      prefixes: what is kept of earlier prompts; shared by the rows of an engine.
    """

    def __init__(self, model: DecoderConfig, new_row: Callable[[], KVCache], chunk: int, prefixes: Prefixes):
        self._model = model
        self._chunk = chunk
        self._sizes = part_sizes(chunk)
        self._prefixes = prefixes
        self._row: KVCache = new_row()
        self._prompt: tuple[int, ...] | None = None
        self._done = 0
        self.read_tokens = 0
        self.shared_tokens = 0

    @property
    def row(self) -> KVCache:
        """The cache; places from where reading stands on hold what earlier prompts left."""
        return self._row

    def forget(self) -> None:
        """The parameters have changed: what was read counts no more."""
        self._prompt = None

    def warm_up(self, params: Params, scored: bool) -> None:
        """Compiles the reading of every part length, or its scoring."""
        for size in self._sizes:
            blank_BT = np.zeros((1, size), np.int32)
            if scored:
                self._row, _ = steps.prefill_scored(self._model, params, self._row, blank_BT, blank_BT, np.int32(0))
            else:
                self._row = steps.prefill(self._model, params, self._row, blank_BT, np.int32(0))
        part = steps.part_of(self._row, np.int32(0), self._chunk)
        self._row = steps.put(self._row, part, np.int32(0))
        self.forget()

    def read(self, params: Params, prompt: Sequence[int], budget: int) -> int:
        """Reads on in `prompt` until it is done or `budget` tokens are spent; the tokens computed, padding included.

        Another prompt than before is begun anew.
        """
        prompt = tuple(prompt)
        if prompt != self._prompt:
            self._begin(prompt)
        elif self._done == len(prompt):
            self.shared_tokens += len(prompt)
        spent = 0
        while self._done < len(prompt) and spent < budget:
            tokens_BT, end = self._part(prompt)
            self._row = steps.prefill(self._model, params, self._row, tokens_BT, np.int32(self._done))
            self._keep(prompt, end)
            self.read_tokens += end - self._done
            self._done, spent = end, spent + tokens_BT.shape[1]
        return spent

    def holds(self, prompt: Sequence[int]) -> bool:
        """Has all of `prompt` been read?"""
        return self._prompt == tuple(prompt) and self._done == len(prompt)

    def scores(self, params: Params, prompt: Sequence[int], continuation: Sequence[int]) -> Scores:
        """What the model says of every token of `continuation`, which follows `prompt`."""
        ids = (*prompt, *continuation)
        first = len(prompt) - 1  # whose next token is the first that is scored
        before = first - first % self._chunk
        self.read(params, ids[:before], budget=len(ids))
        self._prompt = None
        found: list[list[np.ndarray]] = []
        self._done = before
        while self._done < len(ids) - 1:
            tokens_BT, end = self._part(ids[:-1])
            targets_BT = np.zeros_like(tokens_BT)
            targets_BT[0, : end - self._done] = ids[self._done + 1 : end + 1]
            self._row, scored = steps.prefill_scored(
                self._model, params, self._row, tokens_BT, targets_BT, np.int32(self._done)
            )
            here = slice(max(0, first - self._done), end - self._done)
            columns_BT = (scored.logprob_BT, scored.top_BT, scored.likeliest_BT)
            found.append([np.asarray(column_BT)[0, here] for column_BT in columns_BT])
            self.read_tokens += end - self._done
            self._done = end
        return Scores(*(np.concatenate(column) for column in zip(*found, strict=True)))

    def _begin(self, prompt: tuple[int, ...]) -> None:
        self._prompt, self._done = prompt, 0
        for part in self._prefixes.known(prompt):
            self._row = steps.put(self._row, part, np.int32(self._done))
            self._done += self._chunk
        self.shared_tokens += self._done

    def _part(self, prompt: tuple[int, ...]) -> tuple[np.ndarray, int]:
        """(tokens_BT of the next part, padded, where it ends)."""
        end = min(self._done + self._chunk, len(prompt))
        size = next(size for size in self._sizes if size >= end - self._done)
        tokens_BT = np.zeros((1, size), np.int32)
        tokens_BT[0, : end - self._done] = prompt[self._done : end]
        return tokens_BT, end

    def _keep(self, prompt: tuple[int, ...], end: int) -> None:
        if end - self._done == self._chunk and self._prefixes.wants(prompt, end):
            part = steps.part_of(self._row, np.int32(self._done), self._chunk)
            self._prefixes.keep(prompt, end, part)
