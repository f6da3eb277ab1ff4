"""The shipped recipe against cl100k_base on real text; needs HCXJAX_DATA and HCXJAX_CL100K (a ranks file)."""

import dataclasses
import gzip
import json
import os
from pathlib import Path

import pytest

from hcxjax.main import configure
from hcxjax.text.pretrained import shipped
from hcxjax.text.tiktoken_ranks import TiktokenEngine
from hcxjax.text.vocabulary import Vocabulary

DATA, RANKS = os.environ.get("HCXJAX_DATA"), os.environ.get("HCXJAX_CL100K")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA or not RANKS, reason="HCXJAX_DATA and HCXJAX_CL100K name no texts and no ranks"),
]
LEFT_OUT = {"ko/court_precedents": 0.52, "en/books": 1.06, "code/c_cpp_headers": 1.15}
"""Source → most tokens beside cl100k_base."""


def sample(path, size=1_000_000):
    texts = []
    with gzip.open(Path(DATA) / path, "rt", encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            texts.append(record["text"] if "text" in record else record["document"])
            size -= len(texts[-1].encode())
            if size < 0:
                break
    return texts


def ratio(vocabulary, texts):
    theirs = TiktokenEngine(RANKS)
    return sum(len(vocabulary.encode(text)) for text in texts) / sum(len(theirs.encode(text)) for text in texts)


@pytest.mark.parametrize(
    ("path", "most"),
    [
        ("pretrain/ko/petitions_2017_2019.jsonl.gz", 0.48),
        ("bench/nsmc/nsmc_resplit_test.jsonl.gz", 0.52),
    ],
)
def test_on_texts_never_trained_on(path, most):
    assert ratio(Vocabulary(shipped("hcxjax-100k")), sample(path)) <= most


def test_on_sources_left_out_whole(tmp_path):
    job, _ = configure(["gin/tokenizers/hcxjax-100k.gin"], [f"DATA_DIR={DATA}/pretrain", f"OUTPUT={tmp_path}/out"])
    left_out = {path.partition("/")[2] for path in LEFT_OUT}
    kept = {name: source for name, source in job.corpus.sources.items() if name not in left_out}
    rates = {name: rate for name, rate in job.corpus.tokenizer.rates.items() if name in kept}
    tokenizer = dataclasses.replace(job.corpus.tokenizer, rates=rates, sample_bytes=int(1e6 * sum(rates.values())))
    corpus = dataclasses.replace(job.corpus, sources=kept, tokenizer=tokenizer, directory=str(tmp_path / "work"))
    dataclasses.replace(job, corpus=corpus).run()
    vocabulary = Vocabulary(str(tmp_path / "out" / "tokenizer.model"))
    found = {path: ratio(vocabulary, sample(f"pretrain/{path}.jsonl.gz")) for path in LEFT_OUT}
    assert all(found[path] <= most for path, most in LEFT_OUT.items()), found
