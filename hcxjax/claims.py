"""A run's folder belongs to one run of one configuration: claimed, compared and locked before anything is written."""

import contextlib
import fcntl
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

_MAY_CHANGE = re.compile(
    r"(RUN_DIR|DATA_DIR|STEPS|SAVE_EVERY|EVAL_EVERY|MESH_\w+|ACCUMULATE|PACKED)$|(Layout|KeepPolicy|TimeLimits|JsonLines|TensorBoard|MLflow|ProgressBar|Local|Beam)\."
    r"|Experiment\.(trackers|profile|accumulate|layout|keep|limits)$|Rollouts\.(packed|accumulate)$|Corpus\.engine$|Tokenizer\.path$"
    r"|DecoderConfig\.(attention|attention_tile|context|remat|offload|scan_unroll|pipe_rows|pipe_repeats)$"
)
"""Bindings of a run that a later start of it may change: how long, how often, where, on what; never what is learnt.

A tokenizer that has moved is compared with the checkpoint's by its contents."""


def bindings_of(text: str) -> dict[str, str]:
    """Name → value of every binding in a gin text, macros too."""
    found: dict[str, str] = {}
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        name, equals, value = line.partition(" = ")
        if equals and not line.startswith("#"):
            found[name.strip()] = value.strip()
        elif found and line.startswith(" "):
            found[next(reversed(found))] += line.strip()
    return found


@contextlib.contextmanager
def claimed(run_dir: Path, operative: str) -> Iterator[None]:
    """Holds RUN_DIR for this run alone: process 0 claims it, and the others hear whether it could.

    Raises:
      ValueError: another run, or another start of this one, has the folder.
    """
    with contextlib.ExitStack() as held:
        refusal = None
        if jax.process_index() == 0:
            try:
                held.enter_context(claim(run_dir, operative))
            except (ValueError, OSError) as error:
                refusal = error
        if jax.process_count() > 1:
            refused = multihost_utils.broadcast_one_to_all(np.asarray(refusal is not None))
            if bool(refused) and refusal is None:
                refusal = ValueError(f"process 0 could not claim RUN_DIR {run_dir}; its message says why")
        if refusal is not None:
            raise refusal
        yield


@contextlib.contextmanager
def claim(run_dir: Path, operative: str) -> Iterator[None]:
    """Writes `config.gin` into RUN_DIR, or sees that the one there is of the same run, and locks the folder.

    A folder where nothing was trained yet is taken over: its first start may have failed on a typo.

    Raises:
      ValueError: the folder holds a run of another configuration (the message names the bindings that differ), or a
        process that is training in it.
    """
    path, ours = run_dir / "config.gin", bindings_of(operative)
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process is training in RUN_DIR {run_dir}: wait for it, or name a new folder"
            ) from None
        _compare(path, ours)
        partial = path.with_suffix(".partial")
        partial.write_text(operative)
        partial.replace(path)
        yield


def _compare(path: Path, ours: Mapping[str, str]) -> None:
    """ValueError where `path` is the configuration of another run that has begun."""
    run_dir = path.parent
    begun = (run_dir / "metrics.jsonl").exists() or any((run_dir / "checkpoints").glob("*"))
    if path.exists() and begun:
        theirs = bindings_of(path.read_text())
        names = sorted(name for name in ours.keys() | theirs.keys() if not _MAY_CHANGE.match(name))
        changed = [name for name in names if ours.get(name) != theirs.get(name)]
        if changed:
            listed = "\n".join(f"  {name}: {theirs.get(name)} there, {ours.get(name)} now" for name in changed)
            raise ValueError(
                f"RUN_DIR {run_dir} holds a run of another configuration:\n{listed}\n"
                "Set RUN_DIR to a new folder, or take these bindings back"
            )
