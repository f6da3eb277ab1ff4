"""Our side of `python -m tools.bench ppo`: the trainer's own loop, with a reward model and its card."""

import contextlib
import dataclasses
import itertools
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hcxjax.checkpoint import CheckpointFolder, KeepPolicy
from hcxjax.convert.model import load
from hcxjax.data.rollouts.source import Rollouts
from hcxjax.inference.engine import Engine, EngineSettings
from hcxjax.inference.requests import Delta
from hcxjax.mesh import Layout, unbox
from hcxjax.models.config import DecoderConfig
from hcxjax.models.decoder import Decoder, apply
from hcxjax.models.scalar import init_scalar
from hcxjax.objectives.ppo import PPO
from hcxjax.objectives.reward_card import RewardCard, Scale, fingerprint
from hcxjax.objectives.unlikelihood import repeated_ngrams
from hcxjax.optim import AdamW, Linear, SpikeGuard
from hcxjax.protocols import Params
from hcxjax.train import Experiment, restore_or_init
from hcxjax.update import Recipe, compiled_update, update
from tools.bench_ppo_case import STOP, Case

SOURCE = "drawn"
ONE = Layout(data=1, devices=(0, 1))
"""The engine's device."""


class Digits:
    """A vocabulary that needs no file."""

    path = fingerprint = "digits"

    def decode(self, ids: Sequence[int], *, specials: bool = False) -> str:
        """Ids as numbers."""
        return " ".join(map(str, ids))


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A case's prompts, as `hcxjax.data.prompts.Prompts`; all of them in every rollout."""

    tokens: list[list[int]]
    length: int

    vocabulary = Digits()
    stop_ids = (STOP,)
    fingerprint = 0

    def load(self, split: str) -> "Drawn":
        """The same for every split."""
        return self

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def sources(self) -> list[str]:
        """One."""
        return [SOURCE] * len(self.tokens)

    def batch(self, update: int, size: int, seed: int) -> list[int]:
        """All, in their order."""
        return list(range(size))


class Memory:
    """A tracker that remembers what it was told of rollouts, and when, with the cores' time spent so far."""

    def __init__(self):
        self.told: list[dict[str, float]] = []
        self.engine = Spent()

    def start(self, run_dir: Path, first: int, last: int) -> None: ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keeps a rollout's."""
        if "objective/score" in metrics:
            now = {"at": time.perf_counter(), "core_s": time.process_time()}
            self.told.append(now | {"engine_s": self.engine.wall, "engine_core_s": self.engine.cores, **metrics})

    def close(self) -> None: ...


@dataclasses.dataclass
class Spent:
    """Seconds in which the engine was at work, and those of cores meanwhile, whatever they worked for."""

    wall: float = 0.0
    cores: float = 0.0

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Every round of an engine counts."""
        spent, advance = self, Engine.advance

        def counted(self: Engine) -> list[Delta]:
            began, cores = time.perf_counter(), time.process_time()
            try:
                return advance(self)
            finally:
                spent.wall += time.perf_counter() - began
                spent.cores += time.process_time() - cores

        Engine.advance = counted
        try:
            yield
        finally:
            Engine.advance = advance


def calibrated(case: Case, folder: Path) -> Case:
    """The case with weights in `folder` that stop as often as it asks."""
    model, params = weights(case, folder)
    rows = [row for row in case.prompts if not case.long_share or row[0] < case.middle]
    length = max(map(len, rows))
    tokens_BT = jnp.array([np.resize(row, length) for row in rows], jnp.int32)
    places_BT = jnp.broadcast_to(jnp.arange(length), tokens_BT.shape)
    hidden_BTD = apply(model, params, Decoder.hidden, tokens_BT, jnp.ones_like(tokens_BT), places_BT)
    drawn_VD = np.asarray(params["embed"])
    return case.calibrated(np.asarray(hidden_BTD, np.float32).reshape(-1, model.embed_dim), drawn_VD)


def weights(case: Case, folder: Path) -> tuple[DecoderConfig, Params]:
    """(sizes, parameters of the policy)."""
    with ONE.active():
        _, params = load(folder / "model", ONE)
        return DecoderConfig(**case.shape), params | {"embed": jnp.asarray(case.steered(np.asarray(params["embed"])))}


def experiment(case: Case, folder: Path, tracker: Memory, updates: int, **changes: Any) -> Experiment:
    """A run of PPO on a case; its reference and its reward model are written into `folder` first."""
    model, params = weights(case, folder)
    reward = unbox(init_scalar(model, jax.random.key(1))) | {"decoder": params}
    for name, tree in {"policy": params, "reward": reward}.items():
        if not (folder / name).exists():
            checkpoints = CheckpointFolder(folder / name / "checkpoints", KeepPolicy())
            checkpoints.save(0, {"state": {"params": tree}})
            checkpoints.close()
    card = RewardCard(0.0, 1.0, 10.0, 1, "none", 0.5, {SOURCE: Scale(0.0, 1.0, 1)}, fingerprint(reward), 0)
    card.write(str(folder / "reward"))
    objective = PPO(model, temperature=case.temperature)
    devices = min(2, jax.device_count())
    defaults: dict[str, Any] = {
        "objective": objective,
        "prompts": Drawn(case.prompts, case.prompt_tokens),
        "reward": str(folder / "reward"),
        "reference": str(folder / "policy"),
        "episodes": case.episodes,
        "new_tokens": case.new_tokens,
        "epochs": case.epochs,
        "packed": 4,
        "engine_layout": ONE,
        "settings": settings(case),
        "logged": 0,
    }
    return Experiment(
        run_dir=str(folder / f"run{time.time_ns()}"),
        steps=updates,
        seed=0,
        objective=objective,
        source=Rollouts(**defaults | changes),
        optimizer=AdamW(Linear(3e-6, updates), weight_decay=0.0, b2=0.999, epsilon=1e-5),
        layout=Layout(data=devices, devices=(0, devices)),
        save_every=updates,
        spikes=SpikeGuard(loss=False),
        trackers=(tracker,),
        init_from={"policy": str(folder / "policy"), "value": str(folder / "reward")},
    )


def settings(case: Case) -> EngineSettings:
    """Of the engine."""
    return EngineSettings(slots=case.episodes, chunk=64, prefill_tokens=64 * case.episodes, steps=8, prefix_tokens=0)


def measure(case: Case, folder: Path, **changes: Any) -> dict[str, float]:
    """Medians over the timed rollouts: each from the end of its first update to that of the next one's.

    Args:
      changes: fields of `Rollouts`.
    """
    tracker = Memory()
    # One update more: it ends the last rollout's time.
    run = experiment(case, folder, tracker, (case.warm + case.rollouts) * case.epochs + 1, **changes)
    with tracker.engine.watched():
        run.run()
    told = tracker.told[case.warm :]
    spans = [
        {name: after[name] - before[name] for name in ("at", "core_s", "engine_s", "engine_core_s")}
        for before, after in itertools.pairwise(told)
    ]
    found = {
        "episodes_per_s": case.episodes / statistics.median(span["at"] for span in spans),
        "tokens_per_s": statistics.median(
            after["rollout/length"] * case.episodes / span["at"] for after, span in zip(told[1:], spans, strict=True)
        ),
        "cores": statistics.median(span["core_s"] / span["at"] for span in spans),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    for name, metric in {
        "generate_s": "time/generate",
        "score_s": "time/score",
        "train_s": "time/train",
        "length": "rollout/length",
        "stop_rate": "rollout/stop_rate",
    }.items():
        found[name] = statistics.median(one[metric] for one in told[1:])
    if not changes:
        found["engine_cores"] = statistics.median(span["engine_core_s"] / span["engine_s"] for span in spans)
        found["other_cores"] = statistics.median(
            (span["core_s"] - span["engine_core_s"]) / (span["at"] - span["engine_s"]) for span in spans
        )
    return found


class Updates:
    """Updates of a case on its first minibatch.

    Args:
      folder: that of the case.
    """

    def __init__(self, case: Case, folder: Path):
        self._run = experiment(case, folder, Memory(), case.epochs, packed=None)
        with (
            self._run.layout.active(),
            contextlib.closing(CheckpointFolder(Path(self._run.run_dir), KeepPolicy())) as new,
        ):
            self._state, _, _ = restore_or_init(self._run, new)
            self._batch = self._run.source.next(self._state.whole, 0)

    def _recipe(self, alpha: float) -> Recipe:
        recipe = self._run.recipe(self._run.timeline.at(1))
        assert isinstance(recipe.objective, PPO)
        return dataclasses.replace(recipe, objective=dataclasses.replace(recipe.objective, unlikelihood=alpha))

    def flops(self, alpha: float) -> float:
        """Of an update with unlikelihood of weight `alpha`, as compiled."""
        with self._run.layout.active():
            return _flops(jax.jit(update, static_argnums=0).lower(self._recipe(alpha), self._state, self._batch))

    def runner(self, alpha: float) -> Callable[[], None]:
        """Makes an update with unlikelihood of weight `alpha`, and waits for it."""
        recipe, step = self._recipe(alpha), compiled_update()
        state = jax.tree.map(jnp.copy, self._state)

        def run() -> None:
            nonlocal state
            with self._run.layout.active():
                state, metrics = step(recipe, state, self._batch)
                jax.block_until_ready((state, metrics))

        return run

    def marking(self) -> tuple[float, float]:
        """(FLOPs, seconds) of finding what is repeated, once a rollout."""
        mark = jax.jit(repeated_ngrams, static_argnums=2)
        given = (self._batch["targets_BT"], self._batch["mask_BT"] > 0, 4)
        mark(*given).block_until_ready()
        began = time.perf_counter()
        mark(*given).block_until_ready()
        return _flops(mark.lower(*given)), time.perf_counter() - began


def _flops(lowered: jax.stages.Lowered) -> float:
    counted = lowered.compile().cost_analysis()
    assert isinstance(counted, dict)
    return counted["flops"]
