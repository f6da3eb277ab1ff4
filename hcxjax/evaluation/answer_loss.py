"""How well held-out answers are predicted: the loss on what the assistant writes, a token."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from hcxjax.evaluation.scoring import Scored, Scorer
from hcxjax.mesh import Layout
from hcxjax.protocols import Params


class Reader(Protocol):
    """What gives held-out conversations; `HeldOutConversations` is one."""

    def load(self, layout: Layout) -> Mapping[str, list[dict[str, np.ndarray]]]: ...


@dataclasses.dataclass
class AnswerLoss:
    """Mean negative log-probability, in nats, of the tokens of held-out answers and of what ends them.

    Attributes:
      objective: whose model is measured.
      held_out: gives the conversations.
      every: updates between measurements.
    """

    objective: Scored
    held_out: Reader
    every: int

    def start(self, layout: Layout, run_dir: str) -> None:
        """Reads the conversations, rendering them on first use."""
        self._sources = self.held_out.load(layout)
        self._scorer = Scorer(self.objective, layout)

    def evaluate(self, params: Params, step: int) -> dict[str, float]:
        """`eval/sft/loss` over all tokens of answers, and `eval/sft/NAME/loss` by source."""
        sums = {name: self._sums(params, batches) for name, batches in self._sources.items()}
        results = {f"eval/sft/{name}/loss": nats / weight for name, (nats, weight) in sums.items()}
        nats, weight = np.sum(list(sums.values()), axis=0)
        return results | {"eval/sft/loss": float(nats / weight)}

    def _sums(self, params: Params, batches: list[dict[str, np.ndarray]]) -> tuple[float, float]:
        """(nats, targets) of a source."""
        nats = weight = 0.0
        for rows in batches:
            scores = self._scorer(params, rows)
            nats -= float(np.sum(scores.logprob_BT * rows["weights_BT"], dtype=np.float64))
            weight += float(rows["weights_BT"].sum())
        return nats, weight
