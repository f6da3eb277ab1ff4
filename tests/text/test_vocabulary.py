import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcxjax.text.vocabulary import SPECIALS, StreamDecoder, Vocabulary

AWKWARD = {
    "U+2581": "▁▁ a▁ ▁",
    "jamo": unicodedata.normalize("NFD", "닭갈비를 먹었다"),
    "family emoji": "👩‍👩‍👧‍👦!",
    "line ends": "a\r\nb\rc\n\n\nd\u2028e\x85",
    "control": "\x00\x01\x1f\x7f\ufeff\ufffe\uffff",
    "spaces": "  \t\t x\u00a0\u3000  ",
    "byte piece spelled": "<0x41><unk><s></s>",
    "training boundary": "\ue0ff\u241f\ufdd0",
    "last code point": "\U0010ffff",
    "empty": "",
}
any_text = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=5), st.sampled_from([*AWKWARD.values(), *SPECIALS])
    )
).map("".join)


@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD)
def test_awkward_text_comes_back(vocabulary, text):
    assert vocabulary.decode(vocabulary.encode(text)) == text


@settings(max_examples=300, deadline=None)
@given(text=any_text)
def test_any_text_comes_back_without_specials(vocabulary, text):
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert not set(ids) & set(vocabulary.specials.values())
    assert vocabulary.byte_lengths[ids].sum() == len(text.encode()) if ids else text == ""


def test_every_special_spelled_in_text_is_text(vocabulary):
    assert len(vocabulary.specials) == len(SPECIALS) + 4
    for name in vocabulary.specials:
        text = f"before {name} after{name}"
        ids = vocabulary.encode(text)
        assert not set(ids) & set(vocabulary.specials.values())
        assert vocabulary.decode(ids) == text


def test_specials_have_fixed_ids_and_render_as_nothing(vocabulary):
    assert [vocabulary.specials[name] for name in SPECIALS] == list(range(len(SPECIALS)))
    assert (vocabulary.pad, vocabulary.end_of_text) == (0, 1)
    ids = [vocabulary.user, *vocabulary.encode("안녕"), vocabulary.end_of_turn]
    assert vocabulary.decode(ids) == "안녕"
    assert vocabulary.decode(ids, specials=True) == "<|user|>안녕<|endofturn|>"


@pytest.mark.parametrize(("text", "place"), [("\ud800", 0), ("가나\udfff", 2)])
def test_lone_surrogates_are_refused_by_position(vocabulary, text, place):
    with pytest.raises(ValueError, match=rf"U\+D[8F].. at character {place}"):
        vocabulary.encode(text)


def test_streamed_text_is_never_cut_inside_a_character(vocabulary):
    text = "궭뷁 한글 👩‍👧 ▁ end"
    ids = vocabulary.encode(text)
    assert any(vocabulary.byte_lengths[token] == 1 for token in ids)  # the rare syllables are bytes here
    decoder = StreamDecoder(vocabulary)
    parts = [decoder.push(token) for token in ids]
    assert "\ufffd" not in "".join(parts)
    assert "".join(parts) == text


def test_a_stream_that_ends_inside_a_character_says_so(vocabulary):
    decoder = StreamDecoder(vocabulary)
    decoder.push(vocabulary.encode("궭")[0])


def test_starts_character_tells_where_text_may_be_cut(vocabulary):
    ids = np.array(vocabulary.encode("가궭나 뷁 é 👧"))
    starts = vocabulary.starts_character(ids)
    assert starts[0] and not starts.all()
    for cut, whole in enumerate(starts):
        broken = "\ufffd" in vocabulary.decode(ids[:cut]) + vocabulary.decode(ids[cut:])
        assert broken == (not whole)


def test_ids_of_a_padded_vocabulary_render_as_nothing(vocabulary):
    assert vocabulary.decode([vocabulary.size + 5, *vocabulary.encode("a")]) == "a"
    with pytest.raises(ValueError, match="-1"):
        vocabulary.decode([-1])


def test_files_that_are_no_model_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"absent.model.*Tokenizer.path"):
        Vocabulary(str(tmp_path / "absent.model"))
    (tmp_path / "junk.model").write_bytes(b"no model at all")
    with pytest.raises(ValueError, match=r"junk.model.*no readable SentencePiece model"):
        Vocabulary(str(tmp_path / "junk.model"))
