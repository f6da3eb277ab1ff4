"""Episodes: prompts, what a policy wrote after them, and what frozen models say of it, as arrays of one width."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from hcxjax.inference.requests import Continuation
from hcxjax.objectives.returns import last_place, up_to_stop

_WIDTHS = 4


@dataclasses.dataclass(frozen=True)
class Episodes:
    """B episodes in rows of T places: the prompt, the answer, padding; numpy.

    Column t of `sampled_BT` and `reference_BT` is about the token at t + 1, as everywhere in training.

    Attributes:
      tokens_BT: int32.
      prompt_B: numbers of the prompts in their set, int32.
      begins_B, ends_B: places where the answer begins and ends, int32: `tokens_BT[b, begins:ends]`.
      sampled_BT: log-probabilities that the engine told, at the policy's temperature.
      reference_BT: those of the reference.
      score_B: rewards of whole answers, on the scale of the reward model's card.
      version_B: the update before which the policy was what wrote this, int32.
    """

    tokens_BT: np.ndarray
    prompt_B: np.ndarray
    begins_B: np.ndarray
    ends_B: np.ndarray
    sampled_BT: np.ndarray
    reference_BT: np.ndarray
    score_B: np.ndarray
    version_B: np.ndarray

    @classmethod
    def empty(cls, episodes: int, width: int) -> "Episodes":
        """Zeros."""
        whole, of_row = (episodes, width), (episodes,)
        return cls(
            np.zeros(whole, np.int32),
            np.zeros(of_row, np.int32),
            np.zeros(of_row, np.int32),
            np.zeros(of_row, np.int32),
            np.zeros(whole, np.float32),
            np.zeros(whole, np.float32),
            np.zeros(of_row, np.float32),
            np.zeros(of_row, np.int32),
        )

    @property
    def width(self) -> int:
        """T."""
        return self.tokens_BT.shape[1]

    def put(self, row: int, prompt: Sequence[int], answer: Continuation) -> None:
        """Writes an answer into a row."""
        begins, ends = len(prompt), len(prompt) + len(answer.tokens)
        self.tokens_BT[row, :begins], self.tokens_BT[row, begins:ends] = prompt, answer.tokens
        self.begins_B[row], self.ends_B[row] = begins, ends
        self.sampled_BT[row, begins - 1 : ends - 1] = answer.logprobs

    def rows(self, start: int, stop: int) -> "Episodes":
        """Some of the rows; views, not copies."""
        return Episodes(**{name: value[start:stop] for name, value in vars(self).items()})

    def batch(self) -> dict[str, np.ndarray]:
        """What a decoder reads: tokens_BT, targets_BT, segment_ids_BT, positions_BT, as narrow as `narrowed` says."""
        width = narrowed(int(self.ends_B.max()), self.width)
        tokens_BT = self.tokens_BT[:, :width]
        there_BT = np.arange(width) < self.ends_B[:, None]
        targets_BT = np.where(there_BT[:, 1:], tokens_BT[:, 1:], 0)
        return {
            "tokens_BT": np.ascontiguousarray(tokens_BT),
            "targets_BT": np.pad(targets_BT, ((0, 0), (0, 1))),
            "segment_ids_BT": there_BT.astype(np.int32),
            "positions_BT": np.where(there_BT, np.arange(width), 0).astype(np.int32),
        }

    def answers(self, stop_ids: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """(mask_BT, stopped_B): which targets are the answer's, up to its first stop token, and whether it has one."""
        targets_BT = self.batch()["targets_BT"]
        columns_T = np.arange(targets_BT.shape[1])
        answer_BT = (columns_T >= self.begins_B[:, None] - 1) & (columns_T < self.ends_B[:, None] - 1)
        mask_BT = np.asarray(up_to_stop(jnp.asarray(targets_BT), jnp.asarray(answer_BT), stop_ids))
        last_B = np.asarray(last_place(jnp.asarray(mask_BT)))
        last_token_B = np.take_along_axis(targets_BT, last_B[:, None], axis=1)[:, 0]
        return mask_BT, np.isin(last_token_B, stop_ids) & mask_BT.any(axis=1)


def narrowed(longest: int, width: int) -> int:
    """The width of rows whose longest has `longest` places: a quarter of `width`, or two, three, or all of it.

    What is padded is computed for nothing, and every width is compiled once.
    """
    part = -(-width // _WIDTHS)
    return min(width, -(-longest // part) * part)


def joined(parts: Sequence[Episodes]) -> Episodes:
    """All rows of several, one after the other; copies."""
    return Episodes(**{name: np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0])})
