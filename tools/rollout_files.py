"""What a run of PPO has written down of its rollouts: episodes by update, and numbers over the run."""

import bisect
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hcxjax.data.rollouts.log import FOLDER
from tools.curves import series

CURVES = {
    "score": "objective/score",
    "reward": "objective/rlhf_reward",
    "KL": "objective/kl",
    "length": "rollout/length",
    "stop rate": "rollout/stop_rate",
    "seq-rep-4": "rollout/seq_rep_4",
    "entropy": "objective/entropy",
    "explained variance": "value/explained_variance",
    "clipfrac": "train/policy/clipfrac",
}
"""Title → metric; each is one number an update."""

SORTS = ("score", "kl", "repetition", "length")
"""Fields of an episode that are numbers about its answer."""


class Episode(NamedTuple):
    """A prompt and what was answered; fields as in `hcxjax.data.rollouts.log`.

    Attributes:
      update: before which it was dealt.
      prompt: as the model was given it.
      number: of the prompt in its set.
      version: the update before which the policy was what wrote this.
      messages: the prompt as {role, content}; () in files of before it was written down.
      stopped: the model ended the answer; None in such files.
    """

    update: int
    prompt: str
    answer: str
    score: float
    kl: float
    repetition: float
    length: int
    number: int
    source: str
    version: int
    messages: Sequence[Mapping[str, Any]] = ()
    stopped: bool | None = None


class Written(NamedTuple):
    """What a run's folder holds, which may be that of a run that is going on.

    Attributes:
      run: its RUN_DIR.
      rollouts: update → its episodes, in order; those of a source where one was asked for.
      curves: title, as in `CURVES` → (update, value); of what the run has told.
    """

    run: Path
    rollouts: Mapping[int, Sequence[Episode]]
    curves: Mapping[str, Sequence[tuple[int, float]]]

    @classmethod
    def read(cls, run: Path, source: str | None = None) -> "Written":
        """ValueError where there is no rollout, or none of the source; the message says what there is."""
        paths = {int(path.stem): path for path in (run / FOLDER).glob("*.jsonl") if path.stem.isdigit()}
        if not paths:
            raise ValueError(
                f"{run / FOLDER} has no rollout: name the RUN_DIR of a PPO run whose first rollout is done, and which "
                "writes some episodes down (Rollouts.logged, Rollouts.run_dir)"
            )
        rollouts = {update: _episodes(update, paths[update]) for update in sorted(paths)}
        if source is not None:
            known = {episode.source for episodes in rollouts.values() for episode in episodes}
            if source not in known:
                raise ValueError(f"no episode is of the source {source!r}; there are {', '.join(sorted(known))}")
            rollouts = {
                update: [episode for episode in episodes if episode.source == source]
                for update, episodes in rollouts.items()
            }
        return cls(run, rollouts, _curves(run) if (run / "metrics.jsonl").is_file() else {})

    @property
    def landmarks(self) -> list[int]:
        """The first, the middle and the last update, as far as they differ."""
        updates = list(self.rollouts)
        return sorted({updates[0], updates[(len(updates) - 1) // 2], updates[-1]})

    def episodes(self, update: int) -> Sequence[Episode]:
        """Those of an update. ValueError where it was not written down."""
        if update not in self.rollouts:
            updates = list(self.rollouts)
            raise ValueError(
                f"update {update} is not written down; {len(updates)} are, from {updates[0]} to {updates[-1]}"
            )
        return self.rollouts[update]

    def recurring(self, count: int) -> list[list[Episode]]:
        """Up to `count` prompts that came again, those first that are the longest apart: each one's first answer,
        one in the middle and the last."""
        found: dict[tuple[str, str], list[Episode]] = {}
        for episodes in self.rollouts.values():
            for episode in episodes:
                found.setdefault((episode.source, episode.prompt), []).append(episode)
        again = [answers for answers in found.values() if answers[0].update != answers[-1].update]
        again.sort(key=lambda answers: answers[0].update - answers[-1].update)
        places = [sorted({0, (len(answers) - 1) // 2, len(answers) - 1}) for answers in again[:count]]
        return [[answers[place] for place in some] for answers, some in zip(again[:count], places, strict=True)]


def _episodes(update: int, path: Path) -> list[Episode]:
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        return [Episode(update, **json.loads(line)) for line in lines]
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path} is not what a run of PPO writes: {error}") from None


def _curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Of every update one number: what was told with its first minibatch, or the mean over its minibatches."""
    told = series(run)
    firsts = [step for step, _ in told.get("objective/score", [])]
    found: dict[str, dict[int, list[float]]] = {}
    for title, metric in CURVES.items():
        for step, value in told.get(metric, []):
            if (update := bisect.bisect_right(firsts, step) - 1) >= 0:
                found.setdefault(title, {}).setdefault(update, []).append(value)
    return {
        title: [(update, statistics.mean(values)) for update, values in updates.items()]
        for title, updates in found.items()
    }
