import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcxjax.text.words import hangul, parts, runs, words

PIECES = st.sampled_from(
    ["가나", " 다", "ab", " cd", "_x", "1", " 2", "\n", "\n    ", "\t", "  ", ");\n\t", "é", "\u3000", "🎉"]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(PIECES, st.text(max_size=3))).map("".join))
def test_nothing_is_lost(text):
    assert "".join(runs(text)) == text
    assert all("".join(words(run)) == run for run in runs(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("학교에서 배우고", ["학교에서", " 배우고"]),
        ("Python은 3.12", ["Python", "은", " ", "3", ".", "1", "2"]),
        ("foo(bar);\n    return x", ["foo(bar);\n    ", "return", " x"]),
        ("a\n    b", ["a", "\n    ", "b"]),
        ("a  b", ["a", "  ", "b"]),
    ],
)
def test_runs_keep_indentation_whole_and_the_space_with_its_word(text, expected):
    assert runs(text) == expected


def test_words_part_letters_from_the_mark_after_them():
    assert words(" self.name,") == [" self", ".name", ","]
    assert words("snake_case") == ["snake", "_case"]
    assert words("years,") == ["years", ","]


def test_a_run_is_cut_at_the_morphemes_that_are_known():
    known = {"학교에서": ("학교", "에서")}
    assert parts(" 학교에서", known) == [" 학교", "에서"]
    assert parts(" 친구를", known) == [" 친구를"]
    assert hangul(" 학교에서") == "학교에서"
    assert hangul(" a") is None
