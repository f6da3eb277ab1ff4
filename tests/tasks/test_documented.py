"""The Tasks of docs/data.md, word for word: only the place of their files is another."""

import json
import re
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from hcxjax.data.readers import Skips
from hcxjax.data.sources import import_seqio, import_tensorflow, open_source

seqio = import_seqio()
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
WIKIPEDIA, ARTICLES = re.findall(r"```python\n(.*?)```", PAGE.partition("### A Task of your own")[2], re.DOTALL)[:2]


def read(source, split="train"):
    skips, opened = Skips(), open_source(source, 10**6)
    parts = [opened.documents(split, part, skips) for part in range(opened.parts(split))]
    return [document.text for part in parts for document in part], skips


@pytest.fixture
def registry():
    """Leaves seqio's registry as it was."""
    before = set(seqio.TaskRegistry.names())
    yield
    for name in set(seqio.TaskRegistry.names()) - before:
        seqio.TaskRegistry.remove(name)


@pytest.mark.parametrize("code", [WIKIPEDIA, ARTICLES])
def test_a_task_takes_about_ten_lines(code):
    assert len([line for line in code.splitlines() if line.strip()]) <= 10


def test_the_task_over_a_tfds_name(tmp_path, registry):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("importlib_resources", reason="tensorflow-datasets needs it to write, but does not install it")
    page = "\n_START_ARTICLE_\n한강\n_START_SECTION_\n길이\n_START_PARAGRAPH_\n494 km이다._NEWLINE_서울을 지난다."
    tfds.dataset_builders.store_as_tfds_dataset(
        name="wiki40b",
        config="ko",
        version="1.3.0",
        features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
        split_datasets={"train": import_tensorflow().data.Dataset.from_tensors({"text": page})},
        data_dir=str(tmp_path),
        disable_shuffling=True,
    )
    assert "tfds_data_dir=None" in WIKIPEDIA
    exec(WIKIPEDIA.replace("tfds_data_dir=None", f"tfds_data_dir={str(tmp_path)!r}"), {})
    (text,), skips = read("wiki_ko")
    assert text.split() == ["한강", "길이", "494", "km이다.", "서울을", "지난다."]
    assert not skips.counts


def test_the_task_over_own_files(tmp_path, monkeypatch, registry):
    import zstandard

    long = "이 글은 스무 글자보다 길어서 남는다고 한다."
    monkeypatch.chdir(tmp_path)
    (tmp_path / "articles").mkdir()
    for number in range(2):
        lines = "\n".join(json.dumps({"body": body}) for body in (f"{long} {number}", "짧은 글", ""))
        (tmp_path / f"articles/train-{number}.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    parquet.write_table(pyarrow.table({"text": ["짧은 글", long]}), "articles/held.parquet")
    exec(ARTICLES, {})
    texts, skips = read("articles")
    assert texts == [f"{long} 0", f"{long} 1"]
    assert skips.counts == {"empty text": 2}
    assert read("articles", "validation")[0] == [long]
