"""Which comparisons make up a batch: all of a prompt together.

Pure functions of their lengths, a key and the batch's number.
"""

from collections.abc import Sequence

import numpy as np

from hcxjax.data.conversation_batches import LengthBatches, Rows


class PromptBatches:
    """Comparisons of similar length share a batch, and those of one prompt the same one.

    A prompt counts as long as its longest text, and takes as many rows as its comparisons do. What a batch has no room
    for stays empty. Every row comes once an epoch; see `LengthBatches` for the order.

    Source: Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155, section 3.5: all comparisons of a prompt as one element
    of a batch, because shuffled into one they were overfitted in a single epoch.

    Args:
      lengths: tokens of each text of each row of comparisons, [rows, texts]; 0 where one is missing.
      prompts: what stands for each row's prompt.
      buckets: row lengths, rising; the last holds the longest text.
      rows: of a batch of each bucket.
      key: decides the order.
    Raises:
      ValueError: a prompt takes more rows than a batch of its length has.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        prompts: np.ndarray,
        buckets: Sequence[int],
        rows: Sequence[int],
        key: tuple[int, ...],
    ):
        _, number = np.unique(prompts, return_inverse=True)
        order = np.argsort(number, kind="stable")
        sizes = np.bincount(number)
        self._rows = np.split(order, np.cumsum(sizes)[:-1])
        longest = np.maximum.reduceat(lengths.max(axis=1)[order], np.cumsum(sizes) - sizes)
        room = np.array(rows)[np.searchsorted(np.array(buckets), longest)]
        if np.any(sizes > room):
            worst = int(np.argmax(sizes / room))
            texts = lengths.shape[1]
            positions = texts * int(buckets[np.searchsorted(np.array(buckets), longest[worst])]) * int(sizes[worst])
            enough = -(-positions // (texts * buckets[-1])) * texts * buckets[-1]
            raise ValueError(
                f"the comparisons of a prompt take {sizes[worst]} rows of {texts} texts, which must not be parted; "
                f"with texts of up to {longest[worst]} tokens a batch has room for {room[worst]}: set BATCH_TOKENS to "
                f"{enough} or more, or Preferences.max_comparisons to {room[worst]} or fewer"
            )
        self._batches = LengthBatches(longest, buckets, rows, key, sizes)
        self.prompts = len(sizes)
        self._texts, self._used = lengths.shape[1], int(lengths.sum())

    @property
    def an_epoch(self) -> float:
        """Batches that hold each row once."""
        return self._batches.an_epoch

    @property
    def padding(self) -> float:
        """Share of the positions of an epoch that hold nothing."""
        return 1 - self._used / (self._texts * self._batches.positions)

    def batch(self, number: int) -> Rows:
        """Batch `number`, counted through all epochs: the number of each of its rows, or none."""
        length, count, prompts = self._batches.members(number)
        rows = [(row,) for prompt in prompts.tolist() for row in self._rows[prompt].tolist()]
        return Rows(length, rows + [()] * (count - len(rows)))
