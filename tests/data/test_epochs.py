import collections

import numpy as np
import pytest

from hcxjax.data.epochs import Epochs, blocks
from hcxjax.data.packing import Infilling

LENGTHS = np.random.default_rng(0).lognormal(4.6, 0.8, 2000).astype(int)
NEVER = Infilling(rate=0.0)
KEY = (5, 0)


def epochs(**changes):
    settings = {"lengths": LENGTHS, "length": 256, "infilling": Infilling(), "key": KEY, "block_tokens": 20_000}
    return Epochs(**(settings | {"window": 3} | changes))


def pieces_of(source, epoch):
    """Every piece of an epoch in the order it is read."""
    found = []
    for number in range(epoch * source.rows, (epoch + 1) * source.rows):
        at, row, plan = source.locate(number)
        assert at == epoch
        found.append(plan.row(row))
    return found


def test_blocks_are_runs_of_documents_of_about_as_many_tokens():
    starts = blocks(LENGTHS, 20_000)
    assert starts[0] == 0
    assert starts[-1] == 2000
    sizes = np.add.reduceat(LENGTHS + 1, starts[:-1])
    assert len(sizes) > 10
    assert (sizes[:-1] > 20_000 - LENGTHS.max() - 1).all()
    assert (sizes < 20_000 + LENGTHS.max() + 1).all()
    assert blocks(np.array([5, 100_000, 5, 5]), 1000).tolist() == [0, 2, 4]  # no block without a document


@pytest.mark.parametrize("window", [1, 3, 100])
def test_an_epoch_reads_every_document_once(window):
    source = epochs(window=window)
    for epoch in range(2):
        ends, tokens = collections.Counter(), collections.Counter()
        for row in pieces_of(source, epoch):
            ends.update(piece.document for piece in row if piece.last)
            for piece in row:
                tokens[piece.document] += piece.stop - piece.start
        assert ends == dict.fromkeys(range(2000), 1)
        assert tokens == dict(enumerate((LENGTHS + 1).tolist()))


def test_epochs_differ_in_order_and_infilling_and_have_as_many_rows():
    source = epochs(infilling=NEVER)
    first, second = ([tuple(row) for row in pieces_of(source, epoch)] for epoch in range(2))
    assert len(first) == len(second) == source.rows
    assert len(set(first) & set(second)) < 0.05 * len(first)
    infilled = epochs(infilling=Infilling(rate=0.5))
    draws = [
        {(piece.document, piece.start): piece.infilled for row in pieces_of(infilled, epoch) for piece in row}
        for epoch in range(2)
    ]
    whole = [place for place in draws[0].keys() & draws[1].keys() if LENGTHS[place[0]] >= 24 and place[1] == 0]
    assert 0.4 < np.mean([draws[0][place] == draws[1][place] for place in whole]) < 0.6


def test_rows_are_read_a_window_of_blocks_at_a_time():
    source = epochs(window=2)
    seen = [row[0].document // 150 for row in pieces_of(source, 0) if row]  # about a block
    assert len(set(seen[:100])) < 6
    assert len(set(np.diff(seen[:100]))) > 2  # shuffled within the window
    first, again = ({piece.document for row in pieces_of(source, n)[:100] for piece in row} for n in range(2))
    assert len(first & again) < 0.7 * len(first)  # other blocks come first


def test_rows_of_one_block_are_read_in_another_order_in_every_epoch():
    source = epochs(block_tokens=10**9)
    first, second = ([source.locate(epoch * source.rows + row)[1] for row in range(source.rows)] for epoch in range(2))
    assert sorted(first) == sorted(second) == list(range(source.rows))
    assert np.mean(np.array(first) == second) < 0.05


def test_rows_are_full():
    for rate in (0.0, 0.5, 1.0):
        assert epochs(infilling=Infilling(rate=rate), block_tokens=60_000).padding < 0.01


@pytest.mark.parametrize("length", [4096, 32_768])
def test_padding_at_the_lengths_of_the_report(length):
    lengths = np.random.default_rng(1).lognormal(6.0, 1.2, 12_000).astype(int)
    source = Epochs(lengths, length, Infilling(), KEY)
    assert lengths.sum() > 1 << 22
    assert 0 <= source.padding < 0.01


def test_where_a_row_lies_depends_on_the_key_alone():
    jumping, forward = epochs(), epochs()
    order = [forward.locate(number)[:2] for number in range(40)]
    assert [jumping.locate(number)[:2] for number in reversed(range(40))][::-1] == order
    assert [epochs(key=(6, 0)).locate(number)[:2] for number in range(40)] != order


def test_a_far_row_is_found_without_planning_what_lies_before():
    source = epochs()
    assert source.locate(source.rows * 10**9 + 5)[0] == 10**9
    assert source._plan.cache_info().misses == 1


def test_short_rows_are_refused():
    with pytest.raises(ValueError, match="LENGTH is 8"):
        epochs(length=8)
