"""Rows taken apart give back the documents that went in."""

import numpy as np
import pytest

from hcxjax.data.inspection import Run, Summary, runs, summary, taken_apart
from hcxjax.data.mixing import Balance
from hcxjax.data.packed import PackedTokens
from hcxjax.data.packing import Infilling, Piece, RowBuilder, empty_row
from hcxjax.mesh import Layout

TEXTS = ["민준은 사과를 샀어요. 사과는 아주 달았어요.", "def add(a, b):\n    return a + b\n", "Short."]


class Documents:
    def __init__(self, vocabulary):
        self.ids = [np.array(vocabulary.encode(text), np.int32) for text in TEXTS]

    def tokens(self, document, start=0, stop=None):
        return self.ids[document][start:stop]


def rows_of(vocabulary, *rows, suffix_first=0.0, length=96):
    builder = RowBuilder(Documents(vocabulary), vocabulary, suffix_first)
    built = [builder.build(row, length, (0, 0, 0)) if row else empty_row(length, vocabulary.pad) for row in rows]
    arrays = {f"{name}_BT": np.stack([row[name] for row in built]) for name in built[0]}
    return {**arrays, "source_B": np.arange(len(rows), dtype=np.int32)}


def whole(vocabulary, document, infilled=False):
    return Piece(document, 0, len(Documents(vocabulary).ids[document]) + 1, True, infilled)


def test_whole_documents_come_back(vocabulary):
    rows = rows_of(vocabulary, [whole(vocabulary, 1), whole(vocabulary, 2)], [whole(vocabulary, 0)])
    first, second = taken_apart(rows, vocabulary)
    assert [vocabulary.decode(seen.tokens) for seen in first + second] == [TEXTS[1], TEXTS[2], TEXTS[0]]
    assert [(seen.source, seen.whole, seen.order) for seen in first + second] == [(0, True, "")] * 2 + [(1, True, "")]
    assert (first[0].start, first[0].stop, first[1].start) == (0, first[0].length + 1, first[0].stop)
    assert first[1].stop == first[1].start + first[1].length + 1


def test_a_cut_document_comes_back_in_parts(vocabulary):
    size = len(Documents(vocabulary).ids[1])
    parts = [Piece(1, 0, 5, False, False), Piece(1, 5, 9, False, False), Piece(1, 9, size + 1, True, False)]
    found = [seen for (seen,) in taken_apart(rows_of(vocabulary, *([part] for part in parts)), vocabulary)]
    assert [(seen.begins, seen.ends, seen.whole) for seen in found] == [
        (True, False, False),
        (False, False, False),
        (False, True, False),
    ]
    assert vocabulary.decode(np.concatenate([seen.tokens for seen in found])) == TEXTS[1]


def test_a_row_that_is_all_padding_holds_nothing(vocabulary):
    assert taken_apart(rows_of(vocabulary, [], [whole(vocabulary, 2)]), vocabulary)[0] == []


@pytest.mark.parametrize(
    ("suffix_first", "order", "specials"),
    [
        (0.0, "prefix first", ["prefix", "", "suffix", "", "middle", ""]),
        (1.0, "suffix first", ["prefix", "suffix", "", "middle", ""]),
    ],
)
def test_infilled_documents_show_their_order(vocabulary, suffix_first, order, specials):
    rows = rows_of(vocabulary, [whole(vocabulary, 0, infilled=True)], suffix_first=suffix_first)
    ((seen,),) = taken_apart(rows, vocabulary)
    assert (seen.order, seen.length, seen.whole) == (order, len(Documents(vocabulary).ids[0]), True)
    found = list(runs(seen.tokens, vocabulary))
    assert [run.special for run in found] == specials
    texts = [run.text for run in found if run.text]
    back = texts[1] + texts[0] if suffix_first else texts[0] + texts[2] + texts[1]
    assert back == TEXTS[0]


def test_a_text_that_spells_a_special_is_text(vocabulary):
    text = "<|fim_prefix|> is a name"
    ids = np.array([vocabulary.fim_prefix, *vocabulary.encode(text), vocabulary.user])
    assert list(runs(ids, vocabulary)) == [Run("prefix", ""), Run("", text), Run("user", "")]


@pytest.fixture(scope="module")
def seen(corpus) -> Summary:
    rates = {"ko": 2, "en": 1, "code": 1}
    source = PackedTokens(corpus, length=128, batch=4, rates=rates, infilling=Infilling(rate=0.5, min_tokens=16))
    source.start(Layout(rules=(("batch", None),)), None)
    try:
        yield source, summary(source, corpus.vocabulary(), 40, 240)
    finally:
        source.close()


def test_a_summary_counts_what_the_rows_hold(seen, corpus):
    source, found = seen
    rows = source.rows(40, 240)
    held = rows["segment_ids_BT"] > 0
    assert (found.rows, found.length) == (200, 128)
    assert found.padding == pytest.approx(1 - held.mean())
    assert found.trained == pytest.approx((rows["weights_BT"] > 0).mean())
    assert [int(held[rows["source_B"] == number].sum()) for number in range(3)] == found.tokens.tolist()
    pieces = [piece for row in taken_apart(rows, corpus.vocabulary()) for piece in row]
    assert [piece.length for piece in pieces] == found.lengths.tolist()
    assert [piece.source for piece in pieces] == found.sources.tolist()
    assert [piece.whole for piece in pieces] == found.whole.tolist()
    assert [piece.order for piece in pieces] == found.orders.tolist()


def test_shares_and_infilling_are_as_configured(seen):
    _, found = seen
    assert found.configured == {"code": 0.25, "en": 0.25, "ko": 0.5}
    assert found.shares == pytest.approx(found.configured, abs=0.02)
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.infilled(16) == pytest.approx(0.5, abs=0.1)
    assert found.infilled() < found.infilled(16)
    assert found.infilled(10**6) == 0
    assert not found.orders[found.lengths < 16].any()


def test_rates_by_size_are_what_they_come_to(corpus):
    source = PackedTokens(corpus, length=128, batch=4, rates=Balance({"ko": 1, "en": 1, "code": 2}))
    source.start(Layout(rules=(("batch", None),)), None)
    found = summary(source, corpus.vocabulary(), 0, 100)
    source.close()
    assert found.configured == {"code": 0.5, "en": 0.25, "ko": 0.25}
    assert found.shares == pytest.approx(found.configured, abs=0.03)
