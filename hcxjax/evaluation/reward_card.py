"""Writes the card of a reward model once it is trained: on what scale its scores are, and how often it is right."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import jax
import numpy as np

from hcxjax.checks import number, whole
from hcxjax.evaluation.answers import AnswerWriter
from hcxjax.evaluation.pair_accuracy import HostBatch, PairScorer, Rewarding, compared
from hcxjax.evaluation.preference_floors import preferred
from hcxjax.mesh import Layout, unbox
from hcxjax.models.config import DecoderConfig
from hcxjax.models.scalar import score
from hcxjax.objectives.language_model import LanguageModel
from hcxjax.objectives.reward_card import RewardCard, Scale, fingerprint
from hcxjax.protocols import Array, Params
from hcxjax.warm_start import Origin, by_path, read_frozen

_log = logging.getLogger(__name__)

DEMONSTRATIONS = "demonstrations"
Text = Sequence[int] | np.ndarray
"""Token ids of a prompt and its answer."""


class Scoring(Rewarding, Protocol):
    """An objective whose parameters are those of a scalar model of these sizes."""

    @property
    def model(self) -> DecoderConfig: ...


@runtime_checkable
class Merges(Protocol):
    """An objective whose parameters become a scalar model's when its changes are added to the weights."""

    def merged(self, params: Params) -> Params: ...


class HeldOut(Protocol):
    """What gives held-out comparisons; `hcxjax.data.comparisons.HeldOutComparisons` is one."""

    def load(self, layout: Layout) -> Mapping[str, list[HostBatch]]: ...
    def check_policy(self, folder: str) -> None: ...


class Asked(Protocol):
    """Prompts; `hcxjax.data.prompts.PromptSet` is one."""

    @property
    def tokens(self) -> Sequence[Sequence[int]]: ...
    @property
    def sources(self) -> Sequence[str]: ...
    @property
    def stop_ids(self) -> tuple[int, ...]: ...


class PromptReader(Protocol):
    """What gives prompts; `hcxjax.data.prompts.Prompts` is one."""

    def load(self, split: str) -> Asked: ...


@functools.lru_cache(maxsize=4)
def _compiled_scores(model: DecoderConfig, layout: Layout) -> Callable[[Params, Mapping[str, Array]], Array]:
    def scores(params: Params, batch: Mapping[str, Array]) -> Array:
        return score(model, params, **batch)

    return jax.jit(scores, out_shardings=layout.sharding())


@dataclasses.dataclass
class CalibrateReward:
    """Scores answers and keeps their mean and deviation, by source too, in `reward_card.json` beside the weights.

    A card of the very weights is kept as it is, of earlier ones replaced, and the log says so. Before the first update
    there is nothing to calibrate.

    Source: Huang et al. 2024, arXiv:2403.17031, on normalising the reward model: to mean 0 on demonstrations; by
    source and clipped: HyperCLOVA X, arXiv:2404.01954, which does not disclose δ.

    Attributes:
      objective: of the reward model.
      held_out: comparisons, for the accuracy; and where no policy is named, for the answers: the preferred ones.
      every: updates between cards; STEPS writes one at the end.
      policy: the folder of the policy whose answers are scored (that which reinforcement learning starts from); None
        scores held-out preferred answers, whose mean becomes 0.
      prompts: what the policy answers, those of the split "train"; the card's sources are theirs.
      policy_model: its sizes; None: the reward model's.
      count: answers of each source, at most.
      new_tokens: of an answer, at most.
      temperature: of sampling.
      clip: δ, in standard deviations.
      rows: texts that are scored at once.
    """

    objective: Scoring
    held_out: HeldOut
    every: int
    policy: str | None = None
    prompts: PromptReader | None = None
    policy_model: DecoderConfig | None = None
    count: int = 256
    new_tokens: int = 128
    temperature: float = 0.7
    clip: float = 5.0
    rows: int = 32

    def __post_init__(self):
        whole(self, 1, "every", "count", "new_tokens", "rows")
        number(self, "temperature", "clip")
        if self.policy is not None and self.prompts is None:
            raise ValueError(
                f"CalibrateReward.policy is {self.policy!r}, but CalibrateReward.prompts is None: name what it answers "
                "(@Prompts()), or score held-out preferred answers (CalibrateReward.policy = None)"
            )

    def start(self, layout: Layout, run_dir: str) -> None:
        """Reads the comparisons, and sees that there is a policy to be asked. ValueError where there is none."""
        self._layout, self._run_dir = layout, run_dir
        self._comparisons = self.held_out.load(layout)
        self._pairs = PairScorer(self.objective, layout)
        self._scores = _compiled_scores(self.objective.model, layout)
        self._written: dict[str, list[Text]] | None = None
        self._samples = DEMONSTRATIONS
        if self.policy is not None:
            self._samples = self._checked_policy(self.policy)
            self._prepare_prompts()

    @property
    def _language_model(self) -> LanguageModel:
        return LanguageModel(self.policy_model or self.objective.model)

    def _checked_policy(self, policy: str) -> str:
        """FOLDER@STEP of the policy. A mistake is to be found now and not when the reward model is trained."""
        try:
            origin = Origin.parse(policy)
            self.held_out.check_policy(origin.folder)
            step, there = origin.stored()
        except ValueError as error:
            raise ValueError(f"CalibrateReward.policy (CARD_POLICY): {error}") from error
        wanted = by_path(unbox(jax.eval_shape(self._language_model.init, jax.random.key(0))))
        if {name: leaf.shape for name, leaf in wanted.items()} != {name: leaf.shape for name, leaf in there.items()}:
            raise ValueError(
                f"CalibrateReward.policy (CARD_POLICY): the weights of {policy} have other sizes than "
                "CalibrateReward.policy_model, which is the reward model's where it is None"
            )
        return f"{origin.folder}@{step}"

    def _prepare_prompts(self) -> None:
        """Chooses the prompts and sees that answers to them fit."""
        assert self.prompts is not None
        asked = self.prompts.load("train")
        self._asked: dict[str, list[Sequence[int]]] = {name: [] for name in sorted(set(asked.sources))}
        for tokens, name in zip(asked.tokens, asked.sources, strict=True):
            if len(self._asked[name]) < self.count:
                self._asked[name].append(tokens)
        prompts = [tokens for own in self._asked.values() for tokens in own]
        self._write = AnswerWriter(self._language_model, prompts, asked.stop_ids, self.new_tokens, self.temperature)

    def evaluate(self, params: Params, step: int) -> dict[str, float]:
        """`eval/reward_card/mean`, `.../std`, `.../count` and `.../accuracy`; nothing before the first update."""
        if step == 0:
            return {}
        scalar = self.objective.merged(params) if isinstance(self.objective, Merges) else params
        card = self._kept(fingerprint(scalar))
        if card is None:
            card = self._made(params, scalar, step)
        if card is None:
            return {}
        numbers = {"mean": card.mean, "std": card.std, "count": float(card.count), "accuracy": card.accuracy}
        return {f"eval/reward_card/{name}": value for name, value in numbers.items()}

    def _kept(self, weights: str) -> RewardCard | None:
        """The card that is there, if it is of these weights."""
        try:
            card = RewardCard.read(self._run_dir)
        except ValueError as error:
            _log.info("a reward card is made: %s", error)
            return None
        if card.weights != weights:
            _log.info("the reward card of step %d is replaced, for the weights have changed since", card.step)
            return None
        _log.info("the reward card of step %d is of these weights and stays as it is", card.step)
        return card

    def _made(self, params: Params, scalar: Params, step: int) -> RewardCard | None:
        texts = self._texts()
        longest = max(len(text) for own in texts.values() for text in own)
        scores = {name: self._scored(scalar, own, longest) for name, own in texts.items()}
        whole = _scale(np.concatenate(list(scores.values())))
        batches = [rows for own in self._comparisons.values() for rows in own]
        right = preferred(np.concatenate([self._pairs.differences(params, rows) for rows in batches]))
        scales = {name: _scale(own) for name, own in scores.items()}
        if alike := [name for name, scale in scales.items() if not scale.std > 0]:
            _log.warning("scores of %s are all alike: the card has no scale of their own", ", ".join(alike))
        try:
            card = RewardCard(
                mean=whole.mean,
                std=whole.std,
                count=whole.count,
                clip=float(self.clip),
                samples=self._samples,
                accuracy=float(right.mean()),
                sources={name: scale for name, scale in scales.items() if name not in alike},
                weights=fingerprint(scalar),
                step=step,
            )
        except ValueError as error:
            _log.warning("no reward card is written, and nothing can be trained with these weights: %s", error)
            return None
        if jax.process_index() == 0:
            card.write(self._run_dir)
        _log.info(
            "reward card: scores of %d answers (%s) have mean %.3f, std %.3f; %.3f of held-out comparisons put right",
            *(card.count, card.samples, card.mean, card.std, card.accuracy),
        )
        return card

    def _texts(self) -> dict[str, list[Text]]:
        """What is scored, by source; written once."""
        if self._written is None:
            self._written = self._answers() if self.policy is not None else self._demonstrations()
        return self._written

    def _demonstrations(self) -> dict[str, list[Text]]:
        def preferred_ones(batches: list[HostBatch]) -> Iterator[Text]:
            for rows in batches:
                for row, chosen, _ in zip(*compared(rows), strict=True):
                    yield rows["tokens_BKT"][row, chosen, : rows["end_BK"][row, chosen] + 1]

        return {name: list(preferred_ones(batches))[: self.count] for name, batches in self._comparisons.items()}

    def _answers(self) -> dict[str, list[Text]]:
        """Answers of the policy, which is read, asked and let go of."""
        assert self.policy is not None
        answers = iter(self._write(read_frozen(self._language_model.init, self.policy, self._layout)))
        del self._write
        return {name: [[*tokens, *next(answers).tokens] for tokens in own] for name, own in self._asked.items()}

    def _scored(self, params: Params, texts: list[Text], longest: int) -> np.ndarray:
        """The score of each text at its last token."""
        shards = self._layout.batch_shards
        rows = -(-self.rows // shards) * shards
        parts = [self._batch(texts[at : at + rows], rows, longest) for at in range(0, len(texts), rows)]
        found = [jax.device_get(self._scores(params, self._placed(part))) for part in parts]
        return np.concatenate(found)[: len(texts)].astype(np.float64)

    def _batch(self, texts: list[Text], rows: int, longest: int) -> dict[str, np.ndarray]:
        tokens_BT, end_B = np.zeros((rows, longest), np.int32), np.zeros(rows, np.int32)
        for row, text in enumerate(texts):
            tokens_BT[row, : len(text)] = text
            end_B[row] = len(text) - 1
        positions_BT = np.tile(np.arange(longest, dtype=np.int32), (rows, 1))
        segment_ids_BT = (positions_BT <= end_B[:, None]).astype(np.int32)
        return {
            "tokens_BT": tokens_BT,
            "segment_ids_BT": segment_ids_BT,
            "positions_BT": positions_BT,
            "end_B": end_B,
        }

    def _placed(self, rows: dict[str, np.ndarray]) -> Mapping[str, Array]:
        count = len(rows["end_B"])
        return self._layout.shard_batch(lambda start, stop: {k: v[start:stop] for k, v in rows.items()}, count)


def _scale(scores: np.ndarray) -> Scale:
    return Scale(float(scores.mean()), float(scores.std()), len(scores))
