"""Self-attention of a block, over its own row or over an explicit key/value cache."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from hcxjax.kernels.attention import attention
from hcxjax.kernels.plan import AttentionPlan
from hcxjax.mesh import constrain
from hcxjax.models.config import DecoderConfig
from hcxjax.models.layers import Einsum, rotate
from hcxjax.protocols import Array


class KVCache(NamedTuple):
    """Rotated keys and values of all layers; slot s holds position s. It travels in the scan's carry, never as xs/ys,
    because a scan copies those whole at every token."""

    k_LBSKH: Array
    v_LBSKH: Array

    @property
    def capacity(self) -> int:
        """Positions that fit."""
        return self.k_LBSKH.shape[2]

    @classmethod
    def empty(cls, config: DecoderConfig, batch: int, capacity: int) -> "KVCache":
        """A cache of zeros in the compute dtype."""
        shape = (config.num_layers, batch, capacity, config.num_kv_heads, config.head_dim)
        blank = constrain(jnp.zeros(shape, config.dtype), "layers", "batch", None, "kv_heads", None)
        return cls(blank, blank)

    def write(self, layer: Array, positions_BT: Array, k_BTKH: Array, v_BTKH: Array) -> "KVCache":
        """The cache with new keys and values at their positions; positions beyond capacity are dropped."""
        rows_B1 = jnp.arange(positions_BT.shape[0])[:, None]
        place = (layer, rows_B1, positions_BT)
        return KVCache(
            self.k_LBSKH.at[place].set(k_BTKH.astype(self.k_LBSKH.dtype), mode="drop"),
            self.v_LBSKH.at[place].set(v_BTKH.astype(self.v_LBSKH.dtype), mode="drop"),
        )

    def layer(self, layer: Array) -> tuple[Array, Array]:
        """(k_BSKH, v_BSKH) of one layer."""
        return self.k_LBSKH[layer], self.v_LBSKH[layer]


class SelfAttention(nn.Module):
    """Grouped-query attention with rotary positions (Ainslie et al. 2023, arXiv:2305.13245)."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self, x_BTD: Array, layer: Array, angles: tuple[Array, Array], plan: AttentionPlan, cache: KVCache | None
    ) -> tuple[Array, KVCache | None]:
        """Attends within the row (cache None), or writes the row into the cache and attends to the whole of it."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        width, heads, kv_heads, head = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim

        def project(name: str, count: int, axis: str) -> Array:
            axes = ("embed", axis, "head_dim")
            y_BTNH = Einsum("BTD,DNH->BTNH", (width, count, head), axes, dtype, name=name)(x_BTD)
            return constrain(y_BTNH, "batch", "length", axis, None)

        q_BTNH = rotate(project("query", heads, "heads"), angles)
        k_BSKH = rotate(project("key", kv_heads, "kv_heads"), angles)
        v_BSKH = project("value", kv_heads, "kv_heads")
        if cache is not None:
            cache = cache.write(layer, plan.q_positions_BT, k_BSKH, v_BSKH)
            k_BSKH, v_BSKH = cache.layer(layer)
        o_BTNH = attention(q_BTNH, k_BSKH, v_BSKH, plan, scale=config.attention_scale, backend=config.attention)
        o_BTNH = checkpoint_name(constrain(o_BTNH, "batch", "length", "heads", None), "attention")
        shape, axes = (heads, head, width), ("heads", "head_dim", "embed")
        return Einsum("BTNH,NHD->BTD", shape, axes, dtype, inputs=2, name="output")(o_BTNH), cache
