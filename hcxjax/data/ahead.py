"""The next batch is built while this one is trained on."""

import concurrent.futures
from collections.abc import Callable

from hcxjax.protocols import Batch


class Ahead:
    """Calls `build` one step ahead, in a thread of its own.

    Args:
      build: step → batch.
    """

    def __init__(self, build: Callable[[int], Batch]):
        self._build = build
        self._next: tuple[int, concurrent.futures.Future[Batch]] | None = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="batches")

    def __call__(self, step: int) -> Batch:
        """The batch of `step`."""
        batch = self._next[1].result() if self._next and self._next[0] == step else self._build(step)
        self._next = (step + 1, self._thread.submit(self._build, step + 1))
        return batch

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)
