import json
import re

import pytest

from hcxjax.world import LANGUAGES, World
from tests.runs import ROOT
from tools.prepare_data import main

NAMES = {"ko": "KOREAN", "en": "ENGLISH", "code": "CODE"}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """A run over small files, one document of each planted twice and one e-mail address in each."""
    folder = tmp_path_factory.mktemp("files")
    for language in LANGUAGES:
        texts = list(World().documents(language, count=60))
        texts += [texts[7], texts[8] + "\n\nkim.minji@mail.example.kr"]
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
        (folder / f"{language}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    sources = [f"--gin.{NAMES[language]}=jsonl:{folder}/{language}.jsonl" for language in LANGUAGES]
    cheap = ["VOCAB_SIZE=600", "LENGTH=128", "Corpus.validation_share=0.1", "Tokenizer.sample_bytes=30000"]
    # The world's documents are short, and repeat.
    plain = "{'ko': (@PersonalData(),), 'en': (@PersonalData(),), 'code': (@PersonalData(),)}"
    cheap += [f"Corpus.cleaning={plain}", "NearDuplicates.threshold=1.0"]
    return [
        f"--gin_file={ROOT / 'gin/runs/folders.gin'}",
        *sources,
        *[f"--gin.{binding}" for binding in cheap],
        f"--gin.RUN_DIR={folder / 'run'}",
    ]


def test_it_prepares_and_tells_what_was_kept_and_dropped(arguments, tmp_path, capsys):
    assert main([*arguments, "--report", str(tmp_path / "report"), "--examples"]) == 0
    printed = capsys.readouterr().out
    for language in LANGUAGES:
        assert re.search(rf"\| {language} \| 62 \| 61 \|", printed)
        assert re.search(rf"\| 128 \| {language} \| \d+ \| 33.333% \| \d\.\d\d% \|", printed)
    assert re.search(r"\| exact duplicate \| 1 \| 1 \| 1 \|", printed)
    assert re.search(r"\| e-mail \| 1 \| 1 \| 1 \|", printed)
    assert re.search(r"MB in \d+ s, \d+\.\d\d MB/s", printed)
    page = (tmp_path / "report" / "report.md").read_text()
    assert "mail.example.kr" in page
    assert "kim.minji" not in page
    assert main(arguments) == 0  # nothing is left to do
    assert "| exact duplicate | 1 | 1 | 1 |" in capsys.readouterr().out


def test_what_is_wrong_is_one_line(arguments, capsys):
    assert main([*arguments, "--workers", "0"]) == 1
    assert "prepare_data: Local.workers is 0" in capsys.readouterr().err.replace("hcxjax.", "")
    assert main([*arguments, "--gin.KOREAN=jsonl:nowhere/*.jsonl"]) == 1
    assert "nowhere/*.jsonl" in capsys.readouterr().err
