from hcxjax.data.merges import learn_merges


def learnt(sequences, count=10, forbidden=()):
    units = {}

    def join(left, right):
        if (left, right) in forbidden:
            return None
        return units.setdefault((left, right), 100 + len(units))

    merges = learn_merges(sequences, join)
    taken = [unit for _, unit in zip(range(count), merges, strict=False)]
    names = {unit: pair for pair, unit in units.items()}
    return [names[unit] for unit in taken]


def test_the_heaviest_pair_is_joined_first_and_again_with_its_neighbour():
    assert learnt([([1, 2, 3], 5.0), ([2, 3], 1.0), ([1, 2], 2.0)]) == [(1, 2), (100, 3), (2, 3)]


def test_equal_weights_go_by_id():
    assert learnt([([3, 4], 1.0), ([1, 2], 1.0)]) == [(1, 2), (3, 4)]


def test_repeats_do_not_overlap():
    assert learnt([([1, 1, 1, 1], 1.0)]) == [(1, 1), (100, 100)]


def test_what_must_stay_apart_does():
    assert learnt([([1, 2, 3], 5.0)], forbidden={(1, 2)}) == [(2, 3), (1, 100)]
