"""A SentencePiece model of ours and the tokenizer.json written for it give the same ids."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcxjax.convert.tokenizer import (
    copy_tokenizer,
    describe_tokenizer,
    tokenizer_json,
    write_generation,
    write_tokenizer_json,
)
from hcxjax.data.tokenizer import Tokenizer
from hcxjax.text.model_file import Piece, read_pieces, write_pieces
from hcxjax.text.pretrained import shipped
from hcxjax.text.templates import HCXJAX, Message
from hcxjax.text.vocabulary import Vocabulary
from hcxjax.world import LANGUAGES, World

tokenizers = pytest.importorskip("tokenizers")

HARD = [
    "",
    " ",
    "   ",
    "안녕하세요, 저는 한국어를 배웁니다. 뷁 쀍 ㄱㅏㅎ ᄒ\u1161ᆫ",
    "def add(a, b):\n    if a:\n\t\treturn  a+b  # 주석\n\n\n",
    "👩‍👩‍👧‍👦🇰🇷 \U0001f9d1\U0001f3fd 🙂",
    "\u2581\u2581 hello\u2581world \u2581",
    "line\r\nline\r\rline\n\r\n",
    "1234567890 3.14159 1,000,000",
    "\x00\x01\x7f\ufeff\u200b\u3000",
    "e\u0301 \ufb01 Å",
    "<0x41><|user|<|nothing|>",
    "<|user|>안녕<|endofturn|>\n<|assistant|>",
    "a" * 100 + " " * 65 + "ㅋ" * 33 + "\n" * 9,
    "토요일에 학교에서 Python 3.11을 배웠다(2024년 5월).",
]
PARTS = ["a", "aa", " ", "  ", "\n    ", "\t", "\r\n", "1", "23", "가", "에서", " 학교", "ㅋㅋ", "▁", "_", ").", "é"]
PARTS += [" the", "return", "self.", "<|user|>", "\U0001f642"]


@pytest.fixture(scope="module", params=["shipped", "small", "small, nfc"])
def pair(request, tmp_path_factory):
    """(our vocabulary, the tokenizers library's reading of its export)."""
    folder = tmp_path_factory.mktemp("pair")
    path = shipped("hcxjax-100k")
    if request.param != "shipped":
        texts = [text for language in LANGUAGES for text in World().documents(language, count=100)]
        texts += ["aaaa aaa aaaaaaa ㅋㅋㅋㅋㅋ ababab bababa"] * 50
        Tokenizer(size=700, reserved=4, nfc="nfc" in request.param).train(str(folder), texts)
        path = os.path.join(folder, "tokenizer.model")
    ours = Vocabulary(path)
    out = folder / "out"
    out.mkdir()
    write_tokenizer_json(ours, out)
    return ours, tokenizers.Tokenizer.from_file(str(out / "tokenizer.json")), out / "tokenizer.json"


SMALL = pytest.mark.parametrize(
    "pair", ["small", "small, nfc", pytest.param("shipped", marks=pytest.mark.slow)], indirect=True
)


@pytest.mark.parametrize("text", HARD)
def test_hard_texts_have_the_same_ids(pair, text):
    ours, theirs, _ = pair
    ids = theirs.encode(text).ids
    assert ids == ours.encode(text, specials=True)
    assert theirs.decode(ids, skip_special_tokens=False) == ours.decode(ids, specials=True)


@settings(max_examples=150, deadline=None)
@given(text=st.lists(st.one_of(st.sampled_from(PARTS), st.text(max_size=4))).map("".join))
def test_any_text_has_the_same_ids(pair, text):
    ours, theirs, _ = pair
    # Deviation: tokenizers normalises what lies between specials, we the whole text; only NFC is concerned.
    if "<|user|>" not in text:
        assert theirs.encode(text).ids == ours.encode(text, specials=True)


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet="ab ㅋ\n", max_size=40))
def test_few_characters_that_repeat_have_the_same_ids(pair, text):
    """Where merges overlap, the order of equals matters."""
    ours, theirs, _ = pair
    assert theirs.encode(text).ids == ours.encode(text)


@SMALL
def test_our_own_reader_of_tokenizer_json_agrees(pair):
    ours, _, path = pair
    again = Vocabulary(str(path))
    assert (again.size, dict(again.specials)) == (ours.size, dict(ours.specials))
    assert [again.token_bytes(token) for token in range(ours.size)] == [*map(ours.token_bytes, range(ours.size))]
    for text in HARD:
        assert again.encode(text) == ours.encode(text)


@SMALL
def test_what_has_no_counterpart_is_refused(pair):
    pieces, rest = read_pieces(Path(pair[0].path).read_bytes())
    assert tokenizer_json(write_pieces(pieces, rest))
    for piece, message in (
        (Piece("\u10d0\u10d0", -1e6), "characters that are in pieces and no piece"),
        (Piece("zzmine", 0.0, 4), r"user-defined or unused pieces \['zzmine'\]"),
        (Piece(" the", -1e6), r"differ only in U\+2581"),
    ):
        with pytest.raises(ValueError, match=message):
            tokenizer_json(write_pieces([*pieces, piece], rest))


@SMALL
def test_what_is_written_beside_it(pair, tmp_path):
    ours, _, path = pair
    (tmp_path / "tokenizer.json").write_bytes(path.read_bytes())
    tokens = describe_tokenizer(ours, tmp_path)
    ends = [ours.end_of_turn, ours.end_of_text]
    assert tokens == {"bos_token_id": ours.end_of_text, "eos_token_id": ends, "pad_token_id": ours.pad}
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (settings["bos_token"], settings["eos_token"], settings["pad_token"]) == (
        "<|endoftext|>",
        "<|endofturn|>",
        "<|pad|>",
    )
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"  # none that depends on the type of model
    assert settings["chat_template"] == (tmp_path / "chat_template.jinja").read_text() == HCXJAX.jinja()
    write_generation(tmp_path, tokens)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == tokens
    # What is there stays, and its ids are taken.
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 3, "top_p": 0.5}')
    assert describe_tokenizer(ours, tmp_path) == tokens | {"eos_token_id": 3}
    assert (tmp_path / "tokenizer_config.json").read_text() == "{}"


def test_all_files_of_a_tokenizer_are_copied(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "additional_chat_templates").mkdir(parents=True)
    (source / "additional_chat_templates" / "tool.jinja").write_text("{{ 1 }}")
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja", "modeling_own.py", "README.md"):
        (source / name).write_text(name)
    copied = sorted(file.name for file in copy_tokenizer(source, target))
    assert copied == ["chat_template.jinja", "generation_config.json", "tokenizer.json", "tool.jinja"]
    assert (target / "chat_template.jinja").read_text() == "chat_template.jinja"
    assert (target / "additional_chat_templates" / "tool.jinja").read_text() == "{{ 1 }}"
    assert not (target / "modeling_own.py").exists()


@SMALL
def test_transformers_reads_it_without_changing_it(pair, tmp_path):
    transformers = pytest.importorskip("transformers", minversion="5.0")
    ours, _, path = pair
    (tmp_path / "tokenizer.json").write_bytes(path.read_bytes())
    describe_tokenizer(ours, tmp_path)
    # With the type of model beside it: transformers has a tokenizer of its own for each, and must not take it.
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in HARD:
        ids = theirs(text, add_special_tokens=True)["input_ids"]
        assert ids == ours.encode(text, specials=True)
        assert theirs.decode(ids) == ours.decode(ids, specials=True)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.end_of_text, ours.end_of_turn)
    messages = [{"role": "user", "content": "안녕?"}]
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ids == HCXJAX.tokens([Message("user", "안녕?")], ours)
