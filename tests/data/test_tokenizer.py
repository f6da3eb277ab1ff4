import json

import pytest

from hcxjax.data.tokenizer import Tokenizer
from hcxjax.data.tokenizer_training import _sequences
from hcxjax.text.vocabulary import Vocabulary
from hcxjax.world import LANGUAGES, World


@pytest.fixture(scope="module")
def texts():
    return [text for language in LANGUAGES for text in World().documents(language, count=100)]


def pieces(vocabulary):
    return {vocabulary.token_bytes(token).decode(errors="replace") for token in range(vocabulary.size)}


def test_training_is_deterministic_and_happens_once(tmp_path, texts):
    tokenizer = Tokenizer(size=500, reserved=4)
    prints = [tokenizer.load(str(tmp_path / name), lambda: texts).fingerprint for name in ("one", "two")]
    assert prints[0] == prints[1]
    again = tokenizer.load(str(tmp_path / "one"), lambda: pytest.fail("trained twice"))
    assert again.fingerprint == prints[0]
    card = json.loads((tmp_path / "one" / "tokenizer.json").read_text())
    assert card["sha256"] == prints[0]
    assert card["trained_on"] == {"documents": 300, "bytes": sum(len(text.encode()) for text in texts)}


def test_no_merge_runs_across_a_morpheme(tmp_path):
    texts = ["학교에서 배우고 학교에서 놀고 학교에서 먹는다."] * 50
    crossing = {}
    for morphemes in (True, False):
        vocabulary = Tokenizer(size=420, morphemes=morphemes).load(str(tmp_path / str(morphemes)), lambda: texts)
        crossing[morphemes] = any("교에" in piece for piece in pieces(vocabulary))
        assert any("학교" in piece for piece in pieces(vocabulary))
        assert not any("\ue0ff" in piece for piece in pieces(vocabulary))  # the boundary itself
    assert crossing == {True: False, False: True}


def test_whitespace_is_compact_and_digits_are_single(tmp_path):
    texts = ["class A:\n    def f(self):\n\t\treturn 2024\n\n\n"] * 100
    vocabulary = Tokenizer(size=420).load(str(tmp_path / "t"), lambda: texts)
    assert len(vocabulary.encode("\n    ")) <= 2
    assert len(vocabulary.encode("\n\n\n")) <= 2
    assert len(vocabulary.encode("\t\t")) == 1
    assert len(vocabulary.encode("2024")) == 4


def test_long_texts_are_not_skipped(tmp_path):
    text = "word " * 100 + "플라밍고" * 20_000
    vocabulary = Tokenizer(size=420, morphemes=False).load(str(tmp_path / "t"), lambda: [text])
    assert any("플라밍고" in piece for piece in pieces(vocabulary))


def test_more_characters_than_fit_become_bytes(tmp_path):
    texts = ["".join(chr(0xAC00 + 7 * number) for number in range(1500))] * 3
    vocabulary = Tokenizer(size=400).load(str(tmp_path / "t"), lambda: texts)
    assert vocabulary.size <= 400
    assert vocabulary.decode(vocabulary.encode(texts[0])) == texts[0]


def test_training_stops_at_the_sample(tmp_path):
    def endless():
        while True:
            yield "the same sentence again. "

    Tokenizer(size=320, sample_bytes=10_000).load(str(tmp_path / "t"), endless)
    assert json.loads((tmp_path / "t" / "tokenizer.json").read_text())["trained_on"]["bytes"] == 10_000


def test_a_given_model_must_fit_the_vocabulary(model_path, tmp_path):
    size = Vocabulary(model_path).size
    assert Tokenizer(size=size + 100, path=model_path).load(str(tmp_path), list).size == size
    with pytest.raises(ValueError, match=rf"has {size} entries, but Tokenizer.size \(VOCAB_SIZE\) is {size - 1}"):
        Tokenizer(size=size - 1, path=model_path).load(str(tmp_path), list)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 256}, r"Tokenizer.size is 256; .* at least 297"),
        ({"reserved": -1}, r"reserved \(-1\)"),
        ({"character_coverage": 0.0}, "character_coverage is 0.0"),
    ],
)
def test_impossible_settings_are_named(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        Tokenizer(**settings).load(str(tmp_path / "t"), lambda: ["text"])
    assert not (tmp_path / "t").exists()


def test_no_text_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no text to train on"):
        Tokenizer().load(str(tmp_path / "t"), list)


def test_a_tokenizer_of_other_settings_or_a_damaged_one_is_refused(tmp_path, texts):
    folder = tmp_path / "t"
    Tokenizer(size=420).load(str(folder), lambda: texts)
    with pytest.raises(ValueError, match=r"Tokenizer.reserved is 3, but .* trained with .*'reserved': 16"):
        Tokenizer(size=420, reserved=3).load(str(folder), lambda: texts)
    (folder / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"tokenizer.model is corrupted: sha256"):
        Tokenizer(size=420).load(str(folder), lambda: texts)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer.json and its model cannot be read"):
        Tokenizer(size=420).load(str(folder), lambda: texts)


def test_joined_entries_are_whole_morphemes(tmp_path):
    texts = ["학교에서 배우고 학교에서 놀고 학교에서 먹는다. foo.bar(baz) foo.bar(baz)"] * 50
    vocabulary = Tokenizer(size=420, joined=0.3).load(str(tmp_path / "t"), lambda: texts)
    found = pieces(vocabulary)
    assert "학교에서" in found
    assert not any(piece.strip() in ("교에", "교에서", "학교에") for piece in found)
    assert any("." in piece and "foo" in piece for piece in found)
    assert json.loads((tmp_path / "t" / "tokenizer.json").read_text())["joined_entries"] > 3
    assert len(vocabulary.encode("학교에서")) == 1
    assert vocabulary.size <= 420


def test_a_morpheme_of_several_pieces_is_not_joined(tmp_path):
    texts = ["학교에서 친구에서 "] * 50 + ["구친 "]
    vocabulary = Tokenizer(size=420).load(str(tmp_path / "t"), lambda: texts)
    assert [len(vocabulary.encode(text)) for text in ("구친", "에서", "학교")] == [2, 1, 1]
    model = (tmp_path / "t" / "tokenizer.model").read_bytes()
    morphemes = {"구친에서": ("구친", "에서"), "학교에서": ("학교", "에서")}
    found = list(_sequences(model, [True] * vocabulary.size, dict.fromkeys(morphemes, 1.0), morphemes))
    assert found == [([*vocabulary.encode("학교"), *vocabulary.encode("에서")], 1.0)]


def test_what_one_text_repeats_weighs_less_when_dampened(tmp_path):
    texts = ["바나나 " * 2000, *(f"{name} " * 30 for name in ("사과나무", "사과주스", "사과파이"))]
    first = {}
    for dampening in (1.0, 0.2):
        vocabulary = Tokenizer(size=320, morphemes=False, dampening=dampening).load(
            str(tmp_path / str(dampening)), lambda: texts
        )
        order = [vocabulary.token_bytes(token).decode(errors="replace").strip() for token in range(vocabulary.size)]
        first[dampening] = min(("바나나", "사과"), key=order.index)  # ids are in the order of the merges
    assert first == {1.0: "바나나", 0.2: "사과"}


def test_a_word_list_adds_words_that_the_text_lacks(tmp_path):
    (tmp_path / "words.txt").write_text("lighthouse 1000\n")
    texts = ["a ship at sea in the night " * 50]
    found = {}
    for name, settings in (("with", {"word_list": str(tmp_path / "words.txt"), "word_list_weight": 0.5}), ("out", {})):
        vocabulary = Tokenizer(size=330, **settings).load(str(tmp_path / name), lambda: texts)
        found[name] = len(vocabulary.encode(" lighthouse"))
    assert found == {"with": 1, "out": found["out"]}
    assert found["out"] > 3


def test_normal_form_is_kept_by_the_model_itself(tmp_path):
    decomposed = "\u1112\u1161\u11ab\u1100\u1173\u11af"
    vocabulary = Tokenizer(size=330, nfc=True).load(str(tmp_path / "t"), lambda: [decomposed * 100])
    assert vocabulary.decode(vocabulary.encode(decomposed)) == "한글"
    assert vocabulary.encode(decomposed) == vocabulary.encode("한글")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"joined": 0.7}, r"Tokenizer.joined is 0.7; it must lie in \[0, 0.5\]"),
        ({"dampening": 0.0}, "Tokenizer.dampening is 0.0"),
        ({"hangul_weight": 0.0}, "Tokenizer.hangul_weight is 0.0"),
        ({"korean_dictionary": -1.0}, "Tokenizer.korean_dictionary is -1.0"),
        ({"processes": 0}, "Tokenizer.processes is 0"),
        ({"rates": {"ko": -1.0}}, "Tokenizer.rates: ko has -1.0"),
        ({"rates": {"ko": 0}}, "Tokenizer.rates: ko has 0; it must be positive"),
        ({"word_list": "absent"}, "Tokenizer.word_list is 'absent'"),
    ],
)
def test_settings_of_the_training_are_checked(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        Tokenizer(**settings).load(str(tmp_path / "t"), lambda: ["text"])
