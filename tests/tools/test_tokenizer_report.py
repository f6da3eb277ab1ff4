import json
import re

import pytest

from hcxjax.data.tokenizer import Tokenizer
from hcxjax.text.vocabulary import Vocabulary
from hcxjax.world import World
from tools.tokenizer_report import main


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    Tokenizer(size=420, reserved=4).train(str(folder), World().documents("ko", count=60))
    return str(folder / "tokenizer.model")


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "ko").mkdir()
    (tmp_path / "ko" / "a.txt").write_text("학교에서 친구를 만났다.\n", encoding="utf-8")
    return f"ko/prose=text:{tmp_path / 'ko'}"


def test_a_report_is_a_table_a_plot_and_figures(model, texts, tmp_path, capsys):
    out = tmp_path / "report"
    arguments = ["--tokenizers", f"a={model}", f"b={model}", "--texts", texts, "--relative_to", "a", "--rounds", "1"]
    assert main([*arguments, "--output", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "| b | 1.000 |" in printed
    assert "MB/s, one thread" in printed
    assert (out / "report.md").read_text() == printed
    assert (out / "report.png").stat().st_size > 1000
    counts = json.loads((out / "report.json").read_text())["a"]["ko/prose"]
    assert (counts["documents"], counts["words"]) == (1, 3)


def test_unreadable_and_lossy_documents_are_told(model, tmp_path, capsys, monkeypatch):
    (tmp_path / "a.jsonl").write_text('{"text": "학교에서 만났다."}\n{"text": 1}\n{"text": "바다"}\n')
    monkeypatch.setattr(Vocabulary, "encode", lambda self, text: [] if text == "바다" else self.engine.encode(text))
    arguments = ["--tokenizers", f"a={model}", "--texts", f"ko/a=jsonl:{tmp_path}/a.jsonl", "--rounds", "1"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert re.search(r"\| a, ko \|.*\| 1 \|\n", printed.out)
    assert re.search(r"left out 1 x .*a\.jsonl:2\)", printed.err)


@pytest.mark.parametrize(
    ("tokenizers", "texts", "message"),
    [
        ("a", "ko/x=text:.", "'a' must be NAME=VALUE"),
        ("a=absent.model", "ko/x=text:.", "'absent.model' does not exist"),
        ("a=absent.js", "ko/x=text:.", "no file 'absent.js'"),
    ],
)
def test_mistakes_are_one_line(tokenizers, texts, message, capsys):
    assert main(["--tokenizers", tokenizers, "--texts", texts]) == 1
    assert message in capsys.readouterr().err
