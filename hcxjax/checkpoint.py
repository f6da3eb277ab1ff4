"""Checkpoints of a run: written asynchronously, checksummed, never half-written; orbax only here."""

import dataclasses
import logging
import math
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from jax.experimental import multihost_utils
from orbax.checkpoint import future
from orbax.checkpoint.checkpoint_managers import preservation_policy as preservation

from hcxjax import checksums
from hcxjax.checks import whole
from hcxjax.protocols import PyTree

_log = logging.getLogger(__name__)

_ITEM = "tree"
_SLACK_S = 2  # so that those who know who is missing speak first
_UNSEALED = ("_CHECKPOINT_METADATA", "commit_success.txt")


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written, or cannot be read; the message names it and what is left."""


class CheckpointTimeoutError(CheckpointError):
    """A checkpoint that was not written in time, by this process or by another."""


@dataclasses.dataclass(frozen=True)
class KeepPolicy:
    """Which checkpoints stay on disk.

    Attributes:
      latest: this many of the newest.
      best: this many of those with the highest score.
      period: every checkpoint whose step is a multiple of this, or None.
      verify: compare files with their checksums before they are restored.
    """

    latest: int = 2
    best: int = 1
    period: int | None = None
    verify: bool = True

    def __post_init__(self):
        whole(self, 1, "latest")
        whole(self, 0, "best")


@dataclasses.dataclass(frozen=True)
class Streamed:
    """A leaf that is read while it is written, so that it need not fit in memory.

    Attributes:
      shape, dtype: of the whole leaf.
      part: shape of the largest part; the leaf is stored in blocks of it, and may be read block by block.
      parts: called once, yields (index, array) of parts that lie each in one block and fill the leaf.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    part: tuple[int, ...]
    parts: Callable[[], Iterable[tuple[tuple[slice, ...], np.ndarray]]]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole leaf."""
        return math.prod(self.shape) * self.dtype.itemsize


class _StreamedHandler(ocp.type_handlers.TypeHandler):
    """Lets orbax write `Streamed` leaves, one part at a time, as the jax arrays that they are read back as."""

    def typestr(self) -> str:
        return "jax.Array"

    async def serialize(
        self,
        values: Sequence[Streamed],
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.SaveArgs] | None = None,
    ) -> Sequence[future.Future]:
        return [future.CommitFutureAwaitingContractedSignals(self._write(values, infos), name="streamed")]

    async def _write(self, values: Sequence[Streamed], infos: Sequence[ocp.type_handlers.ParamInfo]) -> None:
        for value, info in zip(values, infos, strict=True):
            await info.await_path_creation()
            spec = ocp.type_handlers.get_json_tspec_write(
                info,
                use_ocdbt=True,
                global_shape=value.shape,
                local_shape=value.part,
                dtype=value.dtype,
                process_index=jax.process_index(),
            )
            array = await tensorstore.open(spec, create=True, context=info.ts_context)
            written = 0
            for index, part in value.parts():
                # The next part is read only when this one is on disk.
                await array[index].write(part)
                written += part.size
            if written != math.prod(value.shape):
                raise ValueError(f"{info.name} has {math.prod(value.shape)} values, its parts {written}")

    async def metadata(self, infos: Sequence[ocp.type_handlers.ParamInfo]) -> Sequence[object]:
        raise NotImplementedError("streamed leaves are read back as jax arrays")

    async def deserialize(
        self, infos: Sequence[ocp.type_handlers.ParamInfo], args: Sequence[ocp.RestoreArgs] | None = None
    ) -> Sequence[object]:
        raise NotImplementedError("streamed leaves are read back as jax arrays")


class CheckpointFolder:
    """The checkpoints below one directory, one folder a step.

    Args:
      directory: made if missing.
      policy: what is kept.
      read_only: another process may be writing here.
      streamed: the leaves of what is saved are `Streamed`.
      save_s: seconds that all processes have for a save in the background; None: as many as it takes.
    """

    def __init__(
        self,
        directory: str | Path,
        policy: KeepPolicy,
        read_only: bool = False,
        streamed: bool = False,
        save_s: int | None = None,
    ):
        self.directory = Path(directory).absolute()
        self.policy = policy
        self._pending: int | None = None
        self._save_s, self._begun, self._missing = save_s, 0.0, ""
        # The best is ranked by score; a checkpoint saved between evaluations has none and is kept by age alone.
        best = preservation.BestN(get_metric_fn=_score, n=policy.best, keep_checkpoints_without_metrics=False)
        policies: list[preservation.PreservationPolicy] = [preservation.LatestN(policy.latest), best]
        if policy.period:
            policies.append(preservation.EveryNSteps(policy.period))
        if not read_only:
            self.directory.mkdir(parents=True, exist_ok=True)
        types = ocp.type_handlers.create_type_handler_registry((Streamed, _StreamedHandler()))
        self._manager = ocp.CheckpointManager(
            self.directory,
            # Only where asked for: orbax tells kinds of leaves apart by a name that these share with jax arrays.
            item_handlers={_ITEM: ocp.PyTreeCheckpointHandler(type_handler_registry=types)} if streamed else None,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation.AnyPreservationPolicy(policies),
                # Without it orbax keeps scores in memory only, and a resumed run would not know its best.
                best_fn=_score,
                read_only=read_only,
                async_options=ocp.AsyncOptions(save_s or 86_400, self._barrier, self._seal),
            ),
        )

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps(read=True))

    def save(self, step: int, tree: PyTree, score: float | None = None) -> None:
        """Begins to save `tree`; returns once its arrays are copied. Waits for an earlier save first.

        Args:
          tree: leaves are jax arrays or numpy arrays (0-d for integers).
          score: higher is better; None where nothing was measured at this step.
        Raises:
          CheckpointError: this or the earlier save failed or took too long; earlier checkpoints are untouched.
        """
        self.wait()
        self._check_space(step, tree)
        self._pending = step
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(**{_ITEM: ocp.args.PyTreeSave(tree)}),
                metrics=None if score is None else {"score": score},
                force=True,
            )
        except OSError as error:
            raise self._failed(step, error) from error
        self._begun = time.monotonic()

    def check(self) -> None:
        """CheckpointError if a save in the background has failed, or takes too long."""
        late = self._save_s is not None and time.monotonic() - self._begun > self._save_s + _SLACK_S
        if self._missing or (late and self._manager.is_saving_in_progress()):
            raise self._failed(self._pending, TimeoutError(self._missing or "this process does not write its part"))
        try:
            self._manager.check_for_errors()
        except Exception as error:
            raise self._failed(self._pending, error) from error

    def wait(self) -> None:
        """Returns when the save in the background is on disk; CheckpointError if it failed, or takes too long."""
        while self._manager.is_saving_in_progress():
            self.check()
            time.sleep(0.005)
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(self._pending, error) from error

    def close(self) -> None:
        """Waits, then lets go of threads."""
        self.wait()
        self._manager.close()

    def restore_latest(self, template: PyTree) -> tuple[int, PyTree] | None:
        """(step, tree) of the newest checkpoint whose files are whole; None where there is none.

        A damaged checkpoint is set aside as `STEP.corrupt`, with a message, and the one before it is tried.

        Raises:
          ValueError: the checkpoint holds other leaves, shapes or dtypes than `template`.
          CheckpointError: checkpoints exist and every one is damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            damage = self._agreed_damage(step)
            if damage is None:
                return step, self.restore(step, template)
            aside = self.directory / f"{step}.corrupt"
            if jax.process_index() == 0:
                shutil.rmtree(aside, ignore_errors=True)
                (self.directory / str(step)).rename(aside)
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices(f"checkpoint {step} set aside")
            self._manager.reload()
            _log.error("checkpoint %s is damaged (%s); set aside as %s", step, damage, aside.name)
        damaged = sorted(path.name for path in self.directory.glob("*.corrupt"))
        if damaged:
            raise CheckpointError(
                f"every checkpoint in {self.directory} is damaged ({', '.join(damaged)}). "
                "Delete the run's folder to start anew, or put a copy in their place"
            )
        return None

    def restore(self, step: int, template: PyTree, partial: bool = False) -> PyTree:
        """The tree saved at `step`, on the shardings, with the shapes and dtypes, of `template`.

        Args:
          partial: the checkpoint may hold more leaves than `template`.
        """
        self._check_leaves(step, template, partial)
        arguments = ocp.args.PyTreeRestore(
            item=template,
            restore_args=ocp.checkpoint_utils.construct_restore_args(template),
            partial_restore=partial,
        )
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**{_ITEM: arguments}))[_ITEM]
        except Exception as error:
            others = [other for other in self.steps() if other != step]
            raise CheckpointError(
                f"checkpoint {step} in {self.directory} cannot be read: {error}. "
                + (f"Others are there: steps {others}" if others else "There is no other")
            ) from error

    def _check_leaves(self, step: int, template: PyTree, partial: bool) -> None:
        stored = _leaves(self.stored(step))
        wanted = _leaves(template)
        problems = [f"{name} is missing" for name in sorted(wanted.keys() - stored.keys())]
        if not partial:
            problems += [f"{name} is not in the run's state" for name in sorted(stored.keys() - wanted.keys())]
        for name in sorted(wanted.keys() & stored.keys()):
            found, expected = (tuple(leaf[name].shape) for leaf in (stored, wanted))
            if found != expected:
                problems.append(f"{name} has shape {found}, the run's has {expected}")
            # Orbax casts without a word, so the dtypes are compared here.
            elif stored[name].dtype != wanted[name].dtype:
                problems.append(f"{name} is {stored[name].dtype}, the run's is {wanted[name].dtype}")
        if problems:
            more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise ValueError(
                f"checkpoint {step} in {self.directory} does not fit the run's configuration: "
                f"{'; '.join(problems[:5])}{more}"
            )

    def stored(self, step: int) -> PyTree:
        """Shapes and dtypes of a checkpoint's leaves."""
        handler = ocp.PyTreeCheckpointHandler()
        return handler.metadata(self.directory / str(step) / _ITEM).tree  # pyright: ignore[reportArgumentType]

    def _check_space(self, step: int, tree: PyTree) -> None:
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise self._failed(step, OSError(f"it needs up to {needed:,} bytes and {free:,} are free"))

    def _failed(self, step: int | None, error: Exception) -> CheckpointError:
        kept = [other for other in self.steps() if other != step]
        left = f"the checkpoints of steps {kept} are untouched" if kept else "there is no earlier checkpoint"
        told = f"checkpoint {step} could not be written to {self.directory}"
        if isinstance(error, TimeoutError):
            return CheckpointTimeoutError(f"{told} within {self._save_s} s (TimeLimits.save_s): {error}; {left}")
        return CheckpointError(f"{told}: {error}; {left}")

    def _barrier(self, *, key: str, timeout_ms: int) -> None:
        """Waits for all processes, as orbax asks for; whom it waited for in vain, only the error's text says."""
        try:
            ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)
        except jax.errors.JaxRuntimeError as error:
            if late := re.search(r"timed out task names:\s*([\d\s]+)", str(error)):
                self._missing = f"process {', '.join(late[1].split())} did not write its part"
            raise

    def _seal(self) -> None:
        """Writes checksums into the folder that orbax is about to rename into place: they are part of the commit."""
        if jax.process_index() != 0:
            return
        (unfinished,) = self.directory.glob(f"{self._pending}.orbax-checkpoint-tmp*")
        checksums.seal(unfinished, _UNSEALED)

    def _agreed_damage(self, step: int) -> str | None:
        """Process 0 looks at the files; all processes take its word."""
        damage = None
        if jax.process_index() == 0 and self.policy.verify:
            damage = checksums.damage(self.directory / str(step), _UNSEALED)
        if jax.process_count() == 1:
            return damage
        bad = multihost_utils.broadcast_one_to_all(np.asarray(damage is not None))
        return (damage or "found by process 0") if bool(bad) else None


def read(directory: str | Path, template: PyTree, step: int | None = None) -> tuple[int, PyTree]:
    """(step, tree) of part of a run's checkpoint, such as its parameters without the optimizer.

    Args:
      directory: a run's `checkpoints` folder; it may be in use by the run.
      template: the part that is wanted, as in `CheckpointFolder.restore`.
      step: None takes the newest.
    Raises:
      ValueError: no such checkpoint, or it does not fit `template`.
      CheckpointError: it is damaged.
    """
    folder, chosen = _undamaged(directory, step)
    return chosen, folder.restore(chosen, template, partial=True)


def _undamaged(directory: str | Path, step: int | None) -> tuple[CheckpointFolder, int]:
    """(folder, step) of the checkpoint that is asked for, or of the newest."""
    if not Path(directory).is_dir():
        raise ValueError(f"there is no folder {directory}: name the RUN_DIR of a run that has saved a checkpoint")
    folder = CheckpointFolder(directory, KeepPolicy(), read_only=True)
    steps = folder.steps()
    if not steps or step not in (None, *steps):
        raise ValueError(
            f"{directory} has no checkpoint{'' if step is None else f' of step {step}'}; it has steps {steps}"
        )
    chosen = steps[-1] if step is None else step
    damage = checksums.damage(folder.directory / str(chosen), _UNSEALED)
    if damage:
        raise CheckpointError(f"checkpoint {chosen} in {directory} is damaged: {damage}; it has steps {steps}")
    return folder, chosen


def write_streamed(directory: str | Path, step: int, tree: PyTree) -> None:
    """Writes a checkpoint whose leaves need not fit in memory: no more than a part of one is held at a time.

    It is checksummed and committed by a rename, as any other, and read back in the same ways.

    Args:
      tree: leaves are `Streamed`.
    Raises:
      CheckpointError: a part could not be read or written; nothing is left that looks like a checkpoint.
    """
    folder = CheckpointFolder(directory, KeepPolicy(), streamed=True)
    folder.save(step, tree)
    folder.close()


@dataclasses.dataclass(frozen=True)
class StoredLeaf:
    """A leaf of a checkpoint, read in slices.

    Attributes:
      shape, dtype: of the whole leaf.
      block: it is stored in blocks of this shape, and what is read of one costs the memory of all of it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    block: tuple[int, ...]
    _array: tensorstore.TensorStore

    def read(self, index: tuple[slice | int, ...]) -> np.ndarray:
        """The values at `index`."""
        return np.asarray(self._array[index].read().result())


def stored_leaves(directory: str | Path, step: int | None = None) -> tuple[int, dict[str, StoredLeaf]]:
    """(step, {path: leaf}) of a checkpoint, its files compared with their checksums; leaves are read when asked for.

    Slices of the block that was read last come from memory, so read one leaf after another, each in order.

    Args:
      directory, step: as for `read`, which also says what is raised.
    """
    folder, chosen = _undamaged(directory, step)
    tree = folder.directory / str(chosen) / _ITEM
    names = _leaves(folder.stored(chosen))

    def opened(name: str, context: tensorstore.Context) -> tensorstore.TensorStore:
        store = {"driver": "ocdbt", "base": f"file://{tree}/", "path": name.replace("/", ".") + "/"}
        return tensorstore.open({"driver": "zarr", "kvstore": store}, open=True, read=True, context=context).result()

    def block(array: tensorstore.TensorStore) -> tuple[int, ...]:
        return tuple(size or 1 for size in array.chunk_layout.read_chunk.shape or ())

    plain = [opened(name, tensorstore.Context()) for name in names]
    largest = max(math.prod(block(array)) * array.dtype.numpy_dtype.itemsize for array in plain)
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": largest}})
    arrays = {name: opened(name, context) for name in names}
    return chosen, {
        name: StoredLeaf(tuple(array.shape), array.dtype.numpy_dtype, block(array), array)
        for name, array in arrays.items()
    }


def _score(metrics: Mapping[str, float]) -> float:
    return metrics["score"]


def _leaves(tree: PyTree) -> dict[str, jax.ShapeDtypeStruct]:
    """Leaves by path; metadata trees name their nodes with strings where ours use indices and fields."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(_name(key) for key in path): leaf for path, leaf in flat}


def _name(key: object) -> str:
    for field in ("key", "name", "idx"):
        if hasattr(key, field):
            return str(getattr(key, field))
    return str(key)
