import collections
import dataclasses
import json

import numpy as np
import pytest

from hcxjax.data.corpus import Corpus
from hcxjax.data.mixing import Balance
from hcxjax.data.packed import PackedTokens
from hcxjax.data.packing import Infilling
from hcxjax.data.tokenizer import Tokenizer
from hcxjax.mesh import Layout
from hcxjax.protocols import Shaped
from tools.random_checkpoint import byte_tokenizer

LENGTH, BATCH = 128, 8


@pytest.fixture
def started(corpus):
    """Starts sources and closes them."""
    opened = []

    def start(**changes):
        source = PackedTokens(**({"corpus": corpus, "length": LENGTH, "batch": BATCH, "seed": 3} | changes))
        source.start(Layout(), None)
        opened.append(source)
        return source

    yield start
    for source in opened:
        source.close()


def same(first, second):
    return all(np.array_equal(first[name], second[name]) for name in first)


def test_a_batch_has_what_the_model_needs(started):
    batch = started().next(None, 0)
    assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == {
        "tokens_BT": ((8, 128), "int32"),
        "targets_BT": ((8, 128), "int32"),
        "weights_BT": ((8, 128), "float32"),
        "segment_ids_BT": ((8, 128), "int32"),
        "positions_BT": ((8, 128), "int32"),
        "source_B": ((8,), "int32"),
    }


def test_shapes_are_known_before_anything_is_opened(started):
    shapes = PackedTokens(Corpus("nowhere", {"ko": "text:nowhere"}, Tokenizer()), LENGTH, BATCH).shapes()
    batch = started().next(None, 0)
    assert isinstance(started(), Shaped)
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in shapes.items()} == {
        name: (value.shape, value.dtype) for name, value in batch.items()
    }


def test_a_batch_depends_on_seed_and_step_alone(started):
    forward, jumping = started(), started()
    batches = [forward.next(None, step) for step in range(6)]
    for step in (4, 0, 5, 2):
        assert same(jumping.next(None, step), batches[step])
    assert not same(batches[0], batches[1])
    assert not same(started(seed=4).next(None, 0), batches[0])


@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_rows_are_the_same_on_any_mesh(started, corpus, sizes):
    source = PackedTokens(corpus, LENGTH, BATCH, seed=3)
    source.start(Layout(**sizes), None)
    batch = source.next(None, 2)
    source.close()
    assert len(batch["tokens_BT"].sharding.device_set) == 8
    assert same(batch, started().rows(16, 24))


def test_an_epoch_holds_every_token_of_every_document(started, vocabulary):
    source = started(infilling=Infilling(rate=0.5, min_tokens=24))
    specials = set(vocabulary.specials.values())
    for number, store in enumerate(source.corpus.stores("train").values()):
        plan = source._epochs[number].locate(0)[2]
        assert plan.rows == source._epochs[number].rows  # one block
        arrays = source.rows(0, 3 * plan.rows)  # equal rates: one epoch of this source
        of_source = arrays["source_B"] == number
        predicted = collections.Counter(arrays["targets_BT"][of_source][arrays["weights_BT"][of_source] > 0].tolist())
        expected = collections.Counter()
        for document in range(len(store)):
            expected.update(store.tokens(document).tolist())
        assert predicted.pop(vocabulary.end_of_text) == len(store)
        marks = (vocabulary.fim_prefix, vocabulary.fim_middle, vocabulary.fim_suffix)
        assert [predicted.pop(token) for token in marks] == [plan.pieces[:, 4].sum()] * 3
        assert predicted == expected
        assert not set(predicted) & specials


def test_rows_are_of_one_source_at_the_rates(started):
    source = started(rates={"ko": 2, "en": 1, "code": 1})
    arrays = source.rows(0, 400)
    assert np.bincount(arrays["source_B"]).tolist() == [100, 100, 200]  # code, en, ko
    assert source.padding < 0.02
    assert (arrays["segment_ids_BT"] == 0).mean() < 0.02


def test_a_balance_goes_by_the_size_of_the_stores(started):
    balance = Balance({"ko": 1, "en": 1, "code": 2})
    arrays = started(rates=balance).rows(0, 400)
    assert np.bincount(arrays["source_B"]).tolist() == [200, 100, 100]  # code, en, ko


def test_a_later_phase_goes_on_where_the_first_ended(started, corpus):
    def later(updates, **changes):
        source = PackedTokens(**({"corpus": corpus, "length": LENGTH, "batch": BATCH, "seed": 3} | changes))
        source.follow(first, updates)
        source.start(Layout(), None)
        return source

    first = started()
    behind = later(5)
    assert same(behind.rows(0, 8), first.rows(5 * BATCH, 6 * BATCH))
    assert same(behind.next(None, 1), first.rows(6 * BATCH, 7 * BATCH))
    long = later(5, length=2 * LENGTH)
    assert long.rows(0, 4)["source_B"].tolist() == first.rows(5 * BATCH // 2, 5 * BATCH // 2 + 4)["source_B"].tolist()
    behind.close()
    long.close()
    other = dataclasses.replace(corpus, sources={"ko": corpus.sources["ko"]})
    elsewhere = PackedTokens(other, LENGTH, BATCH)
    elsewhere.follow(first, 5)
    assert elsewhere._tokens_before == 0


def test_epochs_are_shuffled_and_infilled_anew(started):
    source = started(rates=None)
    rows = source._epochs[0].rows
    arrays = source.rows(0, 6 * rows)
    targets = [tuple(row) for row in arrays["targets_BT"][arrays["source_B"] == 0]]
    assert len(targets) == 2 * rows
    assert len(set(targets[:rows]) & set(targets[rows:])) < rows / 10


def test_state_is_integers_and_resumes(started):
    source = started()
    source.next(None, 0)
    state = source.get_state()
    assert state["position"] == 1
    assert all(type(value) is int and 0 <= value < 1 << 63 for value in state.values())
    other = started()
    other.set_state(state)
    assert other.get_state() == state


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 9}, "rates, LENGTH, BATCH, SEED or Infilling"),
        ({"length": 64}, "LENGTH"),
        ({"batch": 16}, "BATCH"),
        ({"rates": {"ko": 2, "en": 1, "code": 1}}, "rates"),
        ({"infilling": Infilling(rate=0.1)}, "Infilling"),
    ],
)
def test_a_state_of_other_packing_is_refused(started, changes, message):
    state = started().get_state()
    with pytest.raises(ValueError, match=f"what differs is .*{message}"):
        started(**changes).set_state(state)


def test_a_state_of_other_documents_is_refused(started, corpus, tmp_path):
    state = started().get_state()
    fewer = dataclasses.replace(corpus, directory=str(tmp_path), max_documents=20)
    with pytest.raises(ValueError, match=r"what differs is the documents \(Corpus") as error:
        started(corpus=fewer).set_state(state)
    assert "tokenizer" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates": {"ko": 0, "en": 1, "code": 1}}, "rate of 'ko' is 0"),
        ({"rates": {"ko": -1, "en": 1, "code": 1}}, "rate of 'ko' is -1"),
        ({"batch": 0}, "PackedTokens.batch is 0"),
        ({"length": 4}, "LENGTH is 4"),
        ({"infilling": Infilling(rate=2.0)}, "Infilling.rate is 2.0"),
    ],
)
def test_impossible_settings_are_named(started, changes, message):
    with pytest.raises(ValueError, match=message):
        started(**changes)


def test_the_constructor_touches_no_file():
    PackedTokens(Corpus({}, None, "/nowhere"), LENGTH, BATCH).close()


def test_infilling_needs_its_sentinels(corpus, tmp_path):
    """SEED has them, and no padding; a vocabulary with neither trains without infilling."""
    pytest.importorskip("tokenizers")
    tokenizer, _ = byte_tokenizer(264)
    for entry in tokenizer["added_tokens"]:
        entry["special"] = "fim" not in entry["content"]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer))
    few = dataclasses.replace(corpus, tokenizer=Tokenizer(264, str(path)), directory=str(tmp_path), max_documents=20)
    with pytest.raises(ValueError, match=r"no special <\|fim_prefix\|>, .*; set INFILL_RATE to 0"):
        PackedTokens(few, LENGTH, BATCH).start(Layout(), None)
    source = PackedTokens(few, LENGTH, BATCH, infilling=Infilling(rate=0.0))
    source.start(Layout(), None)
    rows = source.rows(0, 200)
    source.close()
    padding_BT = rows["segment_ids_BT"] == 0
    assert padding_BT.any()
    assert not rows["tokens_BT"][padding_BT].any()
    assert not rows["weights_BT"][padding_BT].any()
