"""The same work on many parts: in this process or in several, each part by one of them."""

import concurrent.futures
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def each(work: Callable[..., bool], tasks: Sequence[tuple], workers: int, description: str) -> None:
    """Calls `work(*task, wait)` for every task until it has said True of all, with a bar.

    Parts that a process of another command is writing are passed over at first and waited for at the end, so that two
    commands share the work.

    Args:
      work: a function or method that can be pickled; False says that another process is at it.
      tasks: its arguments.
      workers: processes; 1 works in this one.
    """
    with tqdm(total=len(tasks), desc=description, unit="part", leave=False) as bar:
        later = [task for task, done in _called(work, tasks, False, workers, bar) if not done]
        for _ in _called(work, later, True, workers, bar):
            pass


def _called(
    work: Callable[..., bool], tasks: Sequence[tuple], wait: bool, workers: int, bar: tqdm
) -> Iterator[tuple[tuple, bool]]:
    if workers == 1 or len(tasks) < 2:
        for task in tasks:
            done = work(*task, wait)
            bar.update(done)
            yield task, done
        return
    # Spawned, not forked: jax and TensorFlow have threads.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context) as pool:
        futures = {pool.submit(work, *task, wait): task for task in tasks}
        try:
            for future in concurrent.futures.as_completed(futures):
                bar.update(future.result())
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def counted(documents: Iterable[Item], description: str) -> Iterator[Item]:
    """`documents` with a bar of its own, unless this process is one of several."""
    yield from tqdm(
        documents, description, unit="doc", leave=False, disable=multiprocessing.parent_process() is not None
    )
