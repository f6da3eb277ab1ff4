import sys

import pytest

from hcxjax.text import morphemes
from hcxjax.text.morphemes import Morphemes, split_words


def test_a_word_is_split_into_morphemes_that_join_to_it():
    analyser = Morphemes()
    assert analyser.split("학교에서") == ("학교", "에서")
    assert analyser.split("부산까지") == ("부산", "까지")
    for word in ("만났다", "먹었습니다", "갔", "뷁궭"):
        assert "".join(analyser.split(word)) == word


def test_processes_split_as_one_process_does(monkeypatch):
    words = ["학교에서", "친구를", "만났다"] * 3
    alone = split_words(words)
    monkeypatch.setattr(morphemes, "_WORTH_PROCESSES", 1)
    monkeypatch.setattr(morphemes, "_CHUNK", 4)
    assert split_words(words, processes=2) == alone
    assert alone["친구를"] == ("친구", "를")


def test_a_missing_analyser_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "mecab", None)
    with pytest.raises(ValueError, match=r"pip install python-mecab-ko.*Tokenizer.morphemes = False"):
        Morphemes()
    with pytest.raises(ValueError, match="pip install python-mecab-ko"):
        split_words(["학교"], processes=2)
