import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.kernels.plan import Tile, attention_plan

LENGTH = 96


def packed(rows, seed):
    """Rows of documents, most of them with a padding tail."""
    rng = np.random.default_rng(seed)
    segments = np.zeros((rows, LENGTH), np.int32)
    for row in segments:
        at = number = 0
        while at < LENGTH and rng.random() > 0.05:
            size, number = int(rng.lognormal(2.5, 1.2)) + 1, number + 1
            row[at : at + size] = number
            at += size
    return segments


def visited(spans, others, kind=""):
    """[rows, blocks, others]: True where a span has the other block."""
    numbers = np.arange(others)
    start, stop = (np.asarray(getattr(spans, f"{kind}{end}"))[..., None] for end in ("start", "stop"))
    return (start <= numbers) & (numbers < stop)


@pytest.mark.parametrize("tile", [Tile(8, 8), Tile(8, 24), Tile(32, 16)])
def test_tiles_visited_are_the_tiles_needed(tile):
    """On 1,000 random packings; those visited without a mask are those that allow every pair."""
    segments = packed(1000, seed=tile.keys)
    same = (segments[:, :, None] == segments[:, None]) & (segments > 0)[:, :, None] & np.tri(LENGTH, dtype=bool)
    tiles = same.reshape(1000, LENGTH // tile.queries, tile.queries, LENGTH // tile.keys, tile.keys)
    needed, whole = tiles.any((2, 4)), tiles.all((2, 4))
    assert whole.any() or tile.queries > 16
    plan = attention_plan(jnp.asarray(segments), tile)
    for kind, expected in (("", needed), ("plain_", whole)):
        np.testing.assert_array_equal(visited(plan.kv_spans, needed.shape[2], kind), expected)
        np.testing.assert_array_equal(visited(plan.q_spans, needed.shape[1], kind), expected.swapaxes(1, 2))
    np.testing.assert_array_equal(plan.mask(), same)


def test_rows_that_no_packing_makes_miss_nothing():
    """Ids that come twice, padding in the middle: more may be visited, never less, and no mask is left out."""
    rng = np.random.default_rng(0)
    segments = rng.integers(0, 4, size=(500, 12)).repeat(8, axis=1).astype(np.int32)
    same = (segments[:, :, None] == segments[:, None]) & (segments > 0)[:, :, None] & np.tri(LENGTH, dtype=bool)
    tiles = same.reshape(500, 12, 8, 12, 8)
    plan = attention_plan(jnp.asarray(segments), Tile(8, 8))
    seen, plain = visited(plan.kv_spans, 12), visited(plan.kv_spans, 12, "plain_")
    assert np.all(seen >= tiles.any((2, 4)))
    assert np.all(plain <= tiles.all((2, 4)))
    assert np.all(plain <= seen)


def test_rows_that_tiles_do_not_divide_end_in_padding():
    plan = attention_plan(jnp.ones((1, 20), jnp.int32), Tile(8, 16))
    np.testing.assert_array_equal(visited(plan.kv_spans, 2), [[[True, False], [True, False], [True, True]]])
    np.testing.assert_array_equal(plan.mask()[0], np.tri(20, dtype=bool))
