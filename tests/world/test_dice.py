import pytest

from hcxjax.world.dice import Dice


def test_a_key_names_its_choices_for_good():
    dice = Dice(0, "train", "scene", 7)
    drawn = [dice.number(0, 999) for _ in range(5)]
    assert drawn == [700, 998, 471, 545, 231], (
        "the stream changed: every stored document, index and seed would mean something else"
    )


def test_keys_are_independent():
    keys = [("a", 1), ("a", 2), ("b", 1), (1, "a"), ("a",)]
    assert len({tuple(Dice(*key).draw(range(1000), 5)) for key in keys}) == len(keys)


def test_draws_differ_and_are_uniform():
    dice = Dice("draws")
    counts = [0] * 6
    for _ in range(3000):
        drawn = dice.draw(range(6), 3)
        assert len(set(drawn)) == 3
        for value in drawn:
            counts[value] += 1
    assert min(counts) > 1350 and max(counts) < 1650
    assert {dice.number(2, 4) for _ in range(100)} == {2, 3, 4}


def test_too_many_are_refused():
    with pytest.raises(ValueError, match="cannot draw 3"):
        Dice(0).draw("ab", 3)
