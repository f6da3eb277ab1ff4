"""Near-duplicates against true Jaccard similarities, and the rule against a comparison of all with all."""

import random
import subprocess
import sys
import time

import numpy as np
import pytest

from hcxjax.data.cleaning.duplicates import EXACT, NEAR, NearDuplicates, duplicates, exact_key
from hcxjax.data.cleaning.windows import window_hashes
from hcxjax.world import World

TEXTS = list(World().documents("ko", count=60))


def by_all_pairs(ids, keys, signatures, near):
    """The rule as it is written."""
    found = {}
    for one, own in enumerate(ids):
        for reason, matches in (
            (EXACT, lambda other, one=one: keys[one] == keys[other]),
            (
                NEAR,
                lambda other, one=one: (
                    near.alike(signatures[one], signatures[other])
                    and set(near.bands_of(signatures[one])) & set(near.bands_of(signatures[other]))
                ),
            ),
        ):
            smaller = [ids[other] for other in range(len(ids)) if ids[other] < own and matches(other)]
            if smaller:
                found[own] = (reason, min(smaller))
                break
    return found


@pytest.mark.parametrize("seed", range(20))
def test_the_rule_is_that_of_all_pairs_in_any_order(seed):
    near, draw = NearDuplicates(threshold=0.5, permutations=12, bands=4), np.random.default_rng(seed)
    base = draw.integers(0, 5, (6, 12)).astype(np.uint32)
    rows = base[draw.integers(0, 6, 80)]
    rows = np.where(draw.random(rows.shape) < 0.2, draw.integers(0, 5, rows.shape), rows).astype(np.uint32)
    signatures = [row if draw.random() < 0.9 else row[:0] for row in rows]
    ids, keys = draw.permutation(1000)[:80].tolist(), draw.integers(0, 40, 80).tolist()
    expected = by_all_pairs(ids, keys, signatures, near)
    assert len({reason for reason, _ in expected.values()}) == 2
    assert duplicates(ids, keys, signatures, near) == expected
    order = draw.permutation(80).tolist()
    assert (
        duplicates([ids[o] for o in order], [keys[o] for o in order], [signatures[o] for o in order], near) == expected
    )


def test_chains_are_not_closed():
    near = NearDuplicates(threshold=0.75, permutations=4, bands=4)
    chain = np.array([[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1]], np.uint32)
    # The last is like the middle one, which goes itself, and not like the first.
    assert duplicates([5, 6, 7], [1, 2, 3], chain, near) == {6: (NEAR, 5), 7: (NEAR, 6)}


def test_thousands_of_equal_signatures_take_no_time():
    near, start = NearDuplicates(), time.perf_counter()
    signatures = np.repeat(near.signature(TEXTS[0])[None], 5_000, axis=0)
    found = duplicates(np.arange(5_000), np.arange(5_000), signatures, near)
    assert len(found) == 4_999 and set(found.values()) == {(NEAR, 0)}
    assert time.perf_counter() - start < 10


def test_estimates_lie_near_true_similarities():
    near, draw, errors = NearDuplicates(), random.Random(0), []
    for text in TEXTS:
        words = " ".join(TEXTS[:5]).split() + text.split()
        other = [word for word in words if draw.random() > 0.03]
        sets = ["".join(piece).lower() for piece in (words, other)]
        windows = [{piece[at : at + 8] for at in range(len(piece) - 7)} for piece in sets]
        true = len(windows[0] & windows[1]) / len(windows[0] | windows[1])
        ours = np.mean(near.signature(" ".join(words)) == near.signature(" ".join(other)))
        errors.append(ours - true)
    assert abs(np.mean(errors)) < 0.02
    assert np.std(errors) < 0.06  # sqrt(0.16 / 120) = 0.037 at 0.8


def test_spacing_and_form_change_neither_key_nor_signature():
    near, text = NearDuplicates(), TEXTS[0]
    assert exact_key("가 나\n다") == exact_key(" 가  나 다") == exact_key("\u1100\u1161 나 다") != exact_key("가나 다")
    assert exact_key("ＡＢ") == exact_key("ab")
    assert near.alike(near.signature(text), near.signature(text.replace(" ", "")))
    assert not len(near.signature("짧은 글")) and near.bands_of(near.signature("짧은 글")) == []


def test_hashes_are_the_same_in_every_process():
    program = (
        "from hcxjax.data.cleaning.duplicates import *; n = NearDuplicates();"
        "s = n.signature('가나다라 마바사 abc ' * 9 + 'x y z');"
        "print(exact_key('가나다'), s[:3].tolist(), n.bands_of(s)[:2])"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
        ).stdout
        for seed in ("1", "2")
    }
    # A change of these numbers makes written signatures worthless: raise no version of rensa that changes them.
    assert answers == {GOLDEN}


GOLDEN = "4908871267180907638 [2433895718, 2741010582, 3238736362] [10153461598673135717, 17770567539203611923]\n"


def test_windows_are_equal_where_their_values_are():
    values = np.array([3, 1, 4, 1, 5, 9, 2, 6] * 20 + [7, 7], np.uint64)
    for size in (1, 2, 3, 5, 8, 13, 30, 160, 162):
        hashes = window_hashes(values, size)
        windows = [tuple(values[at : at + size].tolist()) for at in range(len(values) - size + 1)]
        assert len(hashes) == len(windows)
        assert len(set(hashes.tolist())) == len(set(windows)) == len(set(zip(hashes.tolist(), windows, strict=True)))
    assert len(window_hashes(values, 163)) == 0


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match="permutations is 100; it must be a multiple of bands, 30"):
        NearDuplicates(permutations=100, bands=30)
    with pytest.raises(ValueError, match="2 ids"):
        duplicates([1, 1], [1, 2], [np.zeros(0)] * 2, NearDuplicates())
