import pytest

from hcxjax.world import names
from hcxjax.world.hangul import final_consonant

INVENTORIES = [names.PEOPLE, names.PLACES, names.THINGS, names.EVENTS]


@pytest.mark.parametrize("inventory", INVENTORIES)
def test_splits_share_parts_but_no_name(inventory):
    train, validation = inventory["train"], inventory["validation"]
    for language in ("korean", "english"):
        known, new = ({getattr(noun, language) for noun in split} for split in (train, validation))
        assert len(known) == len(train) and len(new) == len(validation) and not known & new
    syllables = {letter for noun in train for letter in noun.korean}
    assert {letter for noun in validation for letter in noun.korean} <= syllables
    chunks = {noun.english[i : i + 3].lower() for noun in train for i in range(len(noun.english) - 1)}
    new_chunks = [noun.english[i : i + 2].lower() for noun in validation for i in range(len(noun.english) - 1)]
    assert sum(any(piece in chunk for chunk in chunks) for piece in new_chunks) > 0.9 * len(new_chunks)


@pytest.mark.parametrize("split", names.SPLITS)
def test_names_end_in_vowels_and_consonants(split):
    for inventory in (names.PEOPLE, names.PLACES):
        closed = sum(final_consonant(noun.korean) > 0 for noun in inventory[split])
        assert 0.2 < closed / len(inventory[split]) < 0.8
    assert any(final_consonant(noun.korean) == 8 for noun in names.PLACES[split])


def test_no_name_is_a_part_of_another():
    everyone = [noun for split in names.SPLITS for noun in names.PEOPLE[split] + names.PLACES[split]]
    for language in ("korean", "english"):
        spelled = [getattr(noun, language) for noun in everyone]
        assert len(set(spelled)) == len(spelled)
        assert not [(one, other) for one in spelled for other in spelled if one != other and one in other]
