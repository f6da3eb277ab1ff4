import json

import pytest

from hcxjax.data.tokenizer import Tokenizer
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
