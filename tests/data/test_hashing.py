import numpy as np

from hcxjax.data.hashing import drawn, fingerprint, mixed, shuffled


def test_hashes_never_change():
    assert mixed(0) == 0xE220A8397B1DCDAF  # SplitMix64's first output for seed 0
    assert mixed(1, 2) == mixed(1, 2) != mixed(2, 1)
    assert mixed(-1) == mixed((1 << 64) - 1)


def test_coins_fall_as_often_as_asked():
    shares = [np.mean([drawn(share, 7, trial) for trial in range(4000)]) for share in (0.0, 0.25, 1.0)]
    np.testing.assert_allclose(shares, [0, 0.25, 1], atol=0.025)


def test_fingerprints_fit_a_checkpoint_and_tell_values_apart():
    prints = {fingerprint(value) for value in (1, "1", [1], {"a": 1}, None, 1.5, np.int64(2))}
    assert len(prints) == 7
    assert all(0 <= value < 1 << 63 for value in prints)
    assert fingerprint("가", 1) == 2417921455911946688
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def test_shuffles_are_permutations_that_never_change():
    order = shuffled(1000, 1, 2)
    assert sorted(order) == list(range(1000))
    assert shuffled(6, 1, 2).tolist() == [5, 4, 2, 3, 0, 1] != shuffled(6, 1, 3).tolist()
    assert sum(order == np.arange(1000)) < 10
    assert shuffled(0, 1).tolist() == []
