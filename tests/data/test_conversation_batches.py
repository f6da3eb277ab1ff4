"""Plans of batches: a constant budget, every conversation once an epoch, an order of the key and the number alone."""

import numpy as np
import pytest

from hcxjax.data.conversation_batches import LengthBatches, PackedBatches, halvings, packed, rows_of

TOKENS = 2048
BUCKETS = halvings(512)
ROWS = rows_of(BUCKETS, TOKENS)


@pytest.fixture(scope="module")
def lengths():
    drawn = np.random.default_rng(0).lognormal(4.3, 0.8, 1000).astype(np.int64)
    return np.clip(drawn, 5, 512)


def plan(lengths, key=(3,), buckets=BUCKETS, rows=ROWS):
    return LengthBatches(lengths, buckets, rows, key)


def epoch(plan, number=0):
    count = round(plan.an_epoch)
    return [plan.batch(number * count + place) for place in range(count)]


def members(batches):
    return [member for batch in batches for row in batch.conversations for member in row]


def test_default_buckets_are_the_length_and_its_halves():
    assert halvings(4096) == (32, 64, 128, 256, 512, 1024, 2048, 4096)
    assert halvings(63) == (63,)
    assert halvings(96) == (48, 96)


@pytest.mark.parametrize("tokens", [2048, 2050, 4000, 65536])
@pytest.mark.parametrize("buckets", [BUCKETS, (96, 160, 384, 512)])
def test_a_batch_has_as_many_rows_as_its_tokens_allow(tokens, buckets):
    rows = rows_of(buckets, tokens)
    least = tokens // 512
    assert rows[-1] == least
    for bucket, count in zip(buckets, rows, strict=True):
        assert count % least == 0, "what divides the longest rows divides all"
        assert tokens - least * bucket < count * bucket <= tokens
    assert rows_of(buckets, 511)[-1] == 0


def test_rows_are_no_longer_than_needed_and_batches_have_the_same_tokens(lengths):
    batches = epoch(plan(lengths))
    assert {(batch.length, len(batch.conversations)) for batch in batches} == set(zip(BUCKETS, ROWS, strict=True))
    assert {batch.length * len(batch.conversations) for batch in batches} == {TOKENS}
    for batch in batches:
        assert all(lengths[member] <= batch.length for row in batch.conversations for member in row)
    assert sum(not all(batch.conversations) for batch in batches) <= 1
    longer = [batch for batch in batches if batch.length > BUCKETS[0]]
    moved = [m for batch in longer for row in batch.conversations for m in row if lengths[m] <= batch.length // 2]
    assert len(moved) < sum(ROWS), "fewer than a batch of each bucket go up"


@pytest.mark.parametrize("number", [0, 1, 7])
def test_every_conversation_comes_once_an_epoch(lengths, number):
    assert sorted(members(epoch(plan(lengths), number))) == list(range(1000))


def test_epochs_and_seeds_have_orders_of_their_own(lengths):
    ours = plan(lengths)
    first, second = epoch(ours, 0), epoch(ours, 1)
    assert members(first) != members(second)
    assert [batch.length for batch in first] != [batch.length for batch in second]
    assert not {frozenset(members([batch])) for batch in first} & {frozenset(members([batch])) for batch in second}
    assert members(epoch(plan(lengths, (4,)))) != members(first)
    lengths_in_order = [batch.length for batch in first]
    assert lengths_in_order != sorted(lengths_in_order), "the buckets come mixed"


def test_a_batch_is_a_function_of_its_number(lengths):
    forward, jumping = plan(lengths), plan(lengths)
    batches = [forward.batch(number) for number in range(200)]
    for number in (150, 3, 199, 0, 77):
        assert jumping.batch(number) == batches[number]


@pytest.mark.parametrize("count", [1, 5, 80])
def test_few_short_conversations_take_no_long_rows(count):
    batches = epoch(plan(np.full(count, 20)))
    assert {(batch.length, len(batch.conversations)) for batch in batches} == {(32, 64)}
    assert len(batches) == -(-count // 64)


def test_without_a_key_the_order_is_kept(lengths):
    batches = epoch(plan(lengths, key=None))
    short = [m for m in members(batch for batch in batches if batch.length == 64) if lengths[m] > 32]
    assert short == sorted(short)


def test_padding_is_what_it_says(lengths):
    ours = plan(lengths)
    positions = sum(batch.length * len(batch.conversations) for batch in epoch(ours))
    assert ours.padding == pytest.approx(1 - lengths.sum() / positions)


def test_rows_are_packed_to_the_brim(lengths):
    rows = packed(np.arange(1000), lengths, 512)
    assert sorted(member for row in rows for member in row) == list(range(1000))
    assert all(lengths[list(row)].sum() <= 512 for row in rows)
    assert len(rows) <= np.ceil(lengths.sum() / 512) + 1


def test_packed_rows_come_once_an_epoch_and_hold_one_source(lengths):
    sources = np.arange(1000) % 3
    ours = PackedBatches(lengths, sources, 512, 4, (3,))
    rows = [row for number in range(400) for row in ours.batch(number).conversations]
    an_epoch = round(ours.an_epoch * 4)
    for start in (0, an_epoch, 2 * an_epoch):
        seen = [member for row in rows[start : start + an_epoch] for member in row]
        assert sorted(seen) == list(range(1000))
    assert rows[:an_epoch] != rows[an_epoch : 2 * an_epoch]
    assert all(len(set(sources[list(row)])) == 1 for row in rows)
    assert ours.padding < 0.03
    again = PackedBatches(lengths, sources, 512, 4, (3,))
    assert [again.batch(number) for number in (50, 2)] == [ours.batch(50), ours.batch(2)]
