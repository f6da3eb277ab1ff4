"""Curves are drawn from what a run has told."""

import json

import pytest

from tools import curves


def test_a_picture_is_drawn(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the extra plots is not installed")
    lines = [{"step": step, "train/loss": 3.0 / step} for step in range(1, 5)]
    lines += [{"step": step, "eval/ko/bits_per_byte": 1.0 / step} for step in (1, 4)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    assert curves.main(["--run", str(tmp_path), "--output", str(tmp_path / "p" / "c.png")]) == 0
    assert (tmp_path / "p" / "c.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_a_run_is_named(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the extra plots is not installed")
    assert curves.main(["--run", str(tmp_path)]) == 1
    assert "has no metrics.jsonl" in capsys.readouterr().err
