"""What sources share whose batches are functions of the step: the next is built ahead, the state is integers."""

import abc
from collections.abc import Mapping
from typing import ClassVar

from hcxjax.data.ahead import Ahead
from hcxjax.mesh import Layout
from hcxjax.protocols import Batch, Params, PyTree


class Planned(abc.ABC):
    """Part of a `Source`; the rest plans batches and builds them."""

    MEANING: ClassVar[Mapping[str, str]]
    """Name of a fingerprint → what a user changed, where it is another one than the checkpoint's."""

    def ready(self, layout: Layout, fingerprints: Mapping[str, int]) -> None:
        """Called at the end of `start`.

        Args:
          fingerprints: of all that decides what a batch holds.
        """
        assert fingerprints.keys() == self.MEANING.keys()
        self._layout, self._fingerprints, self._step = layout, dict(fingerprints), 0
        self._ahead = Ahead(self.build)

    @abc.abstractmethod
    def build(self, step: int) -> Batch:
        """The batch of `step`."""

    def next(self, params: Params, step: int) -> Batch:
        """The batch of `step`; the one after it is built meanwhile."""
        batch = self._ahead(step)
        self._step = step + 1
        return batch

    def measures(self) -> dict[str, float]:
        """None: the update knows all."""
        return {}

    def get_state(self) -> dict[str, int]:
        """The next step and what the data is made of; integers alone."""
        return {"position": self._step, **self._fingerprints}

    def set_state(self, state: PyTree) -> None:
        """Goes on at the step of `state`. ValueError where it belongs to other data; says what differs."""
        changed = [self.MEANING[name] for name, value in self._fingerprints.items() if int(state[name]) != value]
        if changed:
            raise ValueError(f"the checkpoint's data is not this run's: what differs is {'; '.join(changed)}")
        self._step = int(state["position"])

    def close(self) -> None:
        """Ends the thread that builds ahead."""
        if hasattr(self, "_ahead"):
            self._ahead.close()
