"""Attention of rows on a mesh: heads over the tensor axis, the places of a row over the context axis.

A row's places are dealt so that every device has as much causal work as any other: of 2C chunks device c holds chunks
c and 2C-1-c (Llama 3, arXiv:2407.21783, section 3.3.2). Queries stay where they are. Keys and values come from all
devices at once, or go round in a ring (Liu et al. 2023, arXiv:2310.01889) whose parts are joined by their log-sums.
"""

import functools
import logging
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from hcxjax.kernels.attention import attention
from hcxjax.kernels.backends import Work, backend_named
from hcxjax.kernels.plan import AttentionPlan, Tile, attention_plan
from hcxjax.kernels.rotary import Angles
from hcxjax.mesh import axes_of, spec_of
from hcxjax.models.config import DecoderConfig
from hcxjax.protocols import Array

_log = logging.getLogger(__name__)

LANES = 128
"""Keys that a kernel's tile is a multiple of."""

Part = Callable[[Array, Array, AttentionPlan], tuple[Array, Array | None]]
"""(k_BSKH, v_BSKH, plan) → (o_BTNH, lse_BNT) of this device's queries over these keys."""


def shards_of(length: int) -> int:
    """Devices that a row of `length` is divided over: 1 where each has the whole row.

    It says so, once, where a mesh has devices for the places of a row and does not divide this one; a row of one token,
    from which parameters are drawn, has nothing to divide.
    """
    axis, mesh = _axis(length), jax.sharding.get_abstract_mesh()
    if axis is not None:
        return mesh.shape[axis]
    for axis in axes_of("length"):
        if length > 1 and axis not in mesh.manual_axes:
            _tell_whole(axis, mesh.shape[axis], length)
    return 1


def dealt(x_BT: Array) -> Array:
    """Columns in the order in which devices hold them."""
    shards = shards_of(x_BT.shape[1])
    return x_BT if shards == 1 else x_BT[:, _places(x_BT.shape[1], shards).reshape(-1)]


def collected(x_BTD: Array) -> Array:
    """What was dealt, back in the row's own order; each device then holds the places that follow another's."""
    shards, axis = shards_of(x_BTD.shape[1]), _axis(x_BTD.shape[1])
    if axis is None or shards == 1:
        return x_BTD

    def moves(parity: int) -> list[tuple[int, int]]:
        held = [(device, chunk) for device in range(shards) for chunk in (device, 2 * shards - 1 - device)]
        return [(device, chunk // 2) for device, chunk in held if chunk % 2 == parity]

    def local(x_BTD: Array) -> Array:
        low, high = jnp.split(x_BTD, 2, axis=1)
        even = jax.lax.axis_index(axis) % 2 == 0  # then its low chunk has an even number, its high one an odd one
        first = jax.lax.ppermute(jnp.where(even, low, high), axis, moves(0))
        second = jax.lax.ppermute(jnp.where(even, high, low), axis, moves(1))
        return jnp.concatenate([first, second], axis=1)

    spec = spec_of(x_BTD.shape, "batch", "length", None)
    return jax.shard_map(local, in_specs=spec, out_specs=spec, check_vma=False)(x_BTD)


def row_plan(segment_ids_BT: Array, config: DecoderConfig) -> AttentionPlan:
    """The plan of rows whose columns are to be dealt, its arrays stacked [C, P] by device and by part of the keys.

    There is one part, the whole row, where keys are gathered; in a ring there are C.

    Args:
      segment_ids_BT: in the row's own order.
    """
    length = segment_ids_BT.shape[1]
    shards, tile = shards_of(length), _tile(length, config)
    if shards == 1:
        plan = attention_plan(segment_ids_BT, tile)
        return jax.tree.map(lambda leaf: leaf[None, None], plan)
    places = _places(length, shards)
    ids_BT, parts = jnp.asarray(segment_ids_BT), places if config.context == "ring" else np.arange(length)[None]

    def of_device(places_T: Array, places_S: Array) -> AttentionPlan:
        return attention_plan(
            ids_BT[:, places_T],
            tile,
            kv_segments_BS=ids_BT[:, places_S],
            q_places_I=places_T[:: tile.queries],
            kv_places_J=places_S[:: tile.keys],
        )

    by_part = jax.vmap(of_device, in_axes=(None, 0))
    return jax.vmap(by_part, in_axes=(0, None))(jnp.asarray(places, jnp.int32), jnp.asarray(parts, jnp.int32))


def row_attention(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, plan: AttentionPlan, angles: Angles, config: DecoderConfig
) -> Array:
    """o_BTNH of queries that are not turned yet, over keys that are, on whatever mesh is set."""
    run = functools.partial(attention, scale=config.attention_scale, backend=config.attention)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return run(q_BTNH, k_BSKH, v_BSKH, jax.tree.map(lambda leaf: leaf[0, 0], plan), angles=angles)[0]
    groups = q_BTNH.shape[2] // k_BSKH.shape[2]
    length = "length" if len(plan.q_places_I) > 1 else None
    q_spec = spec_of(q_BTNH.shape, "batch", length, "heads", None)
    kv_spec = spec_of(k_BSKH.shape, "batch", length, "kv_heads", None)
    axis = q_spec[1] or _taken()

    def local(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, plan: AttentionPlan, angles: Angles) -> Array:
        if kv_spec[2] != q_spec[2]:
            k_BSKH, v_BSKH = (_own_heads(x_BSKH, q_BTNH.shape[2], groups, q_spec[2]) for x_BSKH in (k_BSKH, v_BSKH))
        if axis is None:
            return run(q_BTNH, k_BSKH, v_BSKH, jax.tree.map(lambda leaf: leaf[0, 0], plan), angles=angles)[0]
        through = _ring if config.context == "ring" else _gathered
        plan = jax.tree.map(lambda leaf: leaf[0], plan)
        return through(functools.partial(run, q_BTNH, angles=angles, parts=True), k_BSKH, v_BSKH, plan, axis)

    specs = (q_spec, kv_spec, kv_spec, plan_specs(plan, q_spec), (PartitionSpec(*q_spec[:2]),) * 2)
    return jax.shard_map(local, in_specs=specs, out_specs=q_spec, check_vma=False)(q_BTNH, k_BSKH, v_BSKH, plan, angles)


def _gathered(run: Part, k_BSKH: Array, v_BSKH: Array, plan: AttentionPlan, axis: str):
    shards = jax.sharding.get_abstract_mesh().shape[axis]

    def whole(x_BSKH: Array) -> Array:
        x_BSKH = jax.lax.all_gather(x_BSKH, axis, axis=1, tiled=True)
        chunks = x_BSKH.reshape(len(x_BSKH), 2 * shards, -1, *x_BSKH.shape[2:])
        return chunks[:, np.argsort(_chunks(shards).reshape(-1))].reshape(x_BSKH.shape)

    return run(whole(k_BSKH), whole(v_BSKH), jax.tree.map(lambda leaf: leaf[0], plan))[0]


def _ring(run: Part, k_BSKH: Array, v_BSKH: Array, plan: AttentionPlan, axis: str):
    """o = Σ_p exp(lse_p − lse) o_p over the parts p, lse = log Σ_p exp(lse_p)."""
    shards, me = jax.sharding.get_abstract_mesh().shape[axis], jax.lax.axis_index(axis)
    onwards = [(device, (device + 1) % shards) for device in range(shards)]

    def part(k_BSKH: Array, v_BSKH: Array, number: Array) -> tuple[Array, Array]:
        o_BTNH, lse_BNT = run(k_BSKH, v_BSKH, jax.tree.map(lambda leaf: leaf[number], plan))
        assert lse_BNT is not None, "Backend.parts promises it"
        return o_BTNH.astype(jnp.float32), lse_BNT.swapaxes(1, 2)[..., None]

    def hop(carried: tuple[Array, ...], hops: Array) -> tuple[tuple[Array, ...], None]:
        k_BSKH, v_BSKH, o_BTNH, lse_BTN1 = carried
        k_BSKH, v_BSKH = jax.lax.ppermute((k_BSKH, v_BSKH), axis, onwards)
        o_part, lse_part = part(k_BSKH, v_BSKH, (me - hops) % shards)
        both_BTN1 = jnp.logaddexp(lse_BTN1, lse_part)
        o_BTNH = o_BTNH * jnp.exp(lse_BTN1 - both_BTN1) + o_part * jnp.exp(lse_part - both_BTN1)
        return (k_BSKH, v_BSKH, o_BTNH, both_BTN1), None

    own = part(k_BSKH, v_BSKH, me)
    (_, _, o_BTNH, _), _ = jax.lax.scan(hop, (k_BSKH, v_BSKH, *own), jnp.arange(1, shards))
    return o_BTNH.astype(v_BSKH.dtype)


def _own_heads(x_BSKH: Array, heads: int, groups: int, axes: tuple[str, ...]) -> Array:
    """The one KV head that this device's query heads share, where KV heads are fewer than devices."""
    if groups % heads:
        raise ValueError(
            f"{x_BSKH.shape[2]} KV heads (DecoderConfig.num_kv_heads) cannot be dealt to the mesh axis {axes}: the "
            f"{heads} query heads of a device share no single one. Make one a multiple of the other (Layout.{axes})"
        )
    return jax.lax.dynamic_slice_in_dim(x_BSKH, jax.lax.axis_index(axes) * heads // groups, 1, axis=2)


def plan_specs(plan: AttentionPlan, q_spec: PartitionSpec) -> AttentionPlan:
    """Of the stacked plan [C, P, ...]: rows [B, ...] as the queries', places [I] by device alone."""
    return jax.tree.map(lambda leaf: PartitionSpec(q_spec[1], None, *([q_spec[0]] if leaf.ndim == 4 else [])), plan)


def parted(plan: AttentionPlan, parts: int) -> AttentionPlan:
    """The stacked plan of each of M parts of the rows, its arrays stacked anew: [M, C, P, ...]."""

    def leaf_of(leaf: Array) -> Array:
        if leaf.ndim == 3:  # places, which are those of every row
            return jnp.broadcast_to(leaf, (parts, *leaf.shape))
        return jnp.moveaxis(leaf.reshape(*leaf.shape[:2], parts, -1, leaf.shape[3]), 2, 0)

    return jax.tree.map(leaf_of, plan)


def _axis(length: int) -> str | None:
    """The mesh axis that the places of a row are divided over; None where there is none, or the row does not divide."""
    mesh = jax.sharding.get_abstract_mesh()
    spec = () if mesh.empty else tuple(spec_of((length,), "length"))
    return spec[0] if spec and spec[0] and length % (2 * mesh.shape[spec[0]]) == 0 else None


@functools.cache
def _tell_whole(axis: str, shards: int, length: int) -> None:
    _log.warning(
        "rows of %d tokens are not divided over Layout.%s, %d: each of its devices computes them whole. Only a "
        "multiple of %d is divided: set the length of what reads such rows (the source, an evaluator) to one",
        length,
        axis,
        shards,
        2 * shards,
    )


def _taken() -> str | None:
    """The mesh axis of the places, where a shard_map further out has divided them already."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    return next((axis for axis in axes_of("length") if axis in manual), None)


def _chunks(shards: int) -> np.ndarray:
    """[C, 2]: the chunks of each device."""
    devices = np.arange(shards)
    return np.stack([devices, 2 * shards - 1 - devices], axis=1)


def _places(length: int, shards: int) -> np.ndarray:
    """[C, T/C]: the places of each device."""
    chunk = length // (2 * shards)
    return (_chunks(shards)[..., None] * chunk + np.arange(chunk)).reshape(shards, -1)


def _tile(length: int, config: DecoderConfig) -> Tile:
    """The backend's tile, or the run's; where a row is divided, one that does not reach over two chunks."""
    shards = shards_of(length)
    backend = backend_named(config.attention, Work(config.head_dim, config.dtype, parts=shards > 1))
    tile = config.attention_tile or backend.tile
    if shards > 1:
        return Tile(*(math.gcd(size, length // (2 * shards)) for size in tile))
    return Tile(*(min(size, -(-length // LANES) * LANES) for size in tile))
