"""Where numbers of a run go: progress bar, JSON lines, TensorBoard, MLflow, behind one interface; and the clock."""

import collections
import dataclasses
import json
import logging
import math
import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import jax

from hcxjax import chips

_log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Takes numbers by step."""

    def start(self, run_dir: Path, first: int, last: int) -> None:
        """`first` is the step a run goes on from (0: anew); what was logged of later steps is dropped."""
        ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """`metrics.jsonl`: one object a line, with `step`."""

    def start(self, run_dir: Path, first: int, last: int) -> None:
        path = run_dir / "metrics.jsonl"
        kept = [line for line in _whole_lines(path) if first and json.loads(line)["step"] <= first]
        rewritten = path.with_suffix(".partial")
        rewritten.write_text("".join(kept))
        rewritten.replace(path)
        self._file = path.open("a", buffering=1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        known = {name: value if math.isfinite(value) else None for name, value in metrics.items()}  # JSON has no NaN
        self._file.write(json.dumps({"step": step, **known}) + "\n")

    def close(self) -> None:
        self._file.close()


def _whole_lines(path: Path) -> Iterator[str]:
    """Lines of a file whose writer may have been killed inside the last one."""
    if path.exists():
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                yield line


class TensorBoard:
    """TensorBoard events in `tensorboard/`, through tensorboardX, which needs no TensorFlow."""

    def start(self, run_dir: Path, first: int, last: int) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first + 1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


@dataclasses.dataclass
class MLflow:
    """An MLflow run, named by the run's folder; resumed with it.

    Attributes:
      uri: the tracking store; None is an sqlite file beside the run's folder.
      experiment: name of the MLflow experiment.
    """

    uri: str | None = None
    experiment: str = "hcxjax"

    def start(self, run_dir: Path, first: int, last: int) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise ValueError("the tracker MLflow needs the package mlflow: pip install -e '.[mlflow]'") from error
        self._mlflow = mlflow
        mlflow.set_tracking_uri(self.uri or f"sqlite:///{run_dir.absolute().parent / 'mlflow.db'}")
        mlflow.set_experiment(self.experiment)
        mark = run_dir / "mlflow_run_id"
        known = mark.read_text() if first and mark.exists() else None
        run = mlflow.start_run(run_id=known, run_name=None if known else run_dir.name)
        mark.write_text(run.info.run_id)
        config = run_dir / "config.gin"
        if config.exists() and not known:
            mlflow.log_artifact(str(config))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(metrics), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


class ProgressBar:
    """A line on standard error: step, loss, tokens/s, time left; other results above it."""

    def start(self, run_dir: Path, first: int, last: int) -> None:
        from tqdm import tqdm

        interval = 0.5 if sys.stderr.isatty() else 20.0
        self._bar = tqdm(
            total=last, initial=first, unit="step", desc=run_dir.name, mininterval=interval, dynamic_ncols=True
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if "train/loss" in metrics:
            shown = {"loss": f"{metrics['train/loss']:.4f}", "tok/s": f"{metrics['speed/tokens_per_s']:,.0f}"}
            if "speed/mfu" in metrics:
                shown["mfu"] = f"{metrics['speed/mfu']:.1%}"
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(step - self._bar.n)
        else:
            numbers = "  ".join(
                f"{name} {value:.4g}" for name, value in metrics.items() if not name.startswith("time/")
            )
            self._bar.write(f"step {step}: {numbers}", file=sys.stderr)

    def close(self) -> None:
        self._bar.close()


class Trace:
    """Profiles updates `first` to `last` into `profile/` of the run, for TensorBoard's profiler.

    Args:
      updates: (first, last), or None for no profile.
    """

    def __init__(self, run_dir: Path, updates: tuple[int, int] | None):
        self._folder, self._updates, self._running = run_dir / "profile", updates, False

    def before(self, step: int) -> None:
        """An update is about to be dispatched."""
        if self._updates is not None and step == self._updates[0]:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def due(self, step: int) -> bool:
        """Does the trace end with this update?"""
        return self._running and self._updates is not None and step >= self._updates[1]

    def stop(self) -> None:
        """Writes the trace, if one is running."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False


class Clock:
    """Throughput over the last updates, and goodput over the whole process.

    Goodput is the share of the process's time that went into updates: what is left is start-up, compilation,
    evaluation and waiting for checkpoints.
    """

    def __init__(self, window: int = 20):
        self._begin = self._mark = time.monotonic()
        self._updating, self._updates = 0.0, 0
        self._recent: collections.deque[tuple[float, float]] = collections.deque(maxlen=window)

    def rest(self) -> None:
        """The time until now belongs to no update."""
        self._mark = time.monotonic()

    def update_done(self, tokens: float) -> None:
        """An update has ended that began at the end of the last one, or at `rest`."""
        now = time.monotonic()
        self._updates += 1
        if self._updates == 2:
            self._recent.clear()  # the first update is mostly compilation: it is told once and counts no further
        if self._updates > 1:
            self._updating += now - self._mark
        self._recent.append((now - self._mark, tokens))
        self._mark = now

    def metrics(self, flops: float) -> dict[str, float]:
        """Throughput, goodput and memory now; `flops` is model FLOPs of one update."""
        seconds = sum(spent for spent, _ in self._recent)
        numbers = {
            "speed/tokens_per_s": sum(tokens for _, tokens in self._recent) / seconds,
            "speed/step_s": seconds / len(self._recent),
            "speed/goodput": self._updating / (time.monotonic() - self._begin),
            "memory/peak_bytes": float(peak_memory()),
        }
        peak = peak_flops()
        if peak is not None:
            numbers["speed/mfu"] = flops * len(self._recent) / seconds / (peak * jax.device_count())
        return numbers


def peak_flops() -> float | None:
    """Dense bf16 FLOP/s of one of the devices in use; None where the chip is not known."""
    return chips.peak_flops(jax.devices()[0].device_kind)


def peak_memory() -> int:
    """Most bytes held so far: of the fullest local device, or on CPU of the process."""
    if jax.default_backend() == "cpu":
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return max(device.memory_stats()["peak_bytes_in_use"] for device in jax.local_devices())


def quiet_libraries() -> None:
    """Lowers the voice of libraries that log at every step; a run's own messages stay."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for name in ("absl", "orbax", "tensorflow", "jax"):
        logging.getLogger(name).setLevel(logging.ERROR)
