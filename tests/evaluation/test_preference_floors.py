"""Floors of pair accuracy: bags of bigrams learn what they can, and nothing that depends on the order."""

import itertools

import numpy as np
import pytest

from hcxjax.evaluation.preference_floors import Bigrams, lengths, preferred


def drawn(count, seed, telling=0.9):
    """Pairs of which the chosen answer has the bigram (3, 4), mostly, and the rejected one does not."""
    rng, pairs = np.random.default_rng(seed), []
    for _ in range(count):
        sides = [rng.integers(5, 40, rng.integers(4, 20)) for _ in range(2)]
        side = int(rng.random() > telling)
        at = rng.integers(0, len(sides[side]) - 1)
        sides[side][at : at + 2] = 3, 4
        pairs.append((sides[0], sides[1]))
    return pairs


def test_a_bag_of_bigrams_learns_the_bigram_that_tells():
    bigrams, held = Bigrams(drawn(400, 0)), drawn(400, 1)
    right = preferred(bigrams.differences(held))
    assert 0.82 < right.mean() < 0.97
    turned = bigrams.differences([(rejected, chosen) for chosen, rejected in held])
    np.testing.assert_allclose(turned, -bigrams.differences(held), atol=1e-12)


def test_its_weights_are_the_minimum():
    """The slope of Σ log(1 + e^−x·w) + ½ |w|² is 0, which a solver of its own finds too."""
    pairs = drawn(15, 2)
    codes = sorted({pair for both in pairs for side in both for pair in itertools.pairwise(side)})
    column = {code: number for number, code in enumerate(codes)}
    x = np.zeros((15, len(codes)))
    for row, both in enumerate(pairs):
        for side, sign in zip(both, (1, -1), strict=True):
            for code in itertools.pairwise(side):
                x[row, column[code]] += sign
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    w = np.zeros(len(codes))
    for _ in range(12):
        p = 1 / (1 + np.exp(-x @ w))
        slope = w - x.T @ (1 - p)
        w -= np.linalg.solve(np.eye(len(w)) + (x.T * (p * (1 - p))) @ x, slope)
    np.testing.assert_allclose(Bigrams(pairs).differences(pairs), x @ w, atol=1e-4)


def test_pairs_without_bigrams_or_with_the_same_ones():
    same = (np.array([1, 2, 3]), np.array([1, 2, 3]))
    with pytest.raises(ValueError, match="nothing to learn from"):
        Bigrams([same, (np.array([1]), np.array([2]))])
    bigrams = Bigrams(drawn(20, 3))
    assert bigrams.differences([same, (np.array([1]), np.array([2]))]).tolist() == [0, 0]


def test_lengths_and_ties():
    assert lengths([(np.arange(3), np.arange(2)), (np.arange(1), np.arange(1))]).tolist() == [[3, 2], [1, 1]]
    assert preferred(np.array([2.0, -0.1, 0.0])).tolist() == [1, 0, 0.5]
