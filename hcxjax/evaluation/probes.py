"""Abilities measured on held-out people, places and things of the small world, against the truth."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from hcxjax.evaluation.scoring import Scored, Scorer, pack_sequences
from hcxjax.mesh import Layout
from hcxjax.protocols import Params
from hcxjax.text.vocabulary import Vocabulary
from hcxjax.world import PROBES, World


class VocabularyOwner(Protocol):
    """Gives the vocabulary of the run (`hcxjax.data.corpus.Corpus`)."""

    def vocabulary(self) -> Vocabulary: ...


@dataclasses.dataclass
class WorldProbes:
    """Two rates for each kind of probe, over held-out names.

    choice: the true continuation is more likely than every alternative, each scored as prompt and continuation whole.
    exact: greedy decoding would write the true continuation, token for token.

    Attributes:
      objective: whose model is measured.
      corpus: gives the vocabulary.
      every: updates between measurements.
      length, batch: of the packed rows that are scored.
      count: probes of each kind.
      kinds: which kinds.
      world: whose probes; those of the validation split are asked.
    """

    objective: Scored
    corpus: VocabularyOwner
    every: int
    length: int
    batch: int
    count: int = 50
    kinds: tuple[str, ...] = PROBES
    world: World = dataclasses.field(default_factory=World)

    def start(self, layout: Layout, run_dir: str) -> None:
        """Tokenises the probes."""
        vocabulary = self.corpus.vocabulary()
        self._scorer = Scorer(self.objective, layout)
        self._probes = [probe for kind in self.kinds for probe in self.world.probes(kind, self.count)]
        self._answers, sequences = [], []
        for probe in self._probes:
            begun = [vocabulary.end_of_text, *vocabulary.encode(probe.prompt)]
            for text in (probe.answer, *probe.alternatives):
                sequences.append([vocabulary.end_of_text, *vocabulary.encode(probe.prompt + text)])
            true = sequences[-1 - len(probe.alternatives)]
            self._answers.append(len(true) - _shared(begun, true))
        self._batches, self._places = pack_sequences(sequences, self.length, self.batch)

    def evaluate(self, params: Params, step: int) -> dict[str, float]:
        """`eval/world/KIND/choice` and `eval/world/KIND/exact`, shares of `count`."""
        scores = [self._scorer(params, rows) for rows in self._batches]
        logprob_BT, _, top_BT, _ = (np.concatenate(parts) for parts in zip(*scores, strict=True))
        right: dict[str, list[tuple[bool, bool]]] = {kind: [] for kind in self.kinds}
        at = 0
        for probe, answer in zip(self._probes, self._answers, strict=True):
            places = self._places[at : at + 1 + len(probe.alternatives)]
            at += len(places)
            totals = [float(np.sum(logprob_BT[place.row, place.start : place.stop])) for place in places]
            end = places[0].stop
            exact = bool(np.all(top_BT[places[0].row, end - answer : end]))
            right[probe.kind].append((totals[0] > max(totals[1:]), exact))
        rates = {kind: np.mean(pairs, axis=0) for kind, pairs in right.items()}
        return {
            f"eval/world/{kind}/{name}": float(rates[kind][column])
            for kind in self.kinds
            for column, name in enumerate(("choice", "exact"))
        }


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that both begin with. A continuation may merge with the prompt's last piece."""
    pairs = zip(one, other, strict=False)
    return next((number for number, (left, right) in enumerate(pairs) if left != right), min(len(one), len(other)))
