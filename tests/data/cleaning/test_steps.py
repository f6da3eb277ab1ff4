"""Steps in a row, and the counts of what they did."""

import json
import pickle

import pytest

from hcxjax.data.cleaning.language import LetterShare, Mojibake
from hcxjax.data.cleaning.quality import Length, Lines, StopWords, Symbols, Words
from hcxjax.data.cleaning.report import write_report
from hcxjax.data.cleaning.steps import Outcome, clean
from hcxjax.data.cleaning.tally import Place, Tally, total
from hcxjax.data.cleaning.wordlists import Boilerplate, Classified, Wordlist, count_phrases

WORDS = "one two three four five six seven eight nine ten "


def swap(old, new):
    return lambda text: Outcome(text.replace(old, new), None, {old: text.count(old)} if old in text else {})


def test_steps_go_in_order_add_changes_up_and_stop_at_a_drop():
    steps = [swap("a", "b"), swap("b", "c"), swap("a", "d")]
    assert clean(steps, "ab") == Outcome("cc", None, {"a": 1, "b": 2})
    assert clean([steps[0], lambda text: Outcome(text, "no"), steps[1]], "ab") == Outcome("bb", "no", {"a": 1})


@pytest.mark.parametrize(
    ("step", "text", "reason"),
    [
        (Length(least=11), WORDS, "length: too few words"),
        (Length(least=10), WORDS, None),
        (Length(least=1, most=9), WORDS, "length: too many words"),
        (Length(least=11, enough=40), WORDS, None),
        (Words(), "a b c d", "words: too short"),
        (Words(), "x" * 11, "words: too long"),
        (Words(), "1234 5678 abcd efgh 9999", "words: too few with letters"),
        (Words(), " \n", "words: none"),
        (Words(), WORDS, None),
        (StopWords(), "lorem ipsum dolor the", "stop words: too few"),
        (StopWords(), "lorem of dolor the", None),
        (Symbols(), "see #cats and #dogs", "symbols: hashtags"),
        (Symbols(), "# Title\n## Part\nitem #3 of C#\n#include <x>", None),
        (Symbols(), "wait... what… no", "symbols: ellipses"),
        (Symbols(), "- a\n" * 5, "symbols: bullet lines"),
        (Symbols(), "- a\n" * 4, None),
        (Symbols(ellipses=9), "a...\nb...\nc\nd\ne\n", "symbols: ellipsis lines"),
        (Lines(), "x" * 1001, "lines: one too long"),
        (Lines(), "x" * 1000 + "\n" * 20, None),
        (Lines(), ("x" * 101 + "\n") * 3, "lines: too long on average"),
        (Lines(), "()[]{}abc(){}", "lines: too few letters and digits"),
        (LetterShare("hangul", 0.5), "한글 abc", "language: too little hangul"),
        (LetterShare("hangul", 0.4), "한글 abc", None),
        (LetterShare("latin", 0.5), "abc 한글 123", None),
        (Wordlist("advertising"), "Buy now! Free shipping. (Buy now)", "advertising"),
        (Wordlist("advertising"), "buy nowhere, buy nowhere, buy nowhere", None),
        (Wordlist("advertising"), "무료배송입니다 지금 바로 신청하세요 당일배송", "advertising"),
        (Wordlist("advertising", least=4), "buy now " * 3, None),
        (Boilerplate(), "Terms of use\nPrivacy policy\nContact us\n", "boilerplate"),
        (Boilerplate(), "Terms of use\nContact us\n" + WORDS, None),
        (Classified(len, 3, "long"), "abc", "long"),
        (Classified(len, 3, "long"), "ab", None),
    ],
)
def test_a_rule_holds_up_to_its_threshold(step, text, reason):
    assert step(text) == Outcome(text, reason)
    assert pickle.loads(pickle.dumps(step)) == step


@pytest.mark.parametrize("step", [Wordlist, Boilerplate])
def test_contents_are_those_of_the_phrases(tmp_path, step):
    found = []
    for name, text in (("a", "buy now\n"), ("b", "# a comment\nBuy now"), ("c", "buy here\n")):
        (tmp_path / f"{name}.txt").write_text(text)
        found.append(step(str(tmp_path / f"{name}.txt")).contents())
    assert found[0] == found[1] != found[2]


def test_phrases_stand_at_the_start_of_words():
    assert count_phrases("Fag? fags, fagot; x-fag", ("fag",)) == 2
    assert count_phrases("개년이 5개년 계획", ("개년",)) == 1


KOREAN = "안녕하세요. 오늘은 날씨가 맑고 바람이 시원해서 강가를 오래 걸었습니다."


@pytest.mark.parametrize(
    "text",
    [
        KOREAN.encode().decode("cp1252", "ignore"),
        KOREAN.encode().decode("latin-1"),
        KOREAN.encode("cp949").decode("latin-1"),
        KOREAN.encode().decode("cp949", "replace"),
        KOREAN.encode().decode("cp949", "ignore"),
        KOREAN.encode("cp949").decode("utf-8", "replace"),
        "Das Mädchen hört schöne Musik über Köln, früher öfter".encode().decode("cp1252"),
    ],
)
def test_mojibake_of_every_kind_is_found(text):
    assert Mojibake()(text).dropped == "mojibake"


@pytest.mark.parametrize(
    "text",
    [
        KOREAN,
        "Le garçon a été « très » fâché à Noël, où l’œuvre naïve dépérit… « Déjà vu » ? Français, café, CAFÉ»",
        "Größe, Straße „Übermäßig“ – Fuß»; São Paulo não é ação; ñandú ¿Qué? ¡Olé! 25 °C ± 3 µm × ½",
        "이 글은 깨진 글자 하나(\ufffd)를 설명합니다. 뷁과 똠방각하는 드문 글자입니다.",
    ],
)
def test_no_mojibake_where_letters_have_accents(text):
    assert Mojibake()(text).dropped is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LetterShare("greek"), "LetterShare.script is 'greek'"),
        (lambda: Symbols(bullets=1.5), "Symbols.bullets is 1.5"),
        (lambda: Length(least=5, most=4), "Length.most is 4"),
        (lambda: StopWords(words=("a",)), "StopWords.words has 1"),
        (lambda: Wordlist("nowhere")("x"), "Wordlist.name is 'nowhere'.*advertising"),
        (lambda: Classified("hate", 0.5, "x"), "Classified.classifier is 'hate'"),
    ],
)
def test_settings_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def counted(part, texts):
    tally = Tally(most_examples=2)
    for record, text in enumerate(texts):
        tally.add(text, clean([swap("a", "b"), Length(least=1)], text), Place("ko", part, record))
    return tally


def test_tallies_add_up_in_any_order_and_survive_json():
    parts = [counted(10, ["a", "", "가a"]), counted(9, ["", "x", ""]), counted(2, ["aa"])]
    parts[2].add_unread("malformed", Place("ko", 2, 7))
    together, backwards = total(parts), total(parts[::-1])
    assert together.to_json() == backwards.to_json()
    assert json.dumps(together.to_json()) == json.dumps(backwards.to_json())
    assert Tally.from_json(json.loads(json.dumps(together.to_json()))) == together
    assert (together.documents, together.kept, together.bytes_in, together.bytes_out) == (8, 4, 8, 8)
    assert together.dropped == {"length: too few words": 3, "malformed": 1}
    assert together.changed == {"a": 4} and together.changed_documents == {"a": 3}
    shown = [str(example.place) for example in together.examples["length: too few words"]]
    assert shown == ["ko:9:0", "ko:9:2"]  # by number, not by letter: 9 comes before 10


def test_what_was_kept_can_be_taken_back():
    tally = counted(0, ["xyz", "가"])
    tally.drop_kept("near-duplicate", Place("ko", 0, 1), "가")
    assert (tally.documents, tally.kept, tally.bytes_out, tally.dropped_bytes) == (2, 1, 3, {"near-duplicate": 3})


def test_examples_of_changes_show_the_mask_alone():
    tally = Tally()
    tally.add("from secret here", Outcome("from *** here", None, {"name": 1}), Place("ko", 0, 0))
    assert tally.examples["name"][0].excerpt == "from *** here"


def test_the_report_tells_counts_and_examples_only_if_asked(tmp_path):
    tallies = {"ko": counted(0, ["a secret", ""]), "en": counted(1, ["plot"])}
    text = write_report(tmp_path, tallies).read_text()
    assert "| ko | 2 | 1 |" in text and "| length: too few words | 0 | 1 |" in text and "| a | 0 | 1 |" in text
    assert "secret" not in text
    assert "b secret" in write_report(tmp_path, tallies, examples=True).read_text()
