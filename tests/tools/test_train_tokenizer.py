import json
import subprocess
import sys

import pytest

from hcxjax.text.vocabulary import Vocabulary
from tools.train_tokenizer import main


def test_a_tokenizer_is_trained_on_files_and_said(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("바다에서 배를 타고 바다에서 논다. " * 200, encoding="utf-8")
    arguments = ["--input", f"text:{tmp_path}", "--size", "330", "--reserved", "2", "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    vocabulary = Vocabulary(str(tmp_path / "out" / "tokenizer.model"))
    assert f"{vocabulary.size} entries" in printed
    assert vocabulary.fingerprint in printed
    assert json.loads((tmp_path / "out" / "tokenizer.json").read_text())["settings"]["reserved"] == 2
    assert main(arguments) == 0  # and once more, at once


@pytest.mark.parametrize(
    ("changes", "message"), [(["--size", "10"], "Tokenizer.size is 10"), (["--input", "text:absent"], "'absent'")]
)
def test_mistakes_are_one_line_and_no_traceback(tmp_path, capsys, changes, message):
    (tmp_path / "a.txt").write_text("text")
    assert main(["--input", f"text:{tmp_path}", "--output", str(tmp_path / "out"), *changes]) == 1
    assert message in capsys.readouterr().err


def test_help_needs_no_heavy_imports():
    script = "import sys, tools.train_tokenizer as t; t.parser().format_help(); assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
