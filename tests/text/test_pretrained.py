import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcxjax.text.pretrained import names, shipped
from hcxjax.text.vocabulary import SPECIALS, Vocabulary

SHIPPED = Path(shipped("hcxjax-100k"))
WHITE = [
    "\n    ",
    "\n        ",
    "\t\t",
    " ",
    "  ",
    "\r\n",
    "\u3000",
    ");",
    "a",
    " self",
    "가",
    "에서",
    " 학교",
    "1",
    "▁",
    "_",
    "é",
]


@pytest.fixture(scope="module")
def ours():
    return Vocabulary(str(SHIPPED))


def test_it_is_what_its_card_says(ours):
    card = json.loads(SHIPPED.with_suffix(".json").read_text())
    assert hashlib.sha256(SHIPPED.read_bytes()).hexdigest() == card["sha256"] == ours.fingerprint
    assert ours.size == card["entries"] == 100_000
    assert SHIPPED.stat().st_size < 4_000_000
    notice = SHIPPED.with_name("NOTICE.md").read_text()
    assert all(source in notice for source in card["settings"]["rates"])


def test_names_stand_for_files():
    assert "hcxjax-100k" in names()
    assert shipped("some/other.model") == "some/other.model"


@settings(max_examples=200, deadline=None)
@given(text=st.lists(st.one_of(st.sampled_from(WHITE), st.text(max_size=4))).map("".join))
def test_cutting_changes_no_id_and_nothing_is_lost(ours, text):
    ids = ours.encode(text)
    assert ours.decode(ids) == text
    if "▁" not in text:
        assert ids == ours.engine.encode_whole(text)


def test_it_is_cut_at_all(ours):
    assert ours.engine._cuts


def test_indentation_is_cheap_and_digits_are_single(ours):
    for spaces in (4, 8, 12, 16):
        assert len(ours.encode("return x\n" + " " * spaces + "if y:")) <= len(ours.encode("return x if y:")) + 2
    assert len(ours.encode("\t\t\t")) == len(ours.encode("\n\n")) == 1
    digits = {piece for piece in map(ours.token_bytes, range(ours.size)) if any(48 <= byte < 58 for byte in piece)}
    assert digits == {b"%d" % digit for digit in range(10)}


def test_every_special_is_there_and_only_on_request(ours):
    assert len([name for name in ours.specials if "reserved" in name]) >= 100
    assert set(SPECIALS) <= set(ours.specials)
    for name, token in ours.specials.items():
        assert token not in ours.encode(f"a {name}b")
        assert ours.encode(f"a {name}b", specials=True).count(token) == 1


def test_general_korean_needs_no_bytes(ours):
    for row in range(0xB0, 0xC9):
        text = bytes(byte for cell in range(0xA1, 0xFF) for byte in (row, cell)).decode("euc_kr")
        assert all(ours.token_bytes(token).decode() for token in ours.encode(text))
