"""Which comparisons share a batch: all of a prompt, each once an epoch, in an order that a key decides."""

import numpy as np
import pytest

from hcxjax.data.conversation_batches import LengthBatches, halvings, rows_of
from hcxjax.data.preference_batches import PromptBatches

LENGTH, TOKENS = 128, 2048
BUCKETS = halvings(LENGTH)
ROWS = rows_of([2 * bucket for bucket in BUCKETS], TOKENS)


def drawn(count, prompts, seed=0, most=LENGTH):
    rng = np.random.default_rng(seed)
    return rng.integers(1, most + 1, (count, 2)), rng.integers(0, prompts, count) * 1_000_003


def epoch_of(plan, epoch=0):
    count = int(plan.an_epoch)
    return [plan.batch(number) for number in range(epoch * count, (epoch + 1) * count)]


def members(rows):
    return [row[0] for row in rows.conversations if row]


def test_an_epoch_has_every_comparison_once_and_a_prompt_s_together():
    lengths, prompts = drawn(300, 120)
    plan = PromptBatches(lengths, prompts, BUCKETS, ROWS, (7,))
    for epoch in (0, 1, 2):
        batches = epoch_of(plan, epoch)
        assert sorted(member for batch in batches for member in members(batch)) == list(range(300))
        place = {member: number for number, batch in enumerate(batches) for member in members(batch)}
        for prompt in np.unique(prompts):
            assert len({place[member] for member in np.flatnonzero(prompts == prompt)}) == 1
        for batch in batches:
            assert len(batch.conversations) == ROWS[BUCKETS.index(batch.length)]
            assert lengths[members(batch)].max() <= batch.length
    one, two = ([members(batch) for batch in epoch_of(plan, epoch)] for epoch in (0, 1))
    assert one != two
    assert {tuple(sorted(batch)) for batch in one} != {tuple(sorted(batch)) for batch in two}
    positions = sum(2 * batch.length * len(batch.conversations) for batch in epoch_of(plan))
    assert plan.padding == pytest.approx(1 - lengths.sum() / positions)
    assert plan.prompts == len(np.unique(prompts))


def test_the_key_decides_and_nothing_else():
    lengths, prompts = drawn(200, 80)
    one, same, other = (PromptBatches(lengths, prompts, BUCKETS, ROWS, (key,)) for key in (1, 1, 2))
    order = [30, 3, 57, 0, 12]
    assert [one.batch(number) for number in order] == [same.batch(number) for number in order]
    assert [one.batch(number) for number in order] != [other.batch(number) for number in order]


def test_prompts_of_one_comparison_are_batched_as_conversations_are():
    lengths, _ = drawn(200, 1)
    pairs = PromptBatches(lengths, np.arange(200), BUCKETS, ROWS, (3,))
    conversations = LengthBatches(lengths.max(axis=1), BUCKETS, ROWS, (3,))
    assert pairs.an_epoch == conversations.an_epoch
    for number in range(2 * int(pairs.an_epoch)):
        assert pairs.batch(number) == conversations.batch(number)


def test_large_prompts_that_are_short_stay_among_short_rows():
    """What fills no batch of short rows joins longer ones only where it has room there."""
    sizes = [ROWS[0]] * 3 + [5, 3] + [1] * 3
    prompts = np.repeat(np.arange(len(sizes)), sizes)
    longest = np.repeat([20] * 5 + [LENGTH] * 3, sizes)
    lengths = np.stack([longest, longest // 2], 1)
    assert ROWS[-1] == 8 < ROWS[0] - 1
    sizes_of = [len(members(batch)) for batch in epoch_of(PromptBatches(lengths, prompts, BUCKETS, ROWS, (0,)))]
    assert sorted(sizes_of) == [3, 8, ROWS[0], ROWS[0], ROWS[0]]
    ten = np.append(prompts, np.full(10, 99)), np.concatenate([lengths, np.full((10, 2), 20)])
    batches = epoch_of(PromptBatches(ten[1], ten[0], BUCKETS, ROWS, (0,)))
    short = [batch for batch in batches if set(np.flatnonzero(ten[0] == 99)) & set(members(batch))]
    assert len(short) == 1
    assert short[0].length == BUCKETS[0]
    assert sum(len(members(batch)) for batch in batches) == len(ten[0])


def test_a_prompt_with_more_comparisons_than_a_batch_is_refused():
    lengths, prompts = np.full((9, 2), 100), np.zeros(9, int)
    message = (
        r"of a prompt take 9 rows of 2 texts.* of up to 100 tokens a batch has room for 8: set BATCH_TOKENS to 2304 or "
        r"more, or Preferences\.max_comparisons to 8 or fewer"
    )
    with pytest.raises(ValueError, match=message):
        PromptBatches(lengths, prompts, BUCKETS, ROWS, (0,))
    assert PromptBatches(lengths[:8], prompts[:8], BUCKETS, ROWS, (0,)).an_epoch == 1
    rows = rows_of([4 * bucket for bucket in BUCKETS], TOKENS)
    with pytest.raises(ValueError, match=r"take 5 rows of 4 texts.* room for 4: set BATCH_TOKENS to 2560 or more"):
        PromptBatches(np.full((5, 4), 100), np.zeros(5, int), BUCKETS, rows, (0,))
    lengths, prompts = np.full((33, 2), 20), np.zeros(33, int)
    with pytest.raises(ValueError, match="set BATCH_TOKENS to 2304 or more"):
        PromptBatches(lengths, prompts, BUCKETS, ROWS, (0,))
    assert PromptBatches(lengths, prompts, BUCKETS, rows_of([64, 128, 256], 2304), (0,)).an_epoch == 1
