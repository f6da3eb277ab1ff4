"""cuDNN's fused attention in its packed form: each document a sequence of its own, at its place in the row.

jax's public way to cuDNN cannot name documents; its private one can, from Hopper on. We bind the primitives that become
cuDNN's calls and work out the offsets ourselves, because jax 0.10 multiplies those of the keys by the number of query
heads, which is wrong for grouped queries (0.11 has it right), and because kernels here see one device's arrays.

cuDNN is given room for a number of documents a row that is fixed when the program is compiled, and its time and its
log-sums grow with that number. `documents_at_once` says how many; rows of more take several passes, of as many each.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as stablehlo
from jax.ad_checkpoint import checkpoint_name

from hcxjax.kernels.plan import AttentionPlan
from hcxjax.kernels.rotary import Angles
from hcxjax.protocols import Array
from hcxjax.shapes import shaped

MOST_OFFSETS = 2**31
"""cuDNN's offsets into q are int32."""

_BTNH = stablehlo.AttentionLayout.BTNH.value


def documents_at_once(length: int) -> int:
    """Documents a row that one pass takes: 16, or one for every 256 tokens of longer rows."""
    return max(2, min(length, max(16, length // 256)))


@shaped
def cudnn_attention(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, plan: AttentionPlan, *, scale: float, angles: Angles | None = None
) -> tuple[Array, None]:
    """As `reference_attention` of queries that are turned, of whole rows, in bfloat16 or float16.

    The log-sums are kept for the backward pass ('attention_lse', beside 'attention'), but cuDNN cannot be given their
    gradient. A row whose documents do not lie one after another with ascending ids becomes NaN.

    Raises:
      ValueError: queries are not the row's own keys, or so many numbers that cuDNN cannot count them.
    """
    assert angles is None
    length, keys = q_BTNH.shape[1], k_BSKH.shape[1]
    if length != keys:
        raise ValueError(f"attention backend 'cudnn' takes whole rows; it was given {length} queries and {keys} keys")
    if q_BTNH.size >= MOST_OFFSETS:
        raise ValueError(
            f"attention backend 'cudnn' counts a device's queries by 32 bits; {q_BTNH.shape} are {q_BTNH.size:,} "
            f"numbers, and {MOST_OFFSETS:,} are too many: make BATCH smaller, or divide it over more devices"
        )
    return _attend(q_BTNH, k_BSKH, v_BSKH, plan.q_segments_BT, scale), None


class _Documents(NamedTuple):
    """Some of the documents of each row: the first token of each, its length (0: there is none), and whose tokens."""

    starts_BM: Array
    lengths_BM: Array
    slot_BT: Array
    here_BT: Array

    @classmethod
    def of(cls, segments_BT: Array, first: Array | int, count: int) -> "_Documents":
        slot_BT = _numbered(segments_BT) - first
        length, slots = segments_BT.shape[1], jnp.arange(count)[:, None]
        of_BMT = (slot_BT[:, None] == slots) & (segments_BT > 0)[:, None]
        starts_BM = jnp.min(jnp.where(of_BMT, jnp.arange(length), length), axis=-1)
        here_BT = (slot_BT >= 0) & (slot_BT < count) & (segments_BT > 0)
        return cls(starts_BM, jnp.sum(of_BMT, axis=-1, dtype=jnp.int32), jnp.clip(slot_BT, 0, count - 1), here_BT)

    def offsets(self, length: int, stride: int) -> Array:
        """[B, M + 1], int32: where each document begins in an array of `stride` numbers a token.

        They ascend, as cuDNN has it: of a document that there is not, the end of its row. It reads the first B·M + 1.
        """
        batch, count = self.starts_BM.shape
        starts_BM = self.starts_BM + length * jnp.arange(batch)[:, None]
        ends = jnp.full((batch,), batch * length)
        offsets = jnp.concatenate([starts_BM.reshape(-1), ends]) * stride
        return offsets.astype(jnp.int32).reshape(batch, count + 1)


def _numbered(segments_BT: Array) -> Array:
    """number_BT of each token's document in its row, from 0; padding has that of what stands before it."""
    before_BT = jnp.pad(segments_BT, ((0, 0), (1, 0)))[:, :-1]
    return jnp.cumsum((segments_BT != before_BT) & (segments_BT > 0), axis=1, dtype=jnp.int32) - 1


def _in_order(segments_BT: Array) -> Array:
    """Of each row, whether ids ascend, so that no document stands in two places."""
    before_BT = jnp.pad(segments_BT, ((0, 0), (1, 0)))[:, :-1]
    highest_BT = jax.lax.cummax(before_BT, axis=1)
    begins_BT = (segments_BT != before_BT) & (segments_BT > 0)
    return jnp.all(~begins_BT | (segments_BT > highest_BT), axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, segments_BT: Array, scale: float) -> Array:
    """o_BTNH of one pass after another."""

    def run(documents: _Documents) -> tuple[Array, ...]:
        operands = _operands(q_BTNH, k_BSKH, v_BSKH, documents)
        return tuple(stablehlo._dot_product_attention_fwd_p.bind(*operands, **_settings(scale), is_training=False))

    return _passes(run, segments_BT, (q_BTNH,))[0]


def _attend_forward(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, segments_BT: Array, scale: float) -> tuple:
    batch, length, heads, _ = q_BTNH.shape

    def run(documents: _Documents) -> tuple[Array, Array]:
        operands = _operands(q_BTNH, k_BSKH, v_BSKH, documents)
        o_BTNH, sums = stablehlo._dot_product_attention_fwd_p.bind(*operands, **_settings(scale), is_training=True)
        return o_BTNH, _of_rows(sums.reshape(batch, -1, heads, length), documents)

    like = q_BTNH, jnp.zeros((batch, length, heads), jnp.float32)
    o_BTNH, lse_BTN = _passes(run, segments_BT, like)
    o_BTNH, lse_BTN = checkpoint_name(o_BTNH, "attention"), checkpoint_name(lse_BTN, "attention_lse")
    return o_BTNH, (q_BTNH, k_BSKH, v_BSKH, segments_BT, o_BTNH, lse_BTN)


def _attend_backward(scale: float, kept: tuple, do_BTNH: Array) -> tuple:
    q_BTNH, k_BSKH, v_BSKH, segments_BT, o_BTNH, lse_BTN = kept

    def run(documents: _Documents) -> tuple[Array, ...]:
        operands = *_operands(q_BTNH, k_BSKH, v_BSKH, documents), _of_documents(lse_BTN, documents), o_BTNH, do_BTNH
        return tuple(stablehlo._dot_product_attention_bwd_p.bind(*operands, **_settings(scale)))

    return *_passes(run, segments_BT, (q_BTNH, k_BSKH, v_BSKH)), None


_attend.defvjp(_attend_forward, _attend_backward)


def _passes(run: Callable[[_Documents], tuple[Array, ...]], segments_BT: Array, like: tuple[Array, ...]) -> tuple:
    """What `run` says of as many documents as it takes at once, for all of them.

    Returns: arrays as `like`; padding, which cuDNN leaves out, is 0, and rows that are not in order are NaN.
    """
    count, in_order_B = documents_at_once(segments_BT.shape[1]), _in_order(segments_BT)

    def along_rows(values: Array, x: Array) -> Array:
        return jnp.expand_dims(values, tuple(range(values.ndim, x.ndim)))

    def add(number: Array | int, found: tuple[Array, ...]) -> tuple[Array, ...]:
        documents = _Documents.of(segments_BT, number * count, count)
        here_BT = documents.here_BT & in_order_B[:, None]
        return tuple(
            jnp.where(along_rows(here_BT, new), new, old) for new, old in zip(run(documents), found, strict=True)
        )

    nothing = tuple(
        jnp.broadcast_to(along_rows(jnp.where(in_order_B, 0.0, jnp.nan), x), x.shape).astype(x.dtype) for x in like
    )
    if segments_BT.shape[1] <= count:
        return add(0, nothing)
    return jax.lax.fori_loop(0, (jnp.max(_numbered(segments_BT)) + count) // count, add, nothing)


def _operands(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, documents: _Documents) -> tuple[Array, ...]:
    """What both of cuDNN's calls take: no bias, the documents among queries and keys, no pages."""
    length, unused = q_BTNH.shape[1], jnp.zeros(0, q_BTNH.dtype)
    q_offsets, kv_offsets = (documents.offsets(length, x.shape[2] * x.shape[3]) for x in (q_BTNH, k_BSKH))
    lengths_BM = documents.lengths_BM
    return q_BTNH, k_BSKH, v_BSKH, unused, lengths_BM, lengths_BM, q_offsets, kv_offsets, unused, unused


def _settings(scale: float) -> dict[str, object]:
    return {
        "scale": scale,
        "seed": 42,
        "dropout_rate": 0.0,
        "variadic_args": (False, False),
        "mask_type": stablehlo.MaskType.PADDING_CAUSAL,
        "layout": _BTNH,
        "sliding_window_length": None,
    }


def _of_rows(sums_BMNT: Array, documents: _Documents) -> Array:
    """lse_BTN from cuDNN's log-sums, which have each document's tokens from place 0 on."""
    rows_B1 = jnp.arange(len(sums_BMNT))[:, None]
    local_BT = jnp.arange(sums_BMNT.shape[-1]) - documents.starts_BM[rows_B1, documents.slot_BT]
    return sums_BMNT[rows_B1, documents.slot_BT, :, jnp.maximum(local_BT, 0)]


def _of_documents(lse_BTN: Array, documents: _Documents) -> Array:
    """The log-sums as cuDNN has them, [B·M, N, T]; beyond a document's end they are any that are finite."""
    batch, length, heads = lse_BTN.shape
    at_BMT = jnp.minimum(documents.starts_BM[..., None] + jnp.arange(length), length - 1)
    sums_BMTN = lse_BTN[jnp.arange(batch)[:, None, None], at_BMT]
    return sums_BMTN.swapaxes(2, 3).reshape(-1, heads, length)
