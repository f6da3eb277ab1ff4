"""The data path on real text: the folder named by HCXJAX_DATA holds pretrain/{ko,en,code}/*.jsonl.gz."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from hcxjax.data.corpus import Corpus
from hcxjax.data.packed import PackedTokens
from hcxjax.data.tokenizer import Tokenizer
from hcxjax.mesh import Layout

FOLDER = os.environ.get("HCXJAX_DATA")
pytestmark = pytest.mark.skipif(not FOLDER, reason="HCXJAX_DATA names no folder of real text")

NAMES = ("code", "en", "ko")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    sources = {name: f"jsonl:{Path(FOLDER) / 'pretrain' / name}/*.jsonl.gz" for name in NAMES}
    tokenizer = Tokenizer(size=4096, sample_bytes=3_000_000)
    corpus = Corpus(sources, tokenizer, str(tmp_path_factory.mktemp("real")), max_documents=150, validation_share=0.05)
    packed = PackedTokens(corpus, length=1024, batch=8)
    packed.start(Layout(), None)
    yield packed
    packed.close()


def test_text_comes_back_without_loss(source):
    vocabulary, count = source.corpus.vocabulary(), 0
    for text in itertools.islice(source.corpus.sample(), 150):
        assert vocabulary.decode(vocabulary.encode(text)) == text
        count += 1
    assert count == 150


def test_shares_are_the_rates_and_rows_are_full(source):
    rows = source.rows(0, 300)
    tokens = [rows["weights_BT"][rows["source_B"] == number].sum() for number in range(3)]
    np.testing.assert_allclose(np.array(tokens) / sum(tokens), 1 / 3, atol=0.01)
    assert (rows["segment_ids_BT"] == 0).mean() <= 0.02


def test_what_was_skipped_is_in_the_manifest(source):
    for store in source.corpus.stores("train").values():
        assert store.manifest["documents"] == len(store) > 0
        assert store.manifest["tally"]["documents"] >= len(store)
