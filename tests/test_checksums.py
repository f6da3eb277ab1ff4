"""Any change of a sealed file is found, and none where nothing changed."""

import pytest

from hcxjax.checksums import CHECKSUMS, damage, seal


@pytest.fixture
def sealed(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a").write_bytes(bytes(1000))
    (tmp_path / "b").write_text("b")
    (tmp_path / "later").write_text("written after the seal, too")
    seal(tmp_path, ["later"])
    return tmp_path


def test_what_is_whole_has_no_damage_and_what_is_left_out_may_change(sealed):
    assert damage(sealed, ["later"]) is None
    (sealed / "later").write_text("changed")
    assert damage(sealed, ["later"]) is None


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda folder: (folder / "below" / "a").write_bytes(bytes(999) + b"1"), "below/a has other contents"),
        (lambda folder: (folder / "below" / "a").write_bytes(bytes(999)), "below/a has 999 bytes, 1000 were written"),
        (lambda folder: (folder / "b").unlink(), "b is missing"),
        (lambda folder: (folder / CHECKSUMS).unlink(), f"{CHECKSUMS} is missing"),
        (lambda folder: (folder / CHECKSUMS).write_text("{"), f"{CHECKSUMS} cannot be read"),
    ],
)
def test_damage_is_named(sealed, harm, told):
    harm(sealed)
    assert told in (damage(sealed, ["later"]) or "")
