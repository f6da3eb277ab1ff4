"""Learning-rate schedules, AdamW, and the guard against spikes; optax only here."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from hcxjax.checks import number, whole
from hcxjax.protocols import Array, PyTree

Schedule = Callable[[ArrayLike], ArrayLike]


class Optimizer(Protocol):
    """What the loop asks of an optimizer."""

    def transformation(self) -> optax.GradientTransformation: ...

    def learning_rate(self, step: Array) -> Array: ...


def _check_schedule(schedule: "Cosine | WarmupStableDecay | Linear") -> None:
    name = type(schedule).__name__
    number(schedule, "peak", "final_share")
    whole(schedule, 1, "steps")
    whole(schedule, 0, "warmup")
    if schedule.peak <= 0:
        raise ValueError(f"{name}.peak is {schedule.peak}; the highest learning rate must be positive")
    if schedule.warmup > schedule.steps:
        raise ValueError(f"{name}.warmup is {schedule.warmup}; it must lie between 0 and steps, {schedule.steps}")


@dataclasses.dataclass(frozen=True)
class Cosine:
    """Linear warm-up to `peak`, then half a cosine down to `final_share · peak` at `steps`.

    Source: Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5, without restarts. The report discloses no schedule.
    """

    peak: float
    steps: int
    warmup: int = 0
    final_share: float = 0.1

    def __post_init__(self):
        _check_schedule(self)

    def __call__(self, step: ArrayLike) -> ArrayLike:
        """Learning rate of update `step`, from 0."""
        down = optax.cosine_decay_schedule(self.peak, max(1, self.steps - self.warmup), self.final_share)
        return _warmed(self.peak, self.warmup, down)(step)


@dataclasses.dataclass(frozen=True)
class WarmupStableDecay:
    """Linear warm-up, a plateau at `peak`, and over the last `decay_share` of `steps` a line down to `final_share`.

    Source: Hu et al. 2024 (MiniCPM), arXiv:2404.06395, section 4.2; their decay is exponential, ours linear
    (Hägele et al. 2024, arXiv:2405.18392, find linear or 1-sqrt at least as good).
    """

    peak: float
    steps: int
    warmup: int = 0
    decay_share: float = 0.1
    final_share: float = 0.0

    def __post_init__(self):
        _check_schedule(self)
        number(self, "decay_share")
        if not 0 <= self.decay_share <= 1:
            raise ValueError(f"WarmupStableDecay.decay_share is {self.decay_share}; it must lie between 0 and 1")
        if self.warmup + self._decay > self.steps:
            raise ValueError(
                f"WarmupStableDecay: warmup {self.warmup} and decay {self._decay} (decay_share of steps) are more than "
                f"steps, {self.steps}"
            )

    @property
    def _decay(self) -> int:
        return max(1, round(self.steps * self.decay_share))

    def __call__(self, step: ArrayLike) -> ArrayLike:
        """Learning rate of update `step`, from 0."""
        after = self.steps - self._decay - self.warmup
        down = optax.linear_schedule(self.peak, self.final_share * self.peak, self._decay, transition_begin=after)
        return _warmed(self.peak, self.warmup, down)(step)


@dataclasses.dataclass(frozen=True)
class Linear:
    """A line from `peak` at update 0 down to `final_share · peak` at `steps`, after linear warm-up.

    Source: Huang et al. 2024 ("The N+ Implementation Details of RLHF with PPO"), arXiv:2403.17031: to 0, the same rate
    for all updates on a rollout.

    Attributes:
      hold: updates in a row that share a rate.
    """

    peak: float
    steps: int
    warmup: int = 0
    final_share: float = 0.0
    hold: int = 1

    def __post_init__(self):
        _check_schedule(self)
        whole(self, 1, "hold")

    def __call__(self, step: ArrayLike) -> ArrayLike:
        """Learning rate of update `step`, from 0."""
        down = optax.linear_schedule(self.peak, self.final_share * self.peak, max(1, self.steps - self.warmup))
        return _warmed(self.peak, self.warmup, down)(jnp.asarray(step) // self.hold * self.hold)


def _warmed(peak: float, warmup: int, then: Schedule) -> Schedule:
    """Steps count from 0 and the first must learn: warm-up climbs from peak/warmup, not from 0."""
    if not warmup:
        return then
    return optax.join_schedules([lambda step: peak * (step + 1) / warmup, then], [warmup])


@dataclasses.dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay on matrices (not on norms) and clipping by the global gradient norm.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2. The report discloses no optimizer: defaults are the
    field's usual for language models (Touvron et al. 2023, arXiv:2302.13971, section 2.3).
    """

    schedule: Schedule
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0

    def __post_init__(self):
        number(self, "b1", "b2", "epsilon", "weight_decay", "clip_norm")
        if self.clip_norm <= 0:
            raise ValueError(f"AdamW.clip_norm is {self.clip_norm}; it must be positive (float('inf') never clips)")

    def transformation(self) -> optax.GradientTransformation:
        """As an optax transformation; its state has the shapes and shardings of the parameters."""
        adamw = optax.adamw(
            self.schedule, self.b1, self.b2, self.epsilon, weight_decay=self.weight_decay, mask=_matrices
        )
        return optax.chain(optax.clip_by_global_norm(self.clip_norm), adamw)

    def learning_rate(self, step: Array) -> Array:
        """Of update `step`, from 0."""
        return jnp.asarray(self.schedule(step))


def _matrices(params: PyTree) -> PyTree:
    """True for weights that decay: all but norms, whose leaves are vectors (stacked over layers: named *norm*)."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: "norm" not in jax.tree_util.keystr(path), params)


class SpikeStatistics(NamedTuple):
    """Running mean and variance of log loss and log gradient norm; part of the train state, so a resume is exact."""

    mean_M: Array
    variance_M: Array
    count: Array

    @classmethod
    def empty(cls) -> "SpikeStatistics":
        """Before the first update."""
        return cls(jnp.zeros(2, jnp.float32), jnp.zeros(2, jnp.float32), jnp.zeros((), jnp.int32))


@dataclasses.dataclass(frozen=True)
class SpikeGuard:
    """Skips an update whose loss or gradient norm jumps far above its running statistics.

    A jump is more than `deviations` standard deviations, and more than `least_factor` times, above the running mean of
    the logarithm. Skipped updates do not enter the statistics. A loss of 0 or less, which has no logarithm,
    is taken as 1e-20.

    Attributes:
      loss: judge the loss too, not the gradient norm alone; off for a loss that changes its sign.
      deviations, least_factor: both must be exceeded.
      memory: updates that the running statistics look back on.
      warmup: updates before the guard acts.
      patience: skipped updates in a row after which the run stops.
    """

    loss: bool = True
    deviations: float = 6.0
    least_factor: float = 2.0
    memory: int = 100
    warmup: int = 100
    patience: int = 20

    def __post_init__(self):
        number(self, "deviations", "least_factor")
        whole(self, 1, "memory", "patience")
        whole(self, 0, "warmup")

    def judge(
        self, statistics: SpikeStatistics, loss: Array, norm: Array, veto: Array | bool = False
    ) -> tuple[Array, SpikeStatistics]:
        """(skip, new statistics); values that are not finite, and batches under a `veto`, are skipped too."""
        values_M = jnp.stack([loss, norm]).astype(jnp.float32)
        finite = jnp.all(jnp.isfinite(values_M))
        values_M = values_M if self.loss else jnp.stack([norm, norm]).astype(jnp.float32)
        logs_M = jnp.log(jnp.maximum(values_M, 1e-20))
        excess_M = logs_M - statistics.mean_M
        margin_M = jnp.maximum(self.deviations * jnp.sqrt(statistics.variance_M), jnp.log(self.least_factor))
        spike = (statistics.count >= self.warmup) & jnp.any(excess_M > margin_M)
        weight = 1.0 / jnp.minimum(statistics.count + 1, self.memory)
        mean_M = statistics.mean_M + weight * excess_M
        variance_M = (1 - weight) * (statistics.variance_M + weight * jnp.square(excess_M))
        skip = spike | ~finite | veto
        new = SpikeStatistics(mean_M, variance_M, statistics.count + 1)
        return skip, jax.tree.map(lambda old, fresh: jnp.where(skip, old, fresh), statistics, new)
