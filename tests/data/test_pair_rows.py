"""Which comparisons share a row: each is in one, with as few texts as a row has."""

import itertools

import numpy as np
import pytest

from hcxjax.data.pair_rows import shared


def texts_of(pairs, row):
    return set(pairs[list(row)].flat)


def drawn(rng):
    """Comparisons of some records, of 2 to 9 texts each; some of them twice, or both ways round."""
    pairs, before = [], 0
    for count in rng.integers(2, 10, size=6):
        both = before + np.array(list(itertools.permutations(range(count), 2)))
        pairs.append(both[rng.integers(0, len(both), size=rng.integers(1, 2 * len(both)))])
        before += count
    return np.concatenate(pairs)


@pytest.mark.parametrize("texts", [2, 3, 4, 7])
def test_every_comparison_is_in_one_row(texts):
    for seed in range(40):
        pairs = drawn(np.random.default_rng(seed))
        rows = shared(pairs, texts)
        assert sorted(number for row in rows for number in row) == list(range(len(pairs)))
        assert [row[0] for row in rows] == sorted(row[0] for row in rows)
        for row in rows:
            assert len(texts_of(pairs, row)) <= texts
            assert len({frozenset(pair) for pair in pairs[list(row)].tolist()}) == len(row)
            assert list(row) == sorted(row)


def test_with_two_texts_a_row_is_a_comparison():
    pairs = drawn(np.random.default_rng(0))
    assert shared(pairs, 2) == [(number,) for number in range(len(pairs))]


def test_what_hangs_together_is_one_row_where_it_fits():
    chain, star, ring = [(0, 1), (3, 2), (1, 2)], [(4, 5), (4, 6), (4, 7)], [(8, 9), (9, 10), (10, 8)]
    apart = [(11, 12), (14, 13)]
    pairs = np.array([*chain, *star, *ring, *apart])
    assert shared(pairs, 4) == [(0, 1, 2), (3, 4, 5), (6, 7, 8), (9,), (10,)]
    every = np.array(list(itertools.combinations(range(4), 2)))
    assert shared(every, 4) == [tuple(range(6))]


def test_more_texts_than_a_row_has_are_parted_into_few_rows():
    every = np.array(list(itertools.combinations(range(6), 2)))
    rows = shared(every, 4)
    assert sorted(number for row in rows for number in row) == list(range(15))
    assert len(rows[0]) == 6, "a row of four texts that are all compared is full"
    assert len(rows) <= 4
    one_good = np.array([(0, other) for other in range(1, 10)])
    assert [len(row) for row in shared(one_good, 4)] == [3, 3, 3]
