"""Self-attention of a block, over its own row or over an explicit key/value cache."""

import functools
from typing import NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from hcxjax.kernels.cached import cached_attention
from hcxjax.kernels.plan import AttentionPlan
from hcxjax.kernels.rotary import rotate
from hcxjax.mesh import constrain
from hcxjax.models.config import DecoderConfig
from hcxjax.models.context import row_attention
from hcxjax.models.layers import Einsum
from hcxjax.protocols import Array

Sight: TypeAlias = AttentionPlan | Array
"""What queries see: their own row as a plan says, or, over a cache, all up to their own positions_BT."""


class KVCache(NamedTuple):
    """Rotated keys and values of all layers; place s of a row holds position s.

    It travels in the scan's carry, never as xs/ys, because a scan copies those whole at every token.

    Attributes:
      k_LBKSH, v_LBKSH: in the compute dtype, or int8 with a scale for each vector.
      k_scale_LBKS, v_scale_LBKS: float32, of int8 caches: a vector is int8 values times its scale.
    """

    k_LBKSH: Array
    v_LBKSH: Array
    k_scale_LBKS: Array | None = None
    v_scale_LBKS: Array | None = None

    @property
    def capacity(self) -> int:
        """Positions that fit."""
        return self.k_LBKSH.shape[3]

    @classmethod
    def empty(cls, config: DecoderConfig, batch: int, capacity: int, dtype: str | None = None) -> "KVCache":
        """A cache of zeros.

        Args:
          dtype: None for the compute dtype, or 'int8'.
        """
        shape = (config.num_layers, batch, config.num_kv_heads, capacity, config.head_dim)

        def blank(shape: tuple[int, ...], dtype: str) -> Array:
            return constrain(jnp.zeros(shape, dtype), *CACHE_AXES[: len(shape)])

        # Four arrays, not two: each is donated on its own.
        vectors = (blank(shape, dtype or config.dtype), blank(shape, dtype or config.dtype))
        if dtype != "int8":
            return cls(*vectors)
        return cls(*vectors, blank(shape[:-1], "float32"), blank(shape[:-1], "float32"))

    def write(self, layer: Array, positions_BT: Array, k_BTKH: Array, v_BTKH: Array) -> "KVCache":
        """The cache with new keys and values at their positions; positions beyond capacity are dropped."""
        k_BKTH, v_BKTH = k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2)
        if self.k_scale_LBKS is None or self.v_scale_LBKS is None:
            k_LBKSH = _placed(self.k_LBKSH, layer, positions_BT, k_BKTH)
            return KVCache(k_LBKSH, _placed(self.v_LBKSH, layer, positions_BT, v_BKTH))
        (k_BKTH, k_scale_BKT), (v_BKTH, v_scale_BKT) = _rounded(k_BKTH), _rounded(v_BKTH)
        return KVCache(
            _placed(self.k_LBKSH, layer, positions_BT, k_BKTH),
            _placed(self.v_LBKSH, layer, positions_BT, v_BKTH),
            _placed(self.k_scale_LBKS, layer, positions_BT, k_scale_BKT),
            _placed(self.v_scale_LBKS, layer, positions_BT, v_scale_BKT),
        )

    def part(self, layer: Array, dtype: str, row: int, rows: int, start: Array, size: int) -> tuple[Array, Array]:
        """(k_BKSH, v_BKSH) of one layer, of `rows` rows from `row`, at `size` positions from `start`; compute dtype."""

        def cut(stored: Array) -> Array:
            at = (layer, row, 0, start, 0)[: stored.ndim]
            sizes = (1, rows, stored.shape[2], size, *stored.shape[4:])
            return jax.lax.dynamic_slice(stored, at, sizes)[0]

        k_BKSH, v_BKSH = cut(self.k_LBKSH), cut(self.v_LBKSH)
        if self.k_scale_LBKS is None or self.v_scale_LBKS is None:
            return k_BKSH, v_BKSH
        k_BKSH = k_BKSH.astype(dtype) * cut(self.k_scale_LBKS)[..., None].astype(dtype)
        return k_BKSH, v_BKSH.astype(dtype) * cut(self.v_scale_LBKS)[..., None].astype(dtype)


CACHE_AXES = ("layers", "batch", "kv_heads", None, None)


def _placed(stored: Array, layer: Array, positions_BT: Array, new: Array) -> Array:
    """`stored` [L, B, K, S, ...] with `new` [B, K, T, ...] at the positions of one layer."""
    rows_B11 = jnp.arange(stored.shape[1])[:, None, None]
    heads_K1 = jnp.arange(stored.shape[2])[:, None]
    return stored.at[layer, rows_B11, heads_K1, positions_BT[:, None]].set(new.astype(stored.dtype), mode="drop")


def _rounded(x_BKTH: Array) -> tuple[Array, Array]:
    """(int8 values, float32 scales) of vectors, the largest of each at 127."""
    x_BKTH = x_BKTH.astype(jnp.float32)
    scale_BKT = jnp.max(jnp.abs(x_BKTH), axis=-1) / 127
    values_BKTH = jnp.round(x_BKTH / jnp.maximum(scale_BKT, 1e-30)[..., None])
    return values_BKTH.astype(jnp.int8), scale_BKT


class SelfAttention(nn.Module):
    """Grouped-query attention with rotary positions (Ainslie et al. 2023, arXiv:2305.13245)."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self, x_BTD: Array, layer: Array, angles: tuple[Array, Array], sight: Sight, cache: KVCache | None
    ) -> tuple[Array, KVCache | None]:
        """Attends within the row as a plan says, or writes the row into the cache and attends to what that holds."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        width, heads, kv_heads, head = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim

        def project(name: str, count: int, axis: str) -> Array:
            axes = ("embed", axis, "head_dim")
            y_BTNH = Einsum("BTD,DNH->BTNH", (width, count, head), axes, dtype, name=name)(x_BTD)
            return constrain(y_BTNH, "batch", "length", axis, None)

        q_BTNH = project("query", heads, "heads")
        k_BSKH = rotate(project("key", kv_heads, "kv_heads"), angles)
        v_BSKH = project("value", kv_heads, "kv_heads")
        if isinstance(sight, AttentionPlan):
            o_BTNH = row_attention(q_BTNH, k_BSKH, v_BSKH, sight, angles, config)
        else:
            assert cache is not None
            cache = cache.write(layer, sight, k_BSKH, v_BSKH)
            read = functools.partial(cache.part, layer, config.dtype)
            o_BTNH = cached_attention(rotate(q_BTNH, angles), sight, read, cache.capacity, config.attention_scale)
        o_BTNH = constrain(o_BTNH, "batch", "length", "heads", None)
        shape, axes = (heads, head, width), ("heads", "head_dim", "embed")
        return Einsum("BTNH,NHD->BTD", shape, axes, dtype, inputs=2, name="output")(o_BTNH), cache
