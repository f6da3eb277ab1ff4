"""Bits per byte of held-out documents by source: comparable across tokenizers."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from hcxjax.evaluation.scoring import Scored, Scorer
from hcxjax.mesh import Layout
from hcxjax.protocols import Params


class Reader(Protocol):
    """Held-out documents by source, as batches with their bytes counted (`hcxjax.data.held_out.HeldOut`)."""

    def load(self) -> Mapping[str, Any]: ...


@dataclasses.dataclass
class BitsPerByte:
    """Σ −log2 p(token) / UTF-8 bytes, over whole held-out documents, their end of text included.

    Attributes:
      objective: whose model is measured.
      held_out: gives the documents.
      every: updates between measurements.
    """

    objective: Scored
    held_out: Reader
    every: int

    def start(self, layout: Layout, run_dir: str) -> None:
        """Reads the held-out documents, writing their stores on first use."""
        self._sources = self.held_out.load()
        self._scorer = Scorer(self.objective, layout)

    def evaluate(self, params: Params, step: int) -> dict[str, float]:
        """`eval/NAME/bits_per_byte` and `eval/NAME/loss` (nats a token) by source; `eval/bits_per_byte`, the mean."""
        results: dict[str, float] = {}
        bits = []
        for name, source in self._sources.items():
            nats = sum(self._nats(params, rows) for rows in source.batches)
            bits.append(nats / math.log(2) / source.bytes)
            results |= {f"eval/{name}/bits_per_byte": bits[-1], f"eval/{name}/loss": nats / source.targets}
        return results | {"eval/bits_per_byte": float(np.mean(bits))}

    def _nats(self, params: Params, rows: Mapping[str, np.ndarray]) -> float:
        scores = self._scorer(params, rows)
        return -float(np.sum(scores.logprob_BT * rows["weights_BT"], dtype=np.float64))
