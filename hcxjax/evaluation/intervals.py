"""How sure a share is, where answers to one prompt are no independent trials."""

import math

import numpy as np

_Z = 1.959964
"""Two-sided 95 % of a normal distribution."""


def wilson(share: float, count: float) -> tuple[float, float]:
    """95 % interval of a share of `count` independent trials. Source: Wilson 1927, JASA 22, p. 209."""
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return middle - half, middle + half


def share_between(right: np.ndarray, groups: np.ndarray) -> tuple[float, float, float]:
    """(share, low, high): how often it is right, with a 95 % interval.

    Wilson's interval over as many trials as would vary as much as the groups do, at most those there are: comparisons
    of one prompt are right and wrong together. Where all or none are right, a trial for each group.

    Source: the clustered standard error of Miller 2024, arXiv:2411.00640, section 2.2; that it sets the trials of
    Wilson's interval is our choice, since a normal one breaks near 0 and 1.

    Args:
      right: of each trial, between 0 and 1.
      groups: what stands for each one's group.
    """
    share, count = float(np.mean(right)), len(right)
    _, number = np.unique(groups, return_inverse=True)
    variance = float(np.sum(np.square(np.bincount(number, right - share)))) / count**2
    trials = share * (1 - share) / variance if variance else float(number.max() + 1)
    return share, *wilson(share, min(trials, count))
