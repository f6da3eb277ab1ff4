"""Intervals of shares: against published values, and that prompts count and not comparisons alone."""

import numpy as np
import pytest

from hcxjax.evaluation.intervals import share_between, wilson


@pytest.mark.parametrize(
    ("share", "count", "low", "high"),
    [(0.5, 10, 0.2366, 0.7634), (0.8, 50, 0.6696, 0.8876), (1.0, 20, 0.8389, 1.0), (0.0, 20, 0.0, 0.1611)],
)
def test_wilson_s_interval(share, count, low, high):
    assert wilson(share, count) == pytest.approx((low, high), abs=1e-4)


def test_independent_trials_have_wilson_s_interval():
    right = np.repeat([1.0, 0.0, 0.5], [60, 30, 10])
    share, low, high = share_between(np.repeat([1.0, 0.0], [60, 40]), np.arange(100))
    assert (share, low, high) == pytest.approx((0.6, *wilson(0.6, 100)))
    assert share_between(right, np.arange(100))[0] == 0.65


def test_trials_that_go_together_count_less():
    right, groups = np.repeat([1.0, 0.0], [60, 40]), np.repeat(np.arange(10), 10)
    assert share_between(right, groups) == pytest.approx((0.6, *wilson(0.6, 10)))
    within = np.tile([1.0, 0.0], 50)  # half of every prompt: prompts do not differ at all
    assert share_between(within, groups) == pytest.approx((0.5, *wilson(0.5, 10)))
    evened = np.concatenate([np.arange(10) < wins for wins in (6, 4) * 5]).astype(float)  # more alike than by chance
    assert share_between(evened, groups) == pytest.approx((0.5, *wilson(0.5, 100)))
    assert share_between(np.ones(100), groups) == pytest.approx((1.0, *wilson(1.0, 10)))


def test_the_interval_covers_as_often_as_it_says():
    rng, covered = np.random.default_rng(0), 0
    groups = np.repeat(np.arange(60), 5)
    for _ in range(300):
        chances = rng.beta(1.4, 0.6, 60)  # 0.7 on average, each prompt its own
        _, low, high = share_between((rng.random(300) < chances[groups]).astype(float), groups)
        covered += low <= 0.7 <= high
    assert 0.92 < covered / 300 < 0.98
