import dataclasses
import json
import logging
import os
import subprocess
import sys

import pytest

from hcxjax.data.cleaning import overlap
from hcxjax.data.cleaning.overlap import BenchmarkOverlap
from hcxjax.data.corpus import Corpus
from hcxjax.data.tokenizer import Tokenizer


@pytest.fixture
def lines(tmp_path):
    """A file of 60 documents among bad lines."""
    good = [json.dumps({"text": f"document {number} of a small file"}) for number in range(60)]
    path = tmp_path / "a.jsonl"
    path.write_bytes("\n".join(good[:30]).encode() + b'\n{"text": \n{"text": "\xff"}\n' + "\n".join(good[30:]).encode())
    return path


def test_stores_are_written_once_and_reused(corpus):
    paths = [store.folder for store in corpus.stores("train").values()]
    times = [os.stat(path).st_mtime_ns for path in paths]
    assert [os.path.basename(path).split("-")[0] for path in paths] == ["code", "en", "ko"]
    again = corpus.stores("train")
    assert [os.stat(store.folder).st_mtime_ns for store in again.values()] == times


def test_written_stores_are_opened_without_tensorflow(corpus):
    script = (
        "import sys; from hcxjax.data.corpus import Corpus; from hcxjax.data.tokenizer import Tokenizer\n"
        f"corpus = Corpus({dict(corpus.sources)!r}, {corpus.tokenizer!r}, {corpus.directory!r}, validation_share=0.2)\n"
        "assert corpus.stores('train') and 'tensorflow' not in sys.modules and 'seqio' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_what_is_skipped_is_logged_and_written_down(lines, tmp_path, model_path, caplog):
    corpus = Corpus({"a": f"jsonl:{lines}"}, Tokenizer(path=model_path), str(tmp_path), validation_share=0.1)
    with caplog.at_level(logging.WARNING):
        store = corpus.stores("train")["a"]
    assert store.manifest["tally"]["dropped"] == {"malformed JSON": 1, "invalid UTF-8": 1}
    assert store.manifest["tally"]["documents"] == 62
    assert f"1 x malformed JSON (first: {lines}:31)" in caplog.text
    assert len(store) + len(corpus.stores("validation")["a"]) == 60


def test_changed_files_are_warned_of(lines, tmp_path, model_path, caplog):
    corpus = Corpus({"a": f"jsonl:{lines}"}, Tokenizer(path=model_path), str(tmp_path), validation_share=0.1)
    before = len(corpus.stores("train")["a"])
    assert "have changed" not in caplog.text
    lines.write_text('{"text": "another"}\n' * 9)
    assert len(corpus.stores("train")["a"]) == before
    assert f"files of source a (jsonl:{lines}) have changed" in caplog.text
    assert f"delete documents/a-* and store/a-* in {tmp_path}" in caplog.text
    caplog.clear()
    lines.unlink()  # a machine that has the stores alone
    assert len(corpus.stores("train")["a"]) == before
    assert not caplog.text


def test_a_changed_evaluation_set_is_warned_of(lines, tmp_path, model_path, caplog):
    (tmp_path / "set.txt").write_text("one question")
    steps = {"a": (BenchmarkOverlap((str(tmp_path / "set.txt"),)),)}
    settings = {"validation_share": 0.1, "cleaning": steps}
    corpus = Corpus({"a": f"jsonl:{lines}"}, Tokenizer(path=model_path), str(tmp_path), **settings)
    corpus.stores("train")
    assert "evaluation sets" not in caplog.text
    (tmp_path / "set.txt").write_text("another question")
    overlap._contents.cache_clear()  # as in another process
    corpus.stores("train")
    assert "word lists or evaluation sets of source a" in caplog.text


def test_limits_make_other_stores(lines, tmp_path, model_path):
    whole = Corpus({"a": f"jsonl:{lines}"}, Tokenizer(path=model_path), str(tmp_path), validation_share=0.3)
    few = dataclasses.replace(whole, max_documents=5, max_validation_documents=2)
    assert len(few.stores("train")["a"]) == 5
    assert len(few.stores("validation")["a"]) == 2
    assert len(whole.stores("train")["a"]) > 30


def test_the_tokenizer_samples_equal_bytes(tmp_path):
    for name, size in (("short", 10), ("long", 1000)):
        texts = [json.dumps({"text": name[0] * size}) for _ in range(200)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(f"{text}" for text in texts))
    sources = {name: f"jsonl:{tmp_path}/{name}.jsonl" for name in ("short", "long")}
    given = {"s": 0, "l": 0}
    for text in Corpus(sources, Tokenizer(), str(tmp_path), validation_share=1e-9).sample():
        given[text[0]] += len(text)
        if given["s"] >= 2000:  # all of it
            break
    assert given["l"] in (2000, 3000)
    given = {"s": 0, "l": 0}
    for text in Corpus(
        sources, Tokenizer(rates={"short": 1, "long": 4}), str(tmp_path), validation_share=1e-9
    ).sample():
        given[text[0]] += len(text)
        if given["s"] >= 1500:
            break
    assert 5000 <= given["l"] <= 7000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": {}}, "Corpus.sources is empty"),
        ({"sources": {"a/b": "world_ko"}}, "the name 'a/b'"),
        ({"sources": {"a": "csv:x"}}, "unknown scheme 'csv'"),
        ({"max_documents": 0}, "Corpus.max_documents is 0"),
        ({"max_validation_documents": -1}, "Corpus.max_validation_documents is -1"),
        ({"cleaning": {"b": ()}}, "Corpus.cleaning names b, but Corpus.sources has a"),
        ({"max_document_bytes": 0}, "Corpus.max_document_bytes is 0"),
        ({"validation_share": 0.0}, "Corpus.validation_share is 0.0"),
    ],
)
def test_impossible_settings_are_named(tmp_path, model_path, changes, message):
    settings = {"sources": {"a": "world_ko"}, "tokenizer": Tokenizer(path=model_path), "directory": str(tmp_path)}
    with pytest.raises(ValueError, match=message):
        Corpus(**(settings | changes)).stores("train")


def test_a_source_without_documents_is_named(tmp_path, model_path):
    (tmp_path / "empty.jsonl").touch()
    corpus = Corpus({"a": f"jsonl:{tmp_path}/empty.jsonl"}, Tokenizer(path=model_path), str(tmp_path))
    with pytest.raises(ValueError, match=r"empty.jsonl' has no document in split 'train' \(1 x empty file"):
        corpus.stores("train")
    with pytest.raises(ValueError, match=r"split 'test' is unknown"):
        corpus.stores("test")
