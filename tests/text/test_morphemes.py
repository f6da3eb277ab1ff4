import sys

import pytest

from hcxjax.text.morphemes import Morphemes


def test_only_boundaries_inside_words_are_added():
    text = "학교에서 친구를 만났다.\r\n\tprint(3)  서울에서🎉부산까지 \x00 a에서b ㅋㅋ"
    marked = Morphemes().mark(text, "|")
    assert "학교|에서 친구|를" in marked
    assert "서울|에서🎉부산|까지" in marked
    assert marked.replace("|", "") == text
    assert "| " not in marked
    assert " |" not in marked


def test_a_missing_analyser_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "mecab", None)
    with pytest.raises(ValueError, match=r"pip install python-mecab-ko.*Tokenizer.morphemes = False"):
        Morphemes()
