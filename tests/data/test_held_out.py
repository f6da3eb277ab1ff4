import collections
import dataclasses

import numpy as np
import pytest

from hcxjax.data.held_out import HeldOut

LENGTH, BATCH = 96, 4


@pytest.fixture(scope="module")
def held_out(corpus):
    return HeldOut(corpus, LENGTH, BATCH, max_rows=10).load()


def test_covered_documents_are_whole_and_their_bytes_are_counted(corpus, held_out, vocabulary):
    assert list(held_out) == ["code", "en", "ko"]
    stores = corpus.stores("validation")
    for number, (name, source) in enumerate(held_out.items()):
        predicted = collections.Counter()
        for batch in source.batches:
            assert (batch["source_B"] == number).all()
            predicted.update(batch["targets_BT"][batch["weights_BT"] > 0].tolist())
        expected = collections.Counter({vocabulary.end_of_text: source.documents})
        size = 0
        for document in range(source.documents):
            tokens = stores[name].tokens(document)
            expected.update(tokens.tolist())
            size += len(vocabulary.decode(tokens).encode())
        assert predicted == expected
        assert source.bytes == size
        assert source.targets == predicted.total()


def test_batches_are_whole_and_few(held_out):
    for source in held_out.values():
        assert all(batch["tokens_BT"].shape == (BATCH, LENGTH) for batch in source.batches)
        used = sum((batch["weights_BT"].sum(axis=1) > 0).sum() for batch in source.batches)
        assert 6 <= used <= 10


def test_all_documents_fit_where_there_is_room(corpus):
    source = HeldOut(corpus, LENGTH, BATCH, max_rows=10_000).load()["ko"]
    store = corpus.stores("validation")["ko"]
    assert source.documents == len(store)
    assert source.bytes == store.byte_lengths.sum()
    assert np.mean([batch["weights_BT"].mean() for batch in source.batches]) > 0.8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_rows": 0}, "HeldOut.max_rows is 0"),
        ({"batch": 0}, "HeldOut.batch is 0"),
        (
            {"max_rows": 1, "length": 16},
            r"first held-out document of 'code' has .* set HeldOut.max_rows to \d+ or more",
        ),
    ],
)
def test_impossible_settings_are_named(corpus, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(HeldOut(corpus, LENGTH, BATCH), **changes).load()
