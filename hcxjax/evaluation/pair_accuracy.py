"""How often the preferred answer scores higher, beside what a model that understands nothing reaches."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import jax
import numpy as np

from hcxjax.checks import whole
from hcxjax.evaluation.intervals import share_between
from hcxjax.evaluation.preference_floors import Bigrams, Pair, lengths, preferred
from hcxjax.mesh import Layout
from hcxjax.protocols import Array, Batch, Params
from hcxjax.shapes import suffix

_log = logging.getLogger(__name__)

NEAR = 0.1
"""Answers are of like length where they differ by at most this share of the longer one."""
HostBatch = dict[str, np.ndarray]


class Rewarding(Protocol):
    """An objective that gives every text of a batch a number, `reward_BK`; of two that are compared the higher wins."""

    def rewards(self, params: Params, batch: Batch) -> Array: ...


class Reader(Protocol):
    """What gives comparisons; `hcxjax.data.comparisons.HeldOutComparisons` is one."""

    def load(self, layout: Layout) -> Mapping[str, list[HostBatch]]: ...
    def learnt(self, most: int) -> Iterator[Pair]: ...


@functools.lru_cache(maxsize=4)
def compiled_rewards(objective: Rewarding, layout: Layout) -> Callable[[Params, Batch], Array]:
    """`objective.rewards` compiled, once for all evaluators."""
    return jax.jit(objective.rewards, out_shardings=layout.sharding())


class PairScorer:
    """Rewards of host batches of comparisons, fetched whole to every process.

    Args:
      objective: whose rewards; a batch's shape is compiled once.
      layout: where the parameters are.
    """

    def __init__(self, objective: Rewarding, layout: Layout):
        self._layout = layout
        self._rewards = compiled_rewards(objective, layout)

    def __call__(self, params: Params, rows: HostBatch) -> np.ndarray:
        """reward_BK of the batch."""
        count = len(rows["start_B"])
        batch = self._layout.shard_batch(lambda start, stop: {k: v[start:stop] for k, v in rows.items()}, count)
        return np.asarray(jax.device_get(self._rewards(params, batch)), np.float64)

    def differences(self, params: Params, rows: HostBatch) -> np.ndarray:
        """The reward of the chosen text less that of the rejected, of each comparison in the order of `compared`."""
        return _gains(rows, self(params, rows))


@dataclasses.dataclass
class PairAccuracy:
    """The share of held-out comparisons that rewards put right; equal rewards count half.

    Comparisons of a prompt are no independent trials, least of all where rows hold more than two texts: an answer that
    is scored too high is then wrong in several of them. The interval counts on that, by prompt (`share_between`), so
    that many comparisons of few prompts leave it wide.

    Attributes:
      objective: whose rewards are measured.
      held_out: gives the comparisons.
      every: updates between measurements.
      learnt: comparisons of each source that the bag of bigrams learns from, those that the run is trained on; 0 leaves
        that floor out.
    """

    objective: Rewarding
    held_out: Reader
    every: int
    learnt: int = 5000

    def __post_init__(self):
        whole(self, 1, "every")
        whole(self, 0, "learnt")

    def start(self, layout: Layout, run_dir: str) -> None:
        """Reads the comparisons, rendering them on first use, and finds the floors."""
        self._sources = self.held_out.load(layout)
        self._scorer = PairScorer(self.objective, layout)
        pairs = [pair for batches in self._sources.values() for rows in batches for pair in answers_of(rows)]
        tokens = lengths(pairs)
        self._near = np.abs(tokens[:, 0] - tokens[:, 1]) <= NEAR * tokens.max(axis=1)
        self._prompts = np.concatenate([prompts_of(rows) for _, rows in self._numbered()])
        self._source = np.concatenate([np.full(len(prompts_of(rows)), number) for number, rows in self._numbered()])
        self._prompts += self._source << 32
        shorter = preferred(tokens[:, 1] - tokens[:, 0])
        self._floors = {"shorter": shorter, "longer": 1 - shorter}
        if self.learnt:
            bigrams = Bigrams(self.held_out.learnt(self.learnt))
            self._floors["bigrams"] = preferred(bigrams.differences(pairs))
        margins = np.concatenate([rows["margin_BKK"][compared(rows)] for _, rows in self._numbered()], dtype=np.float64)
        # Where margins are below 0, the preferred answers were drawn with noise by a judge who is known.
        self._judged = float(preferred(margins).mean()) if np.any(margins < 0) else None

    def _numbered(self) -> Iterator[tuple[int, HostBatch]]:
        """Every batch with the number of its source."""
        for number, batches in enumerate(self._sources.values()):
            yield from ((number, rows) for rows in batches)

    def evaluate(self, params: Params, step: int) -> dict[str, float]:
        """`eval/preference/accuracy`, its 95 % interval `.../low` and `.../high`, and what it compares with.

        `.../loss` is Bradley-Terry's. `.../floor/NAME` is the accuracy of chance, of the shorter and of the longer
        answer and of a bag of bigrams; `.../floor/margins`, where margins say what the judge thought who preferred with
        noise, is that judge's own: a ceiling. `.../like_length/...` are those of comparisons whose lengths are alike,
        and how many there are; `.../same_in_both_orders` is the share that is judged alike with the texts in reverse.
        Accuracy and floors of a source are below `.../NAME`.
        """
        both = [self._differences(params, batches) for batches in self._sources.values()]
        forward, backward = (np.concatenate(parts) for parts in zip(*both, strict=True))
        right = preferred(forward)
        results = self._shares(right, np.full(len(right), True))
        results["loss"] = float(np.mean(np.logaddexp(0, -forward)))
        results["same_in_both_orders"] = float(np.mean(np.sign(forward) == np.sign(backward)))
        results["floor/chance"] = 0.5
        if self._judged is not None:
            results["floor/margins"] = self._judged
        results["like_length/count"] = float(self._near.sum())
        if np.any(self._near):
            near = self._shares(right, self._near)
            results |= {f"like_length/{name}": near[name] for name in ("accuracy", "low", "high")}
        for number, name in enumerate(self._sources):
            own = self._shares(right, self._source == number)
            results |= {f"{name}/{what}": value for what, value in own.items()}
        if jax.process_index() == 0:
            floors = ", ".join(f"{name} {results[f'floor/{name}']:.3f}" for name in ("chance", *self._floors))
            numbers = [results[name] for name in ("accuracy", "low", "high")]
            _log.info(
                "step %d: %.3f (%.3f to %.3f) of %d held-out comparisons of %d prompts put right; floors: %s",
                *(step, *numbers, len(right), len(np.unique(self._prompts)), floors),
            )
        return {f"eval/preference/{name}": value for name, value in results.items()}

    def _shares(self, right: np.ndarray, here: np.ndarray) -> dict[str, float]:
        """Accuracy with its interval, and the floors, of some of the comparisons."""
        named = zip(("accuracy", "low", "high"), share_between(right[here], self._prompts[here]), strict=True)
        return dict(named) | {f"floor/{name}": float(found[here].mean()) for name, found in self._floors.items()}

    def _differences(self, params: Params, batches: list[HostBatch]) -> tuple[np.ndarray, np.ndarray]:
        """Reward of the chosen answer less that of the rejected, and the same with the texts of each row in reverse."""
        forward = [self._scorer.differences(params, rows) for rows in batches]
        backward = [_gains(rows, self._scorer(params, swapped(rows))[:, ::-1]) for rows in batches]
        return np.concatenate(forward), np.concatenate(backward)


def compared(rows: HostBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, chosen text, rejected text) of each comparison of a batch."""
    row, chosen, rejected = np.nonzero(rows["preferred_BKK"])
    return row, chosen, rejected


def swapped(rows: HostBatch) -> HostBatch:
    """The same comparisons with the texts of each row in reverse: of two, each in the other's place."""

    def axes(name: str) -> tuple[int, ...]:
        return tuple(axis for axis, letter in enumerate(suffix(name) or "") if letter == "K")

    return {name: np.flip(value, axes(name)) for name, value in rows.items()}


def answers_of(rows: HostBatch) -> Iterator[Pair]:
    """Tokens of both answers of each comparison, what ends them included."""
    for row, *both in zip(*compared(rows), strict=True):
        chosen, rejected = (
            rows["tokens_BKT"][row, text, rows["start_B"][row] : rows["end_BK"][row, text] + 1] for text in both
        )
        yield chosen, rejected


def prompts_of(rows: HostBatch) -> np.ndarray:
    """A number of each comparison's prompt, int64."""
    return rows["prompt_B"][compared(rows)[0]].astype(np.int64)


def _gains(rows: HostBatch, reward_BK: np.ndarray) -> np.ndarray:
    row, chosen, rejected = compared(rows)
    return reward_BK[row, chosen] - reward_BK[row, rejected]
