"""Which query may see which key, and which tiles of a row that makes a kernel visit: once a batch, outside the scan."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hcxjax.protocols import Array
from hcxjax.shapes import shaped


class Tile(NamedTuple):
    """Places of a row that a kernel takes at a time."""

    queries: int
    keys: int


class Spans(NamedTuple):
    """Of each block, the blocks of the other side that it is paired with: [start, stop), int32.

    Those in [plain_start, plain_stop) are seen whole, so that no element needs a mask. Empty spans are 0, 0.
    """

    start: Array
    stop: Array
    plain_start: Array
    plain_stop: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionPlan:
    """Documents of queries and keys, their places in the row, and the tiles that hold a pair that is allowed.

    A query sees a key of the same document (segment) whose place in the row is not after its own; segment 0 is padding
    and neither sees nor is seen. The places of a block follow one another; those of a row's blocks ascend.

    The tiles visited are those needed and no others where documents lie one after another with padding at the end, ids
    ascending, as packed rows do. In any other row some may be visited that hold nothing; what is seen stays the same.

    Attributes:
      q_segments_BT, kv_segments_BS: int32, 0 for padding.
      q_places_I, kv_places_J: int32, place of the first of each block of `tile.queries` queries, `tile.keys` keys; the
        last block may be filled up with padding.
      kv_spans: by block of queries [B, I], the blocks of keys.
      q_spans: by block of keys [B, J], the blocks of queries.
    """

    q_segments_BT: Array
    kv_segments_BS: Array
    q_places_I: Array
    kv_places_J: Array
    kv_spans: Spans
    q_spans: Spans
    tile: Tile = dataclasses.field(metadata={"static": True})

    def mask(self, queries: slice = slice(None), keys: slice = slice(None)) -> Array:
        """mask_BTS of the named queries and keys; True where attention is allowed."""
        q_places_T = _places(self.q_places_I, self.tile.queries, self.q_segments_BT.shape[1])[queries]
        kv_places_S = _places(self.kv_places_J, self.tile.keys, self.kv_segments_BS.shape[1])[keys]
        q_segments_BT1, kv_segments_B1S = self.q_segments_BT[:, queries, None], self.kv_segments_BS[:, None, keys]
        return (q_segments_BT1 == kv_segments_B1S) & (q_segments_BT1 > 0) & (kv_places_S <= q_places_T[:, None])


@shaped
def attention_plan(
    q_segments_BT: Array,
    tile: Tile,
    *,
    kv_segments_BS: Array | None = None,
    q_places_I: Array | None = None,
    kv_places_J: Array | None = None,
) -> AttentionPlan:
    """The plan of rows that attend to themselves, several documents a row.

    Args:
      kv_segments_BS: where the keys are not the queries' own part of the row.
      q_places_I, kv_places_J: places of the blocks' first; None: the row begins at 0 and goes on without gaps.
    """
    q_segments_BT = jax.lax.stop_gradient(q_segments_BT)
    kv_segments_BS = q_segments_BT if kv_segments_BS is None else jax.lax.stop_gradient(kv_segments_BS)
    queries = _Blocks.of(q_segments_BT, tile.queries, q_places_I)
    keys = _Blocks.of(kv_segments_BS, tile.keys, kv_places_J)
    needed_BIJ = (
        (keys.lowest_BI[:, None] <= queries.highest_BI[:, :, None])
        & (queries.lowest_BI[:, :, None] <= keys.highest_BI[:, None])
        & (keys.places_I <= queries.places_I[:, None] + tile.queries - 1)
    )
    plain_BIJ = (
        needed_BIJ
        & (queries.whole_BI[:, :, None] & keys.whole_BI[:, None])
        & (keys.places_I + tile.keys - 1 <= queries.places_I[:, None])
    )
    return AttentionPlan(
        q_segments_BT,
        kv_segments_BS,
        queries.places_I,
        keys.places_I,
        kv_spans=_spans(needed_BIJ, plain_BIJ),
        q_spans=_spans(needed_BIJ.swapaxes(1, 2), plain_BIJ.swapaxes(1, 2)),
        tile=tile,
    )


class _Blocks(NamedTuple):
    """The lowest and the highest document of each block, padding apart; `whole` blocks hold one and no padding."""

    places_I: Array
    lowest_BI: Array
    highest_BI: Array
    whole_BI: Array

    @classmethod
    def of(cls, segments_BT: Array, size: int, places_I: Array | None) -> "_Blocks":
        batch, length = segments_BT.shape
        count = -(-length // size)
        padded = jnp.pad(segments_BT, ((0, 0), (0, count * size - length))).reshape(batch, count, size)
        highest_BI, none = jnp.max(padded, axis=-1), jnp.iinfo(jnp.int32).max
        lowest_BI = jnp.min(jnp.where(padded > 0, padded, none), axis=-1)
        places_I = jnp.arange(count, dtype=jnp.int32) * size if places_I is None else places_I
        return cls(
            jnp.asarray(places_I), lowest_BI, highest_BI, (jnp.min(padded, axis=-1) == highest_BI) & (highest_BI > 0)
        )


def _spans(needed_BIJ: Array, plain_BIJ: Array) -> Spans:
    def span(marked_BIJ: Array) -> tuple[Array, Array]:
        start_BI = jnp.argmax(marked_BIJ, axis=-1)
        stop_BI = marked_BIJ.shape[-1] - jnp.argmax(marked_BIJ[..., ::-1], axis=-1)
        return start_BI, jnp.where(jnp.any(marked_BIJ, axis=-1), stop_BI, start_BI)

    plain_start_BI, plain_stop_BI = span(plain_BIJ)
    # A document whose id another one had before has gaps: then every tile is masked.
    unbroken_BI = plain_stop_BI - plain_start_BI == jnp.sum(plain_BIJ, axis=-1)
    return Spans(*span(needed_BIJ), plain_start_BI, jnp.where(unbroken_BI, plain_stop_BI, plain_start_BI))


def _places(first_I: Array, size: int, length: int) -> Array:
    return (first_I[:, None] + jnp.arange(size)).reshape(-1)[:length]
