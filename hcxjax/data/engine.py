"""Where the work on the parts of a corpus is done: in this process, in several, or (`hcxjax.data.beam`) on a cluster.

What is done, and what it writes, is the same everywhere.
"""

import concurrent.futures
import dataclasses
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np
from tqdm import tqdm

from hcxjax.checks import whole
from hcxjax.data.cleaning.duplicates import NearDuplicates, duplicates

Item = TypeVar("Item")
Signed = tuple[np.ndarray, np.ndarray, list[np.ndarray]]
"""Ids, exact keys and signatures of the documents of one part."""


class Engine(Protocol):
    """What preparation asks for."""

    def each(self, work: Callable[..., bool], tasks: Sequence[tuple], description: str) -> None:
        """Calls `work(*task, wait)` until it has said True of every task.

        Args:
          work: a function or method that can be pickled; False, where `wait` is, says that another process is at it.
          tasks: its arguments.
        """
        ...

    def duplicates(
        self, signed: Callable[..., Signed], tasks: Sequence[tuple], near: NearDuplicates, folder: str
    ) -> dict[int, tuple[str, int]]:
        """`hcxjax.data.cleaning.duplicates.duplicates` of what `signed(*task)` gives for all tasks.

        Args:
          folder: an empty one, which every process sees, for what passes between them.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Local:
    """This machine.

    Parts that a process of another command is writing are passed over at first and waited for at the end, so that two
    commands share the work.

    Attributes:
      workers: processes; 1 works in this one.
    """

    workers: int = 1

    def __post_init__(self):
        whole(self, 1, "workers")

    def each(self, work: Callable[..., bool], tasks: Sequence[tuple], description: str) -> None:
        """As `Engine` has it, with a bar."""
        with tqdm(total=len(tasks), desc=description, unit="part", leave=False) as bar:
            later = [task for task, done in self._called(work, tasks, False, bar) if not done]
            self._called(work, later, True, bar)

    def _called(
        self, work: Callable[..., bool], tasks: Sequence[tuple], wait: bool, bar: tqdm
    ) -> list[tuple[tuple, bool]]:
        """Each task, and what `work` said of it."""
        told = []

        def tell(task: tuple, done: bool) -> None:
            bar.update(done)
            told.append((task, done))

        if self.workers == 1 or len(tasks) < 2:
            for task in tasks:
                tell(task, work(*task, wait))
            return told
        # Spawned, not forked: jax and TensorFlow have threads.
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(min(self.workers, len(tasks)), mp_context=context) as pool:
            futures = {pool.submit(work, *task, wait): task for task in tasks}
            try:
                for future in concurrent.futures.as_completed(futures):
                    tell(futures[future], future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return told

    def duplicates(
        self, signed: Callable[..., Signed], tasks: Sequence[tuple], near: NearDuplicates, folder: str
    ) -> dict[int, tuple[str, int]]:
        """In memory: 2.6 KB a document at the peak, of 120 permutations."""
        ids, keys, signatures = zip(*(signed(*task) for task in tasks), strict=True)
        return duplicates(np.concatenate(ids), np.concatenate(keys), [one for part in signatures for one in part], near)


def counted(documents: Iterable[Item], description: str) -> Iterator[Item]:
    """`documents` with a bar of its own, unless this process is one of several."""
    yield from tqdm(
        documents, description, unit="doc", leave=False, disable=multiprocessing.parent_process() is not None
    )
