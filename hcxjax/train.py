"""The one loop: state, restore, update, log, evaluate, save. No stage is named here."""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from hcxjax import peers
from hcxjax.checkpoint import CheckpointFolder, KeepPolicy
from hcxjax.checks import whole
from hcxjax.mesh import Layout
from hcxjax.optim import Optimizer, SpikeGuard
from hcxjax.partition import by_path, checked_prefixes, fingerprint
from hcxjax.peers import TimeLimits
from hcxjax.phases import Phase, Phases
from hcxjax.preemption import Preempted, preemption
from hcxjax.protocols import VETO, Array, Evaluator, Maximum, Mean, Objective, Params, Partial, PyTree, Source
from hcxjax.tracking import Clock, Trace, Tracker
from hcxjax.update import Recipe, TrainState, abstract_state, compiled_update, initial_state
from hcxjax.warm_start import WarmStart

_log = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """The run cannot go on; the message says why and where its last checkpoint is."""


@dataclasses.dataclass(frozen=True)
class Watch:
    """A metric that decides: the best checkpoint, or when to stop.

    Attributes:
      metric: its name in `metrics.jsonl`, such as 'eval/bits_per_byte'.
      lower_is_better: direction.
      patience: evaluations in a row without a new best after which the run stops; None never stops.
    """

    metric: str
    lower_is_better: bool = True
    patience: int | None = None

    def score(self, metrics: Mapping[str, float]) -> float:
        """Higher is better. ValueError names the metrics there are."""
        if self.metric not in metrics:
            raise ValueError(f"Watch.metric is {self.metric!r}; the evaluators give {', '.join(sorted(metrics))}")
        return -metrics[self.metric] if self.lower_is_better else metrics[self.metric]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All that a run is made of; every field is set in gin.

    Attributes:
      run_dir: the run's folder.
      steps: updates in all.
      seed: of parameters and of every random choice of the objective.
      objective, source, optimizer, layout: what is minimised, on which batches, how, on which mesh.
      accumulate: microbatches a batch is divided into; gradients are summed over them before they are divided once.
      save_every: updates between checkpoints; the last step is always saved.
      keep: which checkpoints stay.
      watch: decides the best checkpoint and early stopping; None keeps the newest only.
      spikes: skips updates whose loss or gradient jumps.
      evaluators, trackers: measured and told along the way.
      phases: what later parts of the run train on instead; none keeps everything as it is to the end.
      profile: (first, last) update to trace for TensorBoard's profiler, into `profile/`; None traces nothing.
      init_from: where the first parameters come from: the RUN_DIR of another run (its newest checkpoint, or
        FOLDER@STEP) or the folder of an imported model; or such a folder for each prefix of paths in the parameters.
        None: they are drawn. Read once, where the run has no checkpoint of its own.
      fresh: prefixes of paths in the parameters that are drawn nevertheless; every other leaf must be there.
      trainable: prefixes of paths in the parameters that train. The others stay as `init_from` gives them, and are read
        from there at every start: checkpoints leave them out. None: what the objective says, and all where it says
        nothing.
      limits: how long several processes wait for each other.
    """

    run_dir: str
    steps: int
    seed: int
    objective: Objective
    source: Source
    optimizer: Optimizer
    layout: Layout
    save_every: int
    accumulate: int = 1
    keep: KeepPolicy = KeepPolicy()
    watch: Watch | None = None
    spikes: SpikeGuard = SpikeGuard()
    evaluators: tuple[Evaluator, ...] = ()
    trackers: tuple[Tracker, ...] = ()
    phases: tuple[Phase, ...] = ()
    profile: tuple[int, int] | None = None
    init_from: str | Mapping[str, str] | None = None
    fresh: tuple[str, ...] = ()
    trainable: tuple[str, ...] | None = None
    limits: TimeLimits = TimeLimits()

    def __post_init__(self):
        whole(self, 1, "steps", "save_every", "accumulate")
        whole(self, 0, "seed")
        if not isinstance(self.run_dir, str) or not self.run_dir:
            raise ValueError(f"Experiment.run_dir is {self.run_dir!r}; it must name a folder (RUN_DIR)")
        if self.profile is not None and not 1 <= self.profile[0] <= self.profile[1]:
            raise ValueError(
                f"Experiment.profile is {self.profile}; it must be (first, last) update, 1 <= first <= last"
            )
        if self.init_from is None and self.fresh:
            raise ValueError(
                f"Experiment.fresh is {self.fresh}, but all parameters start anew, because Experiment.init_from "
                "(INIT_FROM) is None"
            )
        _ = self.timeline, self.warm_start
        if self.trains is not None and self.init_from is None:
            raise ValueError(
                f"only {', '.join(self.trains)} of the parameters train (Experiment.trainable, or the objective says "
                "so), but Experiment.init_from (INIT_FROM) is None: the others must come from somewhere"
            )

    @property
    def timeline(self) -> Phases:
        """The run's phases; its own fields are the first."""
        first = Phase(0.0, self.objective, self.source, self.evaluators, self.accumulate)
        return Phases((first, *self.phases), self.steps)

    @property
    def warm_start(self) -> WarmStart | None:
        """Where the first parameters come from; None draws them."""
        return None if self.init_from is None else WarmStart.parse(self.init_from, self.fresh)

    @property
    def trains(self) -> tuple[str, ...] | None:
        """Prefixes of the parameters that train; None: all do."""
        if self.trainable is not None:
            return checked_prefixes("Experiment.trainable", self.trainable)
        return self.objective.trainable if isinstance(self.objective, Partial) else None

    def recipe(self, phase: Phase) -> Recipe:
        """The static part of an update."""
        return Recipe(phase.objective, self.optimizer, self.spikes, phase.accumulate, self.seed, self.trains)

    def run(self) -> bool:
        """Trains until `steps`, early stopping or SIGTERM; True where the run is complete."""
        return train(self)


@dataclasses.dataclass
class Progress:
    """What the host remembers beside the state: saved with it.

    Attributes:
      best, since_best: of the watched metric.
      frozen: fingerprint of the parameters that do not train; None where all do.
    """

    best: float = -math.inf
    since_best: int = 0
    frozen: int | None = None

    def tree(self) -> dict[str, np.ndarray]:
        """As checkpoint leaves."""
        known = {} if self.frozen is None else {"frozen": np.asarray(self.frozen, np.int64)}
        return {"best": np.asarray(self.best, np.float64), "since_best": np.asarray(self.since_best, np.int64), **known}

    @classmethod
    def of(cls, tree: Mapping[str, np.ndarray]) -> "Progress":
        """From checkpoint leaves."""
        return cls(float(tree["best"]), int(tree["since_best"]), int(tree["frozen"]) if "frozen" in tree else None)

    def note(self, watch: Watch | None, results: Mapping[str, float]) -> tuple[float | None, bool]:
        """(score of these results, is it a new best); None without a watch, or where its metric was not due."""
        if watch is None or watch.metric not in results:
            return None, False
        score = watch.score(results)
        better = score > self.best
        self.best, self.since_best = (score, 0) if better else (self.best, self.since_best + 1)
        return score, better

    def patience_over(self, watch: Watch | None) -> bool:
        """Is it time to stop early?"""
        return watch is not None and watch.patience is not None and self.since_best >= watch.patience


def train(experiment: Experiment) -> bool:
    """Runs `experiment` from its newest checkpoint, or anew; True where it is complete, False where SIGTERM ended it.

    Raises:
      ValueError: a part of the configuration cannot be.
      TrainingError: the loss or gradient is no longer finite, or too many updates in a row were skipped.
      CheckpointError: a checkpoint could not be written or read.
    """
    with experiment.layout.active(), preemption() as preempted, contextlib.ExitStack() as open_parts:
        open_parts.callback(peers.at, "its end")
        place, limits = Path(experiment.run_dir) / "checkpoints", experiment.limits
        folder = CheckpointFolder(place, experiment.keep, save_s=limits.save_s)
        open_parts.callback(folder.close)
        phases = experiment.timeline
        for phase in phases.phases:
            open_parts.callback(phase.source.close)
        state, progress, start = restore_or_init(experiment, folder)
        log = open_parts.enter_context(UpdateLog(experiment, start))
        trace = Trace(Path(experiment.run_dir), experiment.profile)
        open_parts.callback(trace.stop)
        for phase in phases.phases:
            for evaluator in phase.evaluators:
                evaluator.start(experiment.layout, experiment.run_dir)
        if start == 0:
            peers.at("the evaluation before step 1", limits.step_s)
            results = evaluate(phases.at(0), state.whole, 0)
            if experiment.watch is not None:
                experiment.watch.score(results)  # a metric that no evaluator gives is a mistake to find now
            log.tell(0, results)
        return _loop(experiment, folder, state, progress, start, log, trace, preempted)


def _loop(
    experiment: Experiment,
    folder: CheckpointFolder,
    state: TrainState,
    progress: Progress,
    start: int,
    log: "UpdateLog",
    trace: Trace,
    preempted: Preempted,
) -> bool:
    compiled = compiled_update()
    if progress.patience_over(experiment.watch):
        return True
    log.rest()
    phases, limits = experiment.timeline, experiment.limits
    for step in range(start + 1, experiment.steps + 1):
        trace.before(step)
        phase = phases.at(step)
        peers.at(f"the batch of step {step}", limits.step_s)
        batch = phases.next(state.whole, step)
        experiment.layout.check_batch(len(next(iter(batch.values()))), phase.accumulate)
        peers.at(f"update {step}", limits.step_s)
        state, metrics = compiled(experiment.recipe(phase), state, batch)
        log.push(step, metrics, phase.objective.flops(batch), phase.source.measures())
        if trace.due(step):
            log.flush()  # waits for the update, which is dispatched and not done
            trace.stop()
        folder.check()

        last, stopped = step == experiment.steps, preempted(step)
        score, better = None, False
        if last or any(step % evaluator.every == 0 for evaluator in phase.evaluators):
            log.flush()
            peers.at(f"the evaluation after step {step}", limits.step_s)
            results = evaluate(phase, state.whole, step, everything=last)
            log.tell(step, results)
            score, better = progress.note(experiment.watch, results)
            last |= progress.patience_over(experiment.watch)
        if step % experiment.save_every == 0 or last or stopped or better:
            log.flush()
            peers.at(f"checkpoint {step}", 2 * limits.save_s)  # it may wait for the one before
            folder.save(step, checkpoint_tree(experiment, state, progress), score)
        if last or stopped:
            folder.wait()
            how = "complete" if step == experiment.steps else "stopped early" if last else "ended by SIGTERM"
            _log.info("%s at step %d, saved in %s", how, step, folder.directory)
            return last
        log.rest()
    return True


def restore_or_init(experiment: Experiment, folder: CheckpointFolder) -> tuple[TrainState, Progress, int]:
    """(state, progress, step) of the newest whole checkpoint, or new ones and 0."""
    phases = experiment.timeline
    recipe = experiment.recipe(phases.at(0))
    abstract = abstract_state(recipe, experiment.layout)
    warm_start, frozen = experiment.warm_start, by_path(abstract.frozen)
    if warm_start is not None:
        warm_start.check_frozen(frozen)
    phases.start(experiment.layout, abstract.whole)
    progress = Progress(frozen=0 if frozen else None)
    template = {"state": abstract.saved(), "source": _host_arrays(phases.get_state()), "progress": progress.tree()}
    restored = folder.restore_latest(template)
    if restored is None:
        state = _first_state(experiment, recipe, abstract)
        return state, Progress(frozen=fingerprint(state.frozen) if frozen else None), 0
    step, tree = restored
    phases.set_state(jax.tree.map(_host_value, tree["source"]), step)
    progress, known = Progress.of(tree["progress"]), {}
    if warm_start is not None and progress.frozen is not None:
        known = warm_start.read_again(abstract.whole, frozen, progress.frozen)
    _log.info("going on from step %d", step)
    return TrainState(**tree["state"], frozen=known), progress, step


def _first_state(experiment: Experiment, recipe: Recipe, abstract: TrainState) -> TrainState:
    """The state before the first update."""
    warm_start = experiment.warm_start
    if warm_start is None:
        return initial_state(recipe, abstract)
    for folder in warm_start.folders:
        for phase in experiment.timeline.phases:
            phase.source.begin_from(folder)
    return initial_state(recipe, abstract, lambda: warm_start.read(abstract.whole))


def checkpoint_tree(experiment: Experiment, state: TrainState, progress: Progress) -> PyTree:
    """All that a run needs to go on as if it had not stopped."""
    source = _host_arrays(experiment.timeline.get_state())
    return {"state": state.saved(), "source": source, "progress": progress.tree()}


def _host_arrays(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf), tree)


def _host_value(leaf: Array | np.ndarray) -> Array | np.ndarray | int:
    return leaf.item() if isinstance(leaf, np.ndarray) and leaf.ndim == 0 else leaf


def evaluate(phase: Phase, params: Params, step: int, everything: bool = True) -> dict[str, float]:
    """Results of the phase's evaluators that are due at `step`, or of all."""
    results: dict[str, float] = {}
    for evaluator in phase.evaluators:
        if everything or step % evaluator.every == 0:
            results |= evaluator.evaluate(params, step)
    return results


class UpdateLog:
    """Tells the trackers of updates, each one after the next has been dispatched, so that the device never waits."""

    def __init__(self, experiment: Experiment, start: int):
        self._experiment = experiment
        self._start = start
        self._clock = Clock()
        self._pending: tuple[int, Mapping[str, Mean | Maximum], float, Mapping[str, float]] | None = None
        self._trackers = experiment.trackers if jax.process_index() == 0 else ()

    def __enter__(self) -> "UpdateLog":
        for tracker in self._trackers:
            tracker.start(Path(self._experiment.run_dir), self._start, self._experiment.steps)
        return self

    def __exit__(self, *_: object) -> None:
        for tracker in self._trackers:
            tracker.close()

    def push(
        self, step: int, metrics: Mapping[str, Mean | Maximum], flops: float, measures: Mapping[str, float]
    ) -> None:
        """Takes the metrics of an update that was just dispatched, and tells of the one before.

        Args:
          measures: what the source says of its batch, told as it is.
        """
        self.flush()
        self._pending = (step, metrics, flops, measures)

    def flush(self) -> None:
        """Waits for the update that was pushed last and tells of it. TrainingError if it cannot go on."""
        if self._pending is None:
            return
        (step, metrics, flops, measures), self._pending = self._pending, None
        fetched = jax.device_get(metrics).items()
        values = {name: _value(metric) for name, metric in fetched if not _empty(metric)}
        if limits := _vetoes(values):
            told = ", ".join(f"{name} {value:.4g}" for name, value in sorted(values.items()))
            _log.warning(
                "step %d: the batch was beyond the objective's %s; it was skipped, which left all as it was: %s",
                step,
                limits,
                told,
            )
        self._clock.update_done(values["weight"])
        named = {f"train/{name}": value for name, value in values.items()}
        self.tell(step, named | self._clock.metrics(flops) | dict(measures))
        self._check(step, values)

    def rest(self) -> None:
        """What was done since the last flush, if anything, was no update."""
        if self._pending is None:
            self._clock.rest()

    def tell(self, step: int, metrics: Mapping[str, float]) -> None:
        """Passes numbers on as they are."""
        if metrics:
            for tracker in self._trackers:
                tracker.log(step, metrics)

    def _check(self, step: int, values: Mapping[str, float]) -> None:
        experiment = self._experiment
        where = f"its checkpoints are in {experiment.run_dir}/checkpoints"
        if not (math.isfinite(values["objective"]) and math.isfinite(values["grad_norm"])):
            raise TrainingError(
                f"step {step}: the loss is {values['objective']} and the gradient norm {values['grad_norm']}; "
                f"the update was not applied and the run stops, {where}. A lower learning rate (LEARNING_RATE), "
                "a longer warm-up or float32 (DecoderConfig.dtype) usually helps"
            )
        if values["skipped_in_a_row"] >= experiment.spikes.patience:
            limits = _vetoes(values)
            cause = f"the last was beyond the objective's {limits}" if limits else "for spikes of the loss or gradient"
            raise TrainingError(
                f"step {step}: {values['skipped_in_a_row']:.0f} updates in a row were skipped, {cause}; "
                f"SpikeGuard.patience is {experiment.spikes.patience}; {where}"
            )


def _vetoes(values: Mapping[str, float]) -> str:
    """Fields of the objective whose limits a batch was beyond; empty: none asked to skip it."""
    return ", ".join(name.removeprefix(VETO) for name, value in values.items() if name.startswith(VETO) and value > 0)


def _empty(metric: Mean | Maximum) -> bool:
    """Did the batch hold nothing of it, such as no row of a source?"""
    return isinstance(metric, Mean) and not metric.weight


def _value(metric: Mean | Maximum) -> float:
    return float(metric.value) if isinstance(metric, Maximum) else float(metric.sum) / float(metric.weight)
