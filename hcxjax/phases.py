"""A run whose batches change on the way: longer rows, other rates, another rotary base for its last part."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from hcxjax.checks import whole
from hcxjax.protocols import Evaluator, Objective, Params, PyTree, Source


@dataclasses.dataclass(frozen=True)
class Phase:
    """What is trained on, and measured, from a point of the run on; parameters and optimizer go on as they are.

    Source: HyperCLOVA X, arXiv:2404.01954, section 2: 90 % of training at 4,096 tokens of context, the rest at 32,768.

    Attributes:
      start: share of the run's updates that lie before it.
      objective, source: take the place of the experiment's. Parameters must have the same shapes.
      evaluators: take the place of the experiment's.
      accumulate: microbatches a batch is divided into.
    """

    start: float
    objective: Objective
    source: Source
    evaluators: tuple[Evaluator, ...] = ()
    accumulate: int = 1

    def __post_init__(self):
        whole(self, 1, "accumulate")
        for evaluator in self.evaluators:
            whole(evaluator, 1, "every")


@dataclasses.dataclass(frozen=True)
class Phases:
    """The phases of a run of `steps` updates in their order; the first starts at 0."""

    phases: Sequence[Phase]
    steps: int

    def __post_init__(self):
        starts = [phase.start for phase in self.phases]
        if starts[0] != 0 or sorted(set(starts)) != starts or starts[-1] >= 1:
            raise ValueError(
                f"Experiment.phases start at {starts[1:]}; Phase.start must rise, and lie above 0 and below 1"
            )
        begins = [self.begin(phase) for phase in self.phases] + [self.steps]
        if any(begin >= end for begin, end in itertools.pairwise(begins)):
            raise ValueError(
                f"Experiment.phases start at {starts[1:]} of {self.steps} updates, which leaves a phase none; "
                "set STEPS higher or Phase.start further apart"
            )

    def begin(self, phase: Phase) -> int:
        """Updates before the first of `phase`."""
        return round(phase.start * self.steps)

    def at(self, step: int) -> Phase:
        """The phase of update `step`, from 1; of 0, the first."""
        return [phase for phase in self.phases if self.begin(phase) < max(1, step)][-1]

    def start(self, layout: Any, params: Params) -> None:
        """Starts every source, once it knows what the phases before it take."""
        for phase in self.phases:
            self.introduce(phase.source, phase)
            phase.source.start(layout, params)

    def introduce(self, source: Source, phase: Phase) -> None:
        """Tells `source`, which is that of `phase`, what the phases before it take (`Source.follow`)."""
        begins = [*map(self.begin, self.phases), self.steps]
        for earlier, (begin, end) in zip(self.phases, itertools.pairwise(begins), strict=True):
            if begin < self.begin(phase):
                source.follow(earlier.source, end - begin)

    def next(self, params: Params, step: int) -> Mapping:
        """The batch of update `step`: sources count from their phase's beginning."""
        phase = self.at(step)
        return phase.source.next(params, step - 1 - self.begin(phase))

    def get_state(self) -> PyTree:
        """The source's state; where there are several phases, that of each and where it begins."""
        states = [phase.source.get_state() for phase in self.phases]
        if len(states) == 1:
            return states[0]
        begins = {f"begin_{number}": self.begin(phase) for number, phase in enumerate(self.phases)}
        return {f"phase_{number}": state for number, state in enumerate(states)} | begins

    def set_state(self, state: PyTree, step: int) -> None:
        """Hands each source what `get_state` took from it, after update `step`.

        Raises:
          ValueError: a phase that has begun would begin at another update, or the other way round.
        """
        for number, phase in enumerate(self.phases):
            if len(self.phases) > 1:
                then, now = int(state[f"begin_{number}"]), self.begin(phase)
                if then != now and min(then, now) < step:
                    raise ValueError(
                        f"phase {number} of the run began after update {then}, and would now after {now}, but the run "
                        f"is at {step}; set STEPS and Phase.start back"
                    )
            phase.source.set_state(state[f"phase_{number}"] if len(self.phases) > 1 else state)
