import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcxjax.data.packing import MIN_PIECE, Infilling, RowBuilder, pack, rows_for
from hcxjax.text.infilling import SENTINELS, Sentinels, reading_order

NEVER = Infilling(rate=0.0)


class Numbered:
    """Documents whose every token tells where it stands."""

    def __init__(self, lengths):
        self.lengths = np.asarray(lengths)
        self._starts = 100 + np.concatenate([[0], np.cumsum(self.lengths)])

    def tokens(self, document, start=0, stop=None):
        return np.arange(self._starts[document], self._starts[document + 1], dtype=np.int32)[start:stop]


class NumberedVocabulary:
    """What rows need of a vocabulary, for tokens that are numbers."""

    pad, end_of_text, fim_prefix, fim_middle, fim_suffix = range(5)

    def starts_character(self, ids):
        return np.asarray(ids) % 3 > 0


SENTINEL_IDS = Sentinels(2, 3, 4)


def rows_of(lengths, length, infilling=NEVER, epoch=0):
    documents = Numbered(lengths)
    plan = pack(documents.lengths, length, infilling, (5, epoch))
    builder = RowBuilder(documents, NumberedVocabulary(), infilling.suffix_first_share)
    return plan, documents, [builder.build(plan.row(row), length, (5, epoch)) for row in range(plan.rows)]


def segments(row):
    for segment in range(1, row["segment_ids"].max() + 1):
        chosen = row["segment_ids"] == segment
        yield row["tokens"][chosen], row["targets"][chosen], row["positions"][chosen]


@settings(deadline=None, max_examples=60)
@given(lengths=st.lists(st.integers(0, 120), min_size=1, max_size=30), length=st.integers(16, 64))
def test_every_token_is_predicted_once_from_the_one_before(lengths, length):
    _, documents, rows = rows_of(lengths, length)
    predicted = collections.Counter()
    for row in rows:
        for tokens, targets, positions in segments(row):
            predicted.update(targets.tolist())
            assert (tokens[1:] == targets[:-1]).all()
            assert positions.tolist() == list(range(len(tokens)))
            first = {int(documents.tokens(number)[0]) for number, size in enumerate(lengths) if size}
            before = NumberedVocabulary.end_of_text if targets[0] in first or targets[0] == 1 else targets[0] - 1
            assert tokens[0] == before or targets[0] == NumberedVocabulary.end_of_text
        padding = row["segment_ids"] == 0
        assert (row["weights"] == ~padding).all()
        assert (row["tokens"][padding] == NumberedVocabulary.pad).all()
    assert predicted.pop(NumberedVocabulary.end_of_text) == len(lengths)
    assert predicted == collections.Counter(range(100, 100 + sum(lengths)))


def test_a_documents_end_is_predicted_from_its_last_token():
    _, _, rows = rows_of([15, 31], 16)
    assert rows[0]["targets"].tolist() == [*range(100, 115), 1]
    assert rows[1]["tokens"].tolist() == [1, *range(115, 130)]
    assert rows[2]["tokens"].tolist() == list(range(130, 146))
    assert rows[2]["targets"].tolist() == [*range(131, 146), 1]


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 150), min_size=1, max_size=30),
    length=st.integers(32, 128),
    share=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_undoing_the_infilling_gives_the_documents_back(lengths, length, share):
    infilling = Infilling(rate=1.0, suffix_first_share=share, min_tokens=6)
    plan, documents, rows = rows_of(lengths, length, infilling)
    texts = collections.defaultdict(list)
    for number, row in enumerate(rows):
        for piece, (tokens, targets, _) in zip(plan.row(number), segments(row), strict=True):
            stream = targets if not piece.last else targets[:-1]
            if len(stream) and stream[0] == SENTINEL_IDS.prefix:
                assert (tokens[1:] == targets[:-1]).all()
                stream = reading_order(stream, SENTINEL_IDS)
            texts[piece.document].extend(stream.tolist())
    for document in range(len(lengths)):
        assert texts[document] == documents.tokens(document).tolist()


def test_the_plan_knows_what_it_uses():
    plan, _, rows = rows_of([30, 70, 200, 9], 64, Infilling(rate=1.0))
    assert plan.used == sum((row["segment_ids"] > 0).sum() for row in rows)


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 150), min_size=1, max_size=40),
    length=st.integers(16, 96),
    rate=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_rows_are_as_many_as_lengths_say_whatever_is_drawn(lengths, length, rate):
    infilling = Infilling(rate=rate, min_tokens=4)
    rows = rows_for(np.array(lengths), length, infilling)
    for key in range(3):
        plan = pack(np.array(lengths), length, infilling, (key,))
        assert plan.rows == rows
        sizes = [sum(p.stop - p.start + SENTINELS * p.infilled for p in plan.row(row)) for row in range(rows)]
        assert max(sizes) <= length
        assert sum(sizes) == plan.used


def test_where_nothing_is_spare_rows_are_filled_to_the_end():
    lengths = np.array([60, 66, 62, 64, 63, 63])  # 384 positions: six rows of 64 and not one more
    plan = pack(lengths, 64, NEVER, ())
    assert rows_for(lengths, 64, NEVER) == plan.rows == 7  # what tidy row ends may cost is set aside
    tight = np.array([15, 31, 15, 63])
    plan = pack(tight, 16, Infilling(rate=1.0, min_tokens=3), ())
    assert plan.rows * 16 >= plan.used == (tight + 1).sum() + SENTINELS * plan.pieces[:, 4].sum()


def test_numbers_of_documents_are_the_callers():
    plan = pack(np.array([5, 6]), 16, NEVER, (), documents=np.array([40, 7]))
    assert plan.pieces[:, 0].tolist() == [40, 7]


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9])
def test_the_share_of_infilled_pieces_is_the_rate(rate):
    lengths = np.random.default_rng(1).integers(24, 300, 3000)
    plan = pack(lengths, 512, Infilling(rate=rate), (1,))
    _, start, stop, last, infilled = plan.pieces.T
    eligible = stop - start - last >= Infilling().min_tokens
    assert infilled.sum() / eligible.sum() == pytest.approx(rate, abs=0.03)
    assert not infilled[~eligible].any()


def test_a_pieces_order_is_drawn_by_share():
    _, _, rows = rows_of([60] * 1500, 64, Infilling(rate=1.0, suffix_first_share=0.3))
    firsts = [(row["targets"] == SENTINEL_IDS.prefix).nonzero()[0] for row in rows]
    spm = [row["targets"][at[0] + 1] == SENTINEL_IDS.suffix for row, at in zip(rows, firsts, strict=True) if len(at)]
    assert len(spm) > 1400
    assert np.mean(spm) == pytest.approx(0.3, abs=0.04)


def test_infilling_moves_around_between_epochs():
    seen = collections.Counter()
    for epoch in range(60):
        plan, _, _ = rows_of([500], 512, Infilling(rate=0.5), epoch=epoch)
        seen.update(plan.pieces[:, 4].tolist())
    assert 20 < seen[1] < 40


def test_a_document_does_not_begin_in_the_last_few_positions():
    plan, _, _ = rows_of([54, 40], 60)
    assert plan.row(0) == [(0, 0, 55, True, False)]
    assert plan.row(1) == [(1, 0, 41, True, False)]
    assert MIN_PIECE > 60 - 55


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 1.5}, "Infilling.rate is 1.5"),
        ({"suffix_first_share": -1}, "suffix_first_share"),
        ({"min_tokens": 2}, "3"),
    ],
)
def test_impossible_infilling_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        pack(np.array([5]), 64, Infilling(**changes), ())


def test_rows_that_hold_nothing_are_refused():
    with pytest.raises(ValueError, match="LENGTH is 8"):
        pack(np.array([5]), 8, NEVER, ())
    assert SENTINELS < MIN_PIECE
