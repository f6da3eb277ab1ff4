"""What a head says of target tokens, some positions at a time: logits of a long row never exist as a whole.

On a mesh every device scores its own places of its own rows against its own part of the vocabulary. The head is
gathered once, in the compute dtype, and its gradient is summed in float32 and divided once, whatever the number of
chunks.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from hcxjax.mesh import spec_of
from hcxjax.protocols import Array

R = TypeVar("R")
Axes = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Head:
    """The static part.

    Attributes:
      dtype: of the product; the logits are float32.
      multiplier: of the logits.
      chunk: positions of a device's rows whose logits exist at a time.
      vocabulary, width: mesh axes over which the head's rows and columns are divided.
    """

    dtype: str
    multiplier: float
    chunk: int
    vocabulary: Axes = ()
    width: Axes = ()


def target_scores(
    table_VD: Array, x_BTD: Array, targets_BT: Array, *, dtype: str, multiplier: float, chunk: int | None
) -> tuple[Array, Array, Array, Array]:
    """(logprob_BT, normaliser_BT, top_BT, likeliest_BT) of targets under multiplier · x W^T, as `TokenScores`.

    The backward pass computes each chunk's logits anew: d logit_v = (g_p [v = y] + p_v (g_z − g_p)) multiplier, with
    g_p and g_z the gradients of logprob and normaliser. Vocabulary-parallel as in Shoeybi et al. 2019,
    arXiv:1909.08053, section 3.

    Args:
      table_VD: float32, or the dtype that it is kept in.
      chunk: None for whole rows.
    """
    mesh = jax.sharding.get_abstract_mesh()
    head = Head(dtype, multiplier, chunk or x_BTD.shape[1])
    if mesh.empty or mesh.size == 1:
        return _scores(head, table_VD, x_BTD, targets_BT)
    table_spec, x_spec = spec_of(table_VD.shape, "vocab", "embed"), spec_of(x_BTD.shape, "batch", "length", None)
    head = dataclasses.replace(head, vocabulary=_names(table_spec[0]), width=_names(table_spec[1]))
    rows = PartitionSpec(*x_spec[:2])
    local = jax.shard_map(
        functools.partial(_scores, head), in_specs=(table_spec, x_spec, rows), out_specs=rows, check_vma=False
    )
    return local(table_VD, x_BTD, targets_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scores(head: Head, table_VD: Array, x_BTD: Array, targets_BT: Array) -> tuple[Array, Array, Array, Array]:
    return _forward(head, table_VD, x_BTD, targets_BT)[0]


def _forward(head: Head, table_VD: Array, x_BTD: Array, targets_BT: Array):
    weight_VD = _gathered(head, table_VD)

    def score(chunk: tuple[Array, ...]) -> tuple[Array, Array, Array, Array]:
        x_BTD, targets_BT = chunk
        logits_BTV = _logits(head, weight_VD, x_BTD)
        best_BT = _over(head, jax.lax.pmax, jnp.max(logits_BTV, axis=-1))
        total_BT = jnp.sum(jnp.exp(logits_BTV - best_BT[..., None]), axis=-1)
        normaliser_BT = best_BT + jnp.log(_over(head, jax.lax.psum, total_BT))
        mine_BTV = _is_target(head, targets_BT, len(weight_VD))
        target_BT = _over(head, jax.lax.psum, jnp.sum(jnp.where(mine_BTV, logits_BTV, 0), axis=-1))
        numbers_BTV = jax.lax.broadcasted_iota(jnp.int32, logits_BTV.shape, 2) + _first(head, len(weight_VD))
        none = jnp.iinfo(jnp.int32).max
        likeliest_BT = jnp.min(jnp.where(logits_BTV == best_BT[..., None], numbers_BTV, none), axis=-1)
        likeliest_BT = _over(head, jax.lax.pmin, likeliest_BT)
        return target_BT - normaliser_BT, normaliser_BT, target_BT >= best_BT, likeliest_BT

    found = _by_chunks(head, score, x_BTD, targets_BT)
    return found, (table_VD, x_BTD, targets_BT, found[1])


def _backward(head: Head, kept: tuple[Array, ...], gradients: tuple[Array, ...]) -> tuple[Array | None, ...]:
    table_VD, x_BTD, targets_BT, normaliser_BT = kept
    weight_VD = _gathered(head, table_VD)
    # What the devices of the vocabulary all hold, shard_map takes for one share of the whole each.
    gradients = tuple(_over(head, jax.lax.psum, gradient) for gradient in gradients[:2])

    def add(sum_VD: Array, chunk: tuple[Array, ...]) -> tuple[Array, Array]:
        x_BTD, targets_BT, normaliser_BT1, of_logprob_BT1, of_normaliser_BT1 = chunk
        p_BTV = jnp.exp(_logits(head, weight_VD, x_BTD) - normaliser_BT1)
        mine_BTV = _is_target(head, targets_BT, len(weight_VD))
        d_BTV = jnp.where(mine_BTV, of_logprob_BT1, 0) + p_BTV * (of_normaliser_BT1 - of_logprob_BT1)
        d_BTV = (d_BTV * head.multiplier).astype(head.dtype)
        dx_BTD = jnp.einsum("BTV,VD->BTD", d_BTV, weight_VD, preferred_element_type=jnp.float32)
        of_chunk_VD = jnp.einsum("BTV,BTD->VD", d_BTV, x_BTD.astype(head.dtype), preferred_element_type=jnp.float32)
        return sum_VD + of_chunk_VD, dx_BTD

    columns = (x_BTD, targets_BT, *(column[..., None] for column in (normaliser_BT, *gradients)))
    sum_VD, dx_NBTD = jax.lax.scan(add, jnp.zeros(weight_VD.shape, jnp.float32), _chunks(head, *columns))
    if head.width:
        sum_VD = jax.lax.psum_scatter(sum_VD, head.width, scatter_dimension=1, tiled=True)
    return sum_VD.astype(table_VD.dtype), _joined(dx_NBTD, x_BTD.shape[1]).astype(x_BTD.dtype), None


_scores.defvjp(_forward, _backward)


def _gathered(head: Head, table_VD: Array) -> Array:
    weight_VD = table_VD.astype(head.dtype)
    return jax.lax.all_gather(weight_VD, head.width, axis=1, tiled=True) if head.width else weight_VD


def _logits(head: Head, weight_VD: Array, x_BTD: Array) -> Array:
    x_BTD = x_BTD.astype(head.dtype)
    return jnp.einsum("BTD,VD->BTV", x_BTD, weight_VD, preferred_element_type=jnp.float32) * head.multiplier


def _over(head: Head, reduce: Callable[[Array, Axes], Array], value: Array) -> Array:
    """`value` reduced over the devices that share the vocabulary."""
    return reduce(value, head.vocabulary) if head.vocabulary else value


def _first(head: Head, entries: int) -> Array | int:
    """The first entry of this device's part of the vocabulary."""
    return jax.lax.axis_index(head.vocabulary) * entries if head.vocabulary else 0


def _is_target(head: Head, targets_BT: Array, entries: int) -> Array:
    return targets_BT[..., None] - _first(head, entries) == jnp.arange(entries)


def _chunks(head: Head, *columns: Array) -> tuple[Array, ...]:
    """[B, T, ...] as [chunks, B, chunk, ...], the last filled up with zeros."""
    length = columns[0].shape[1]
    count = -(-length // head.chunk)

    def cut(column: Array) -> Array:
        widths = [(0, 0), (0, count * head.chunk - length)] + [(0, 0)] * (column.ndim - 2)
        return jnp.moveaxis(jnp.pad(column, widths).reshape(len(column), count, head.chunk, *column.shape[2:]), 1, 0)

    return tuple(cut(column) for column in columns)


def _joined(parts: Array, length: int) -> Array:
    """The inverse of `_chunks`."""
    parts = jnp.moveaxis(parts, 0, 1)
    return parts.reshape(len(parts), -1, *parts.shape[3:])[:, :length]


def _by_chunks(head: Head, score: Callable[[tuple[Array, ...]], R], *columns: Array) -> R:
    length = columns[0].shape[1]
    return jax.tree.map(lambda found: _joined(found, length), jax.lax.map(score, _chunks(head, *columns)))


def _names(axes: str | Axes | None) -> Axes:
    return (axes,) if isinstance(axes, str) else axes or ()
