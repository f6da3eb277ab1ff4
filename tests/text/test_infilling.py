import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcxjax.text.infilling import SENTINELS, Sentinels, infill, infilling_prompt, reading_order, thirds

MARKS = Sentinels(prefix=100, middle=101, suffix=102)


def test_orders_are_those_of_the_paper():
    tokens = np.arange(6, dtype=np.int32)
    psm = infill(tokens, (2, 4), MARKS, suffix_first=False)
    spm = infill(tokens, (2, 4), MARKS, suffix_first=True)
    assert psm.tolist() == [100, 0, 1, 102, 4, 5, 101, 2, 3]
    assert spm.tolist() == [100, 102, 4, 5, 101, 0, 1, 2, 3]
    assert psm.dtype == np.int32


def test_cuts_move_forward_to_a_character():
    starts = np.array([True, True, True, False, False, True, False, True, True])
    assert thirds(starts) == (5, 7)
    assert thirds(np.ones(9, bool)) == (3, 6)
    assert thirds(np.array([True, False, False])) == (3, 3)
    assert thirds(np.ones(0, bool)) == (0, 0)


@given(length=st.integers(0, 40), spm=st.booleans(), data=st.data())
def test_undone_it_is_the_document(length, spm, data):
    tokens = np.array(data.draw(st.lists(st.integers(0, 99), min_size=length, max_size=length)), np.int32)
    cuts = thirds(np.array(data.draw(st.lists(st.booleans(), min_size=length, max_size=length)), bool))
    infilled = infill(tokens, cuts, MARKS, suffix_first=spm)
    assert len(infilled) == length + SENTINELS
    assert reading_order(infilled, MARKS).tolist() == tokens.tolist()


@pytest.mark.parametrize("spm", [False, True])
def test_a_prompt_is_what_training_shows_before_the_middle(spm):
    prefix, middle, suffix = [1, 2], [3], [4, 5, 6]
    infilled = infill(np.array(prefix + middle + suffix), (2, 3), MARKS, suffix_first=spm).tolist()
    assert infilled == [*infilling_prompt(prefix, suffix, MARKS, suffix_first=spm), *middle]


def test_other_orders_are_refused():
    with pytest.raises(ValueError, match="not an infilled document"):
        reading_order(np.array([100, 1, 101, 2, 102, 3]), MARKS)
