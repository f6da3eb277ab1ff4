"""Rollouts written down for people: `rollouts/UPDATE.jsonl` in a run's folder, an episode a line."""

import json
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from hcxjax.data.prompts import PromptSet
from hcxjax.data.rollouts.episodes import Episodes
from hcxjax.objectives.returns import kl_terms
from hcxjax.objectives.unlikelihood import sequence_repetition

FOLDER = "rollouts"


class RolloutLog:
    """Writes the first episodes of each rollout.

    Args:
      run_dir: the run's folder; None writes nothing.
      episodes: of a rollout that are written.
      prompts: what is answered.
    """

    def __init__(self, run_dir: str | None, episodes: int, prompts: PromptSet):
        self._folder = None if run_dir is None or not episodes else Path(run_dir) / FOLDER
        self._episodes, self._prompts = episodes, prompts

    def write(self, update: int, episodes: Episodes, lesson: Mapping[str, np.ndarray]) -> None:
        """Writes `UPDATE.jsonl`; one that a killed run left is replaced.

        Args:
          lesson: what is learnt of the episodes (`Lessons.learn`).
        """
        if self._folder is None or jax.process_index() != 0:
            return
        mask_BT = lesson["mask_BT"] > 0
        width = mask_BT.shape[1]
        k1_BT, _, _ = kl_terms(
            jnp.asarray(lesson["old_logprob_BT"]), jnp.asarray(episodes.reference_BT[:, :width]), jnp.asarray(mask_BT)
        )
        kl_B = np.asarray(k1_BT).sum(axis=1)
        repetition_B = np.asarray(sequence_repetition(jnp.asarray(lesson["targets_BT"]), jnp.asarray(mask_BT), 4))
        prompts, lines = self._prompts, []
        _, stopped_B = episodes.answers(prompts.stop_ids)
        for row in range(min(self._episodes, len(kl_B))):
            begins, ends = int(episodes.begins_B[row]), int(episodes.ends_B[row])
            number = int(episodes.prompt_B[row])
            lines.append(
                {
                    "prompt": prompts.vocabulary.decode(episodes.tokens_BT[row, :begins].tolist(), specials=True),
                    "messages": [message._asdict() for message in prompts.messages[number]],
                    "answer": prompts.vocabulary.decode(episodes.tokens_BT[row, begins:ends].tolist()),
                    "score": float(episodes.score_B[row]),
                    "kl": float(kl_B[row]),
                    "repetition": float(repetition_B[row]),
                    "length": ends - begins,
                    "stopped": bool(stopped_B[row]),
                    "number": number,
                    "source": prompts.sources[number],
                    "version": int(episodes.version_B[row]),
                }
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{update:06d}.jsonl"
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        partial.replace(path)
