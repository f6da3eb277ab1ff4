"""The tool that shows what a model sees, on the data of the whole-run tests."""

import re
import sys

import numpy as np
import pytest

from hcxjax.data.packed import PackedTokens
from hcxjax.data.packing import empty_row
from tests.runs import TINY
from tools import inspect_data


@pytest.fixture
def show(whole, tmp_path, capsys):
    """(arguments) → what is printed."""

    def run(*arguments: str, expected: int = 0) -> str:
        # A RUN_DIR of its own: the tool must not need, nor leave, anything there.
        command = [f"--gin_file={TINY}", f"--gin.RUN_DIR={tmp_path / 'run'}", f"--gin.DATA_DIR={whole}", *arguments]
        assert inspect_data.main(command) == expected
        assert not (tmp_path / "run").exists()
        captured = capsys.readouterr()
        return captured.err if expected else captured.out

    return run


def test_rows_are_printed_as_they_are_fed(show):
    text = show("--rows", "40", "--window", "12")
    assert [int(row) for row in re.findall(r"━━━━ row (\d+) of 64 positions ━━━━", text)] == list(range(40))
    assert {"ko", "en", "code"} == set(re.findall(r"── document \d+ \((\w+), \d+ tokens", text))
    assert "goes on in another row" in text
    assert "continues another row" in text
    infilled = re.findall(r"infilled, (\w+) first.*?──\n(⟦prefix⟧.*?⟦middle⟧)", text, re.DOTALL)
    assert {order for order, _ in infilled} == {"prefix", "suffix"}
    assert all(body.startswith("⟦prefix⟧⟦suffix⟧") == (order == "suffix") for order, body in infilled)
    assert "\x1b" not in text
    painted = show("--rows", "40", "--window", "12", "--color", "always")
    assert re.sub("\x1b\\[[0-9]+m", "", painted) == text
    assert {len(set(re.findall(rf"\x1b\[(\d+)m⟦{third}⟧", painted))) for third in ("prefix", "suffix", "middle")} == {1}


def test_a_step_begins_where_training_would(show):
    ahead = show("--rows", "9", "--window", "1")
    later = show("--rows", "1", "--step", "1", "--window", "1")
    assert later.partition("\n\n")[0] == ahead[ahead.index("━━━━ row 8 of") :].partition("\n\n")[0]
    assert later.startswith("━━━━ row 8 of")


def test_a_step_of_a_later_phase_shows_that_phase_s_rows(show, tmp_path):
    later = tmp_path / "later.gin"
    later.write_text(f"""
        include '{TINY}'
        include 'gin/stages/long_context.gin'
        LONG_START = 0.5
        LONG_LENGTH = 128
        LONG_BATCH = 4
        LONG_ACCUMULATE = 1
        LONG_ROPE_THETA = 1e5
    """)
    arguments = (f"--gin_file={later}", "--rows", "1", "--window", "1")
    assert show(*arguments, "--step", "7").startswith("━━━━ row 56 of 64 positions")
    assert show(*arguments, "--step", "8").startswith("━━━━ row 0 of 128 positions")
    assert show(*arguments, "--step", "9").startswith("━━━━ row 4 of 128 positions")


def test_counts_of_a_window(show):
    text = show("--rows", "0", "--window", "96")
    assert text.startswith("96 rows from row 0: 6,144 positions, ")
    table = {match[1]: match for match in re.finditer(r"(\w+) +([\d,]+) +([\d.]+)% +33\.33% +([\d,]+)\n", text)}
    assert set(table) == {"ko", "en", "code"}
    assert sum(float(match[3]) for match in table.values()) == pytest.approx(100, abs=0.02)
    pieces = int(re.search(r"([\d,]+) pieces:", text)[1].replace(",", ""))
    assert sum(int(match[4]) for match in table.values()) == pieces
    bars = re.findall(r"([\d,]+) to ([\d,]+) +([\d,]+)   (█*)(░*)\n", text + "\n")
    assert sum(int(bar[2].replace(",", "")) for bar in bars) == pieces
    assert max(len(bar[3] + bar[4]) for bar in bars) == 50
    assert re.search(r"Infilling\.rate asks for 50\.0%", text)


def test_a_picture_is_drawn(show, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra plots is not installed")
    path = tmp_path / "deep" / "rows.png"
    assert str(path) in show("--rows", "0", "--window", "32", "--picture", str(path))
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rows", "-1"), "--rows is -1; it must be at least 0"),
        (("--window", "0"), "--window is 0; it must be at least 1"),
        (("--step", "-3"), "--step is -3; it must be at least 0"),
        (("--gin.LENGHT=32",), "LENGHT has no effect on this run; did you mean LENGTH?"),
        (("--gin.LENGTH=4",), "LENGTH is 4; rows of packed documents need at least"),
        (("--gin.LENGTH",), "--gin.LENGTH has no value: write --gin.NAME=value"),
        (("--gin.RATES={'ko': 1}",), "rates have no entry for 'code', 'en'"),
        (("--gin.Experiment.source=None",), "does not train on packed rows of text"),
    ],
)
def test_mistakes_are_one_line(show, arguments, message):
    text = show(*arguments, expected=1)
    assert f"inspect_data: {message}" in text or message in text
    assert len(text.strip().splitlines()) == 1


def test_a_picture_without_matplotlib_names_the_extra(show, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = show("--rows", "0", "--window", "1", "--picture", str(tmp_path / "a.png"), expected=1)
    assert "--picture needs pip install -e '.[plots]'" in text


def test_any_batch_will_do_on_the_devices_that_are_here(show):
    assert show("--rows", "0", "--window", "1", "--step", "2", "--gin.BATCH=3").startswith("1 rows from row 6:")


def test_rows_of_padding_alone_are_no_mistake(whole, monkeypatch, show, tmp_path):
    """The last rows of an epoch may be."""
    pytest.importorskip("matplotlib", reason="the extra plots is not installed")
    empty = empty_row(64, 0)

    def rows(self, start, stop):
        arrays = {f"{name}_BT": np.stack([array] * (stop - start)) for name, array in empty.items()}
        return {**arrays, "source_B": np.zeros(stop - start, np.int32)}

    monkeypatch.setattr(PackedTokens, "rows", rows)
    text = show("--rows", "1", "--window", "2", "--picture", str(tmp_path / "a.png"))
    assert "── padding: 64 positions ──" in text
    assert "100.00% padding" in text
    assert "no document in these rows" in text
