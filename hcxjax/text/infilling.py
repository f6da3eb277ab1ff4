"""The order in which a document's thirds are fed so that a left-to-right model learns to fill in the middle.

Source: Bavarian et al. 2022, arXiv:2207.14255, section 3 (PSM) and appendix D (joint SPM). Deviation: cuts lie at
thirds of the document, as HyperCLOVA X has it (arXiv:2404.01954, section 2), not at random characters.
"""

from typing import NamedTuple

import numpy as np

SENTINELS = 3
"""Ids that infilling adds to a document."""


class Sentinels(NamedTuple):
    """Ids that mark the thirds."""

    prefix: int
    middle: int
    suffix: int


def thirds(starts_character: np.ndarray) -> tuple[int, int]:
    """Where a document is cut: at thirds of its tokens, moved forward to where a character starts.

    Args:
      starts_character: bool, one per token (`Vocabulary.starts_character`).
    Returns: (a, b), a <= b <= n; the thirds are [:a], [a:b], [b:].
    """
    length = len(starts_character)

    def boundary(index: int) -> int:
        while index < length and not starts_character[index]:
            index += 1
        return index

    return boundary(length // 3), boundary(2 * length // 3)


def infill(tokens: np.ndarray, cuts: tuple[int, int], sentinels: Sentinels, *, suffix_first: bool) -> np.ndarray:
    """A document's tokens in the order of fill-in-the-middle; `SENTINELS` longer than `tokens`.

    PSM: `<PRE> p <SUF> s <MID> m`.   Joint SPM (`suffix_first`): `<PRE> <SUF> s <MID> p m`.

    Args:
      tokens: ids of the document.
      cuts: (a, b) as `thirds` gives them.
    """
    prefix, middle, suffix = tokens[: cuts[0]], tokens[cuts[0] : cuts[1]], tokens[cuts[1] :]
    opening, filling, ending = ([sentinel] for sentinel in sentinels)
    parts = (
        (opening, ending, suffix, filling, prefix, middle)
        if suffix_first
        else (opening, prefix, ending, suffix, filling, middle)
    )
    return np.concatenate([np.asarray(part, tokens.dtype) for part in parts])


def infilling_prompt(
    prefix: list[int], suffix: list[int], sentinels: Sentinels, *, suffix_first: bool = False
) -> list[int]:
    """What a model is given so that it writes what stands between `prefix` and `suffix`."""
    if suffix_first:
        return [sentinels.prefix, sentinels.suffix, *suffix, sentinels.middle, *prefix]
    return [sentinels.prefix, *prefix, sentinels.suffix, *suffix, sentinels.middle]


def reading_order(tokens: np.ndarray, sentinels: Sentinels, cuts: tuple[int, int] | None = None) -> np.ndarray:
    """Undoes `infill`: the document as it reads.

    Args:
      cuts: needed for joint SPM alone, and there only a check: prefix and middle already stand in order.
    Raises:
      ValueError: `tokens` are not of the form that `infill` gives.
    """
    places = [np.flatnonzero(tokens == sentinel) for sentinel in (sentinels.prefix, sentinels.suffix, sentinels.middle)]
    if any(len(place) != 1 for place in places) or places[0][0] != 0 or places[1][0] > places[2][0]:
        raise ValueError(f"not an infilled document: sentinels stand at {[place.tolist() for place in places]}")
    suffix_at, middle_at = int(places[1][0]), int(places[2][0])
    document = np.concatenate([tokens[1:suffix_at], tokens[middle_at + 1 :], tokens[suffix_at + 1 : middle_at]])
    if cuts is not None and len(document) < cuts[1]:
        raise ValueError(f"cuts {cuts} lie beyond the document's {len(document)} tokens")
    return document
