"""Comparisons of one source on disk: the texts that are compared, which was preferred to which, and who is held out.

An answer that is compared with several others is stored once.
"""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from hcxjax.data.flat_files import contents, mapped, seal, unsealed
from hcxjax.data.preference_forms import Comparison

FORMAT = 2
_TOKENS, _STARTS, _ANSWERS, _PAIRS, _MARGINS, _PROMPTS, _HELD_OUT = _FILES = (
    "tokens",
    "starts",
    "answers",
    "pairs",
    "margins",
    "prompts",
    "held_out",
)


class Text(NamedTuple):
    """A prompt with an answer.

    Attributes:
      tokens: ids, what ends the answer included.
      start: place of the answer's first token.
    """

    tokens: Sequence[int] | np.ndarray
    start: int


class Kept(NamedTuple):
    """Comparisons of answers to one prompt, to be stored.

    Attributes:
      prompt: stands for the prompt, 63 bits.
      texts: the prompt with each answer.
      comparisons: of these, by their numbers.
      held_out: are they of the validation split?
    """

    prompt: int
    texts: Sequence[Text]
    comparisons: Sequence[Comparison]
    held_out: bool


@dataclasses.dataclass(frozen=True)
class PreferenceStore:
    """An open folder, or the comparisons of one split of it.

    Attributes:
      folder: where it lies.
      manifest: what was read, what was left out and why, counts and checksums.
      prompts: what stands for the prompt of each comparison here, int64.
      pairs: numbers of the chosen and of the rejected text of each, int64 [comparisons, 2].
      lengths: tokens of each text, by its number, int64.
      margins: how much better the chosen one is, float32.
    """

    folder: str
    manifest: dict[str, Any]
    prompts: np.ndarray
    pairs: np.ndarray
    lengths: np.ndarray
    margins: np.ndarray
    _starts: np.ndarray
    _answers: np.ndarray
    _tokens: np.ndarray

    @classmethod
    def open(cls, folder: str, held_out: bool) -> "PreferenceStore":
        """What `write` made: the comparisons that are held out, or the others.

        Raises:
          ValueError: a file is missing or altered; names it, and the folder to delete.
        """
        manifest = unsealed(folder, _FILES, FORMAT)

        def whole(name: str, kind: str) -> np.ndarray:
            return np.fromfile(os.path.join(folder, name), kind)

        here = np.flatnonzero(whole(_HELD_OUT, "?") == held_out)
        starts = whole(_STARTS, "<i8")
        return cls(
            folder,
            manifest,
            whole(_PROMPTS, "<i8")[here],
            whole(_PAIRS, "<i8").reshape(-1, 2)[here],
            np.diff(starts),
            whole(_MARGINS, "<f4")[here],
            starts,
            whole(_ANSWERS, "<i8"),
            mapped(folder, _TOKENS, "<i4"),
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def first(self, count: int) -> "PreferenceStore":
        """The first `count` comparisons, or as many as there are."""
        cut = {name: getattr(self, name)[:count] for name in ("prompts", "pairs", "margins")}
        return dataclasses.replace(self, **cut)

    def texts(self, number: int) -> tuple[Text, Text]:
        """(chosen, rejected) of the `number`-th comparison here."""
        chosen, rejected = map(self.text, self.pairs[number])
        return chosen, rejected

    def text(self, number: int) -> Text:
        """The text of that number."""
        tokens = np.array(self._tokens[self._starts[number] : self._starts[number + 1]])
        return Text(tokens, int(self._answers[number]))

    @property
    def fingerprint(self) -> int:
        """Stands for the contents, whatever folder they lie in."""
        return contents(self.manifest, _FILES)


def write(folder: str, kept: Iterable[Kept], about: dict[str, Any]) -> dict[str, Any]:
    """Writes comparisons into `folder`, which exists and is empty; equal ones give equal bytes.

    Args:
      kept: read once; `about` may change until it ends, since the manifest is written last.
      about: what else the manifest says.
    Returns: the manifest.
    """
    starts, answers, pairs, margins, prompts, held_out = [0], [], [], [], [], []
    with open(os.path.join(folder, _TOKENS), "wb") as tokens:
        for prompt, texts, comparisons, held in kept:
            first = len(answers)
            for text in texts:
                tokens.write(np.asarray(text.tokens, "<i4").tobytes())
                starts.append(starts[-1] + len(text.tokens))
                answers.append(text.start)
            for chosen, rejected, margin in comparisons:
                pairs.append((first + chosen, first + rejected))
                margins.append(margin)
                prompts.append(prompt)
                held_out.append(held)
    columns = ((_STARTS, starts, "<i8"), (_ANSWERS, answers, "<i8"), (_PAIRS, pairs, "<i8"))
    columns += ((_MARGINS, margins, "<f4"), (_PROMPTS, prompts, "<i8"), (_HELD_OUT, held_out, "?"))
    for name, values, kind in columns:
        np.array(values, kind).tofile(os.path.join(folder, name))
    counts = {"comparisons": len(pairs), "held_out": sum(held_out), "prompts": len(set(prompts))}
    return seal(folder, _FILES, FORMAT, {**about, **counts, "texts": len(answers), "tokens": starts[-1]})
