import json
import subprocess
import sys

import pytest

from hcxjax.data.corpus import Corpus
from hcxjax.data.tokenizer import Tokenizer
from hcxjax.data.tokenizer_job import TrainTokenizer
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


def test_an_output_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("바다에서 배를 타고 논다. " * 200, encoding="utf-8")
    small = ["--size", "330", "--reserved", "2"]
    assert main(["--input", f"text:{tmp_path}", "--output", str(tmp_path / "a.txt" / "out"), *small]) == 1
    assert capsys.readouterr().err.rstrip().splitlines()[-1].startswith("train_tokenizer: [Errno ")


@pytest.mark.parametrize("scheme", ["jsonl", "parquet", "text", "files"])
def test_relative_paths_start_at_the_folder(scheme):
    job = TrainTokenizer(Corpus({}, Tokenizer(), "work"), "out", folder="texts")
    assert job._place(f"{scheme}:a/b") == f"{scheme}:texts/a/b"
    assert job._place(f"{scheme}:/a/b") == f"{scheme}:/a/b"
    assert job._place("tfds:a") == "tfds:a"


def test_help_needs_no_heavy_imports():
    script = "import sys, tools.train_tokenizer as t; t.parser().format_help(); assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_gin_file_trains_at_its_rates(tmp_path, capsys):
    for name, text in (("a", "바다에서 배를 탄다. "), ("b", "a ship at sea. ")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.txt").write_text(text * 300, encoding="utf-8")
    run = tmp_path / "run.gin"
    run.write_text(
        "include 'gin/tokenizers/base.gin'\n"
        "SOURCES = {'a': 'text:a', 'b': 'text:b'}\n"
        f"TrainTokenizer.folder = '{tmp_path}'\nWORK_DIR = '{tmp_path}/work'\n"
        "Tokenizer.size = 330\nTokenizer.reserved = 2\nTokenizer.rates = {'a': 3, 'b': 1}\n"
    )
    arguments = [f"--gin_file={run}", f"--gin.OUTPUT={tmp_path}/out"]
    assert main(arguments) == 0
    assert "trained on" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "tokenizer.json").read_text())["settings"]["rates"] == {"a": 3, "b": 1}
    assert main([*arguments, "--gin.Tokenizer.rates={'a': 1, 'b': 1}"]) == 1
    assert "Tokenizer.rates is" in capsys.readouterr().err
    assert main([f"--gin_file={run}", "--input", "text:x"]) == 1
    assert "either --gin_file, or --input" in capsys.readouterr().err


def test_the_shipped_recipe_can_be_read():
    from hcxjax.main import configure

    job, _ = configure(["gin/tokenizers/hcxjax-100k.gin"], ["DATA_DIR=texts", "OUTPUT=out"])
    job.corpus.tokenizer.check()
    assert set(job.corpus.tokenizer.rates) == set(job.corpus.sources)
