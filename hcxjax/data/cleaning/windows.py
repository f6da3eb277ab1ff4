"""Hashes of all windows of a text at once, the same on every machine: the n-grams of duplicates and of overlap."""

import numpy as np

from hcxjax.data.cleaning.characters import edges

_BASE = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_LONGEST_WORD = 4096


def window_hashes(values: np.ndarray, size: int) -> np.ndarray:
    """uint64 hash of every window of `size` values: a polynomial modulo 2^64, its bits then mixed.

    Windows of 2, 4, 8, ... values are put together from two of half the size, so a window of 30 takes seven additions.
    """
    if len(values) < size:
        return np.zeros(0, np.uint64)
    count = len(values) - size + 1
    block, width, factor = values.astype(np.uint64), 1, _BASE
    total, covered = np.zeros(len(values), np.uint64), 0
    while True:
        if size & width:
            # `total` is the hash of the first `covered` values of each window, and `block` goes on from there.
            fit = len(block) - covered
            total = total[:fit] * np.uint64(factor) + block[covered:]
            covered += width
        if covered == size:
            return mixed(total[:count])
        block = block[:-width] * np.uint64(factor) + block[width:]
        factor, width = factor * factor & _MASK, 2 * width


def word_hashes(points: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """uint64 hash of every run of code points that are `inside`: a polynomial again, summed run by run."""
    starts, ends = edges(inside)
    if not len(starts):
        return np.zeros(0, np.uint64)
    lengths = ends - starts
    firsts = np.cumsum(lengths) - lengths
    place = np.arange(int(lengths.sum())) - np.repeat(firsts, lengths)
    weighted = (points[inside].astype(np.uint64) + np.uint64(1)) * _POWERS[place % _LONGEST_WORD]
    return mixed(np.add.reduceat(weighted, firsts))


def mixed(values: np.ndarray) -> np.ndarray:
    """The end of SplitMix64, Steele et al. 2014, figure 10: a bijection that spreads every bit over all of them."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


_POWERS = np.cumprod(np.full(_LONGEST_WORD, _BASE, np.uint64))
