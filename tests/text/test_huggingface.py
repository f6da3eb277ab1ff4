import json

import pytest

from hcxjax.text.vocabulary import Vocabulary
from hcxjax.world import World

tokenizers = pytest.importorskip("tokenizers")
NAMES = ["<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|endofturn|>"]
AWKWARD = ["▁ ▁", "a\r\n\tb  c", "\x00\x01", "👩‍👩‍👧", "닭갈비", "\ue0ff", "", "<|endoftext|>"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A tokenizer.json of byte-level BPE with the specials of HyperCLOVAX-SEED's kind: no padding, no <|user|>."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator(World().documents("ko", count=50), trainer)
    model.add_special_tokens(NAMES)
    file = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    model.save(str(file))
    return str(file)


@pytest.mark.parametrize("text", AWKWARD)
def test_text_comes_back_and_specials_are_text(path, text):
    vocabulary = Vocabulary(path)
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert not set(ids) & set(vocabulary.specials.values())


def test_ids_are_those_of_the_library(path):
    vocabulary, model = Vocabulary(path), tokenizers.Tokenizer.from_file(path)
    text = "학교에서 배운다. def f(x): return 1"
    assert vocabulary.encode(text) == model.encode(text).ids
    assert vocabulary.size == model.get_vocab_size()
    assert vocabulary.encode("가<|endofturn|>", specials=True) == model.encode("가<|endofturn|>").ids


def test_only_what_is_there_is_promised(path):
    vocabulary = Vocabulary(path)
    assert vocabulary.end_of_text == vocabulary.specials["<|endoftext|>"]
    assert vocabulary.fim_prefix != vocabulary.fim_suffix
    assert vocabulary.pad == 0, "no padding is promised, and none is needed: it has no weight"
    with pytest.raises(ValueError, match=r"has no special <\|user\|>; it has <\|endoftext\|>"):
        _ = vocabulary.user


def test_a_file_under_another_name_is_still_known(path, tmp_path):
    with open(path, "rb") as file:
        (tmp_path / "tokenizer.model").write_bytes(file.read())
    assert Vocabulary(str(tmp_path / "tokenizer.model")).fingerprint == Vocabulary(path).fingerprint


def test_what_cannot_give_every_text_back_is_refused(path, tmp_path):
    with open(path, encoding="utf-8") as file:
        settings = json.load(file)
    settings["decoder"], settings["pre_tokenizer"] = None, {"type": "Whitespace"}
    (tmp_path / "t.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="neither byte-level BPE nor"):
        Vocabulary(str(tmp_path / "t.json"))
    (tmp_path / "broken.json").write_text('{"model": 1}')
    with pytest.raises(ValueError, match=r"no readable tokenizer\.json"):
        Vocabulary(str(tmp_path / "broken.json"))


def changed(path, tmp_path, **settings):
    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    content |= settings
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return str(tmp_path / "tokenizer.json")


def test_composition_is_left_out_so_that_any_text_returns(path, tmp_path):
    nfc = {"type": "Sequence", "normalizers": [{"type": "NFC"}]}
    cut = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    vocabulary = Vocabulary(changed(path, tmp_path, normalizer=nfc, truncation=cut))
    assert Vocabulary(changed(path, tmp_path, normalizer={"type": "NFC"})).encode("가") == vocabulary.encode("가")
    long = "학교에서 배운다. " * 30
    assert vocabulary.decode(vocabulary.encode(long)) == long
    for text in ("\u1112\u1161\u11ab", "e\u0301", "학교"):
        assert vocabulary.decode(vocabulary.encode(text)) == text
    assert vocabulary.encode("학교") == Vocabulary(path).encode("학교")


@pytest.mark.parametrize(
    "settings",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"normalizer": {"type": "NFKC"}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}},
        {"normalizer": {"type": "Replace", "pattern": {"String": "x"}, "content": "z"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
    ],
)
def test_a_file_that_changes_text_is_refused(path, tmp_path, settings):
    with pytest.raises(ValueError, match=r"its normalizer (or prefix space changes text; take it out|replaces)"):
        Vocabulary(changed(path, tmp_path, **settings))
