"""Which query may see which key: computed once a batch, outside the scan over layers."""

import dataclasses

import jax

from hcxjax.protocols import Array
from hcxjax.shapes import shaped


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionPlan:
    """Positions and documents of queries and keys.

    A query sees a key of the same document (segment) whose position is not greater than its own; segment 0 is padding
    and neither sees nor is seen.

    Attributes:
      q_positions_BT, kv_positions_BS: int32; comparable within one segment.
      q_segments_BT, kv_segments_BS: int32, 0 for padding.
      aligned: True where keys are the queries' own row (training, scoring), so that key s > t is never seen by t and
        a backend may leave later keys out.
    """

    q_positions_BT: Array
    kv_positions_BS: Array
    q_segments_BT: Array
    kv_segments_BS: Array
    aligned: bool = dataclasses.field(metadata={"static": True})

    def mask(self, queries: slice, keys: slice) -> Array:
        """mask_BTS of the named queries and keys; True where attention is allowed."""
        q_positions, q_segments = self.q_positions_BT[:, queries, None], self.q_segments_BT[:, queries, None]
        kv_positions, kv_segments = self.kv_positions_BS[:, None, keys], self.kv_segments_BS[:, None, keys]
        return (q_segments == kv_segments) & (q_segments > 0) & (kv_positions <= q_positions)


@shaped
def attention_plan(segment_ids_BT: Array, positions_BT: Array) -> AttentionPlan:
    """The plan of rows that attend to themselves, several documents a row."""
    segment_ids_BT, positions_BT = jax.lax.stop_gradient((segment_ids_BT, positions_BT))
    return AttentionPlan(positions_BT, positions_BT, segment_ids_BT, segment_ids_BT, aligned=True)
