"""Rendered conversations of one source on disk: tokens, which of them are learnt, and who is held out.

A folder of flat files that are mapped into memory when they are read, and a manifest with counts and checksums; written
once.
"""

import dataclasses
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from hcxjax.data.flat_files import contents, mapped, seal, unsealed
from hcxjax.text.rendering import Rendered

FORMAT = 1
_TOKENS, _LEARNT, _STARTS, _HELD_OUT = "tokens", "learnt", "starts", "held_out"
_FILES = (_TOKENS, _LEARNT, _STARTS, _HELD_OUT)


class Kept(NamedTuple):
    """A conversation to be stored."""

    rendered: Rendered
    held_out: bool


@dataclasses.dataclass(frozen=True)
class ConversationStore:
    """An open folder, or the conversations of one split of it.

    Attributes:
      folder: where it lies.
      manifest: what was read, what was left out and why, counts and checksums.
      numbers: the conversations in the folder that belong here, int64.
      lengths: tokens of each of these, int64.
    """

    folder: str
    manifest: dict[str, Any]
    numbers: np.ndarray
    lengths: np.ndarray
    _starts: np.ndarray
    _tokens: np.ndarray
    _learnt: np.ndarray

    @classmethod
    def open(cls, folder: str, held_out: bool) -> "ConversationStore":
        """What `write` made: the conversations that are held out, or the others.

        Raises:
          ValueError: a file is missing or altered; names it, and the folder to delete.
        """
        manifest = unsealed(folder, _FILES, FORMAT)
        starts = np.fromfile(os.path.join(folder, _STARTS), np.int64)
        numbers = np.flatnonzero(np.fromfile(os.path.join(folder, _HELD_OUT), bool) == held_out)
        tokens, learnt = (mapped(folder, name, kind) for name, kind in ((_TOKENS, "<i4"), (_LEARNT, "?")))
        return cls(folder, manifest, numbers, np.diff(starts)[numbers], starts, tokens, learnt)

    def __len__(self) -> int:
        return len(self.numbers)

    def conversation(self, number: int) -> Rendered:
        """The `number`-th conversation here."""
        place = self.numbers[number]
        span = slice(self._starts[place], self._starts[place + 1])
        return Rendered(np.array(self._tokens[span]), np.array(self._learnt[span]))

    @property
    def fingerprint(self) -> int:
        """Stands for the contents, whatever folder they lie in."""
        return contents(self.manifest, _FILES)


def write(folder: str, kept: Iterable[Kept], about: dict[str, Any]) -> dict[str, Any]:
    """Writes conversations into `folder`, which exists and is empty; equal ones give equal bytes.

    Args:
      kept: read once; `about` may change until it ends, since the manifest is written last.
      about: what else the manifest says.
    Returns: the manifest.
    """
    starts, held_out, targets = [0], [], 0
    with open(os.path.join(folder, _TOKENS), "wb") as tokens, open(os.path.join(folder, _LEARNT), "wb") as learnt:
        for rendered, held in kept:
            tokens.write(rendered.tokens.astype("<i4").tobytes())
            learnt.write(rendered.learnt.tobytes())
            starts.append(starts[-1] + len(rendered.tokens))
            held_out.append(held)
            targets += int(rendered.learnt[1:].sum())
    np.array(starts, np.int64).tofile(os.path.join(folder, _STARTS))
    np.array(held_out, bool).tofile(os.path.join(folder, _HELD_OUT))
    counts = {"conversations": len(held_out), "held_out": sum(held_out), "tokens": starts[-1], "targets": targets}
    return seal(folder, _FILES, FORMAT, {**about, **counts})
