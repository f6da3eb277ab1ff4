"""The decoder: tokens to hidden states to logits, layers scanned."""

from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from hcxjax.kernels.plan import AttentionPlan
from hcxjax.kernels.rotary import Angles
from hcxjax.mesh import constrain
from hcxjax.models.attention import KVCache, SelfAttention, Sight
from hcxjax.models.config import DecoderConfig
from hcxjax.models.context import collected, dealt, row_plan
from hcxjax.models.int8 import Int8Weight, rows_of
from hcxjax.models.layers import RMSNorm, SwiGLU, rotary_angles
from hcxjax.models.low_precision import in_low_precision
from hcxjax.models.pipeline import pipelined, stages_of
from hcxjax.models.remat import kept
from hcxjax.models.stacked import Layer
from hcxjax.protocols import Array, Params
from hcxjax.shapes import shaped

P = ParamSpec("P")
R = TypeVar("R")


class Block(nn.Module):
    """x + attention(norm(x)), then x + swiglu(norm(x)); with SEED's optional post-norms and residual multiplier."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self,
        carry: tuple[Array, KVCache | None],
        layer: Array,
        angles: tuple[Array, Array],
        sight: Sight,
    ) -> tuple[tuple[Array, KVCache | None], None]:
        """One layer of the scan; the cache rides in the carry."""
        config = self.config
        x_BTD, cache = carry

        def norm(name: str, y_BTD: Array) -> Array:
            return RMSNorm(config.norm_epsilon, name=name)(y_BTD)

        def join(x_BTD: Array, y_BTD: Array, post_norm: str) -> Array:
            if config.post_norms:
                y_BTD = norm(post_norm, y_BTD)
            return constrain(x_BTD + y_BTD * config.residual_multiplier, "batch", "length", "activation_embed")

        y_BTD, cache = SelfAttention(config, name="attention")(norm("input_norm", x_BTD), layer, angles, sight, cache)
        x_BTD = join(x_BTD, y_BTD, "post_norm1")
        x_BTD = join(x_BTD, SwiGLU(config, name="mlp")(norm("mlp_norm", x_BTD)), "post_norm2")
        return (x_BTD, cache), None


def _block_of(config: DecoderConfig) -> type[nn.Module]:
    return Block if config.matmuls == "dtype" else in_low_precision(Block, config)


def _layer_of(config: DecoderConfig) -> Layer:
    """A block as a function of its weights."""
    block = _block_of(config)(config, parent=None)

    def layer(x_BTD: Array, weights: Params, given: tuple[Angles, Sight]) -> Array:
        (x_BTD, _), _ = block.apply({"params": weights}, (x_BTD, None), 0, *given)
        return x_BTD

    return jax.checkpoint(layer, policy=kept(config), prevent_cse=False)


class Decoder(nn.Module):
    """A causal language model of `config`'s shape.

    Parameters are float32; `embed`, `layers` (stacked over L), `norm`, and `head` where embeddings are not tied.
    """

    config: DecoderConfig

    def setup(self):
        config = self.config
        table = nn.with_logical_partitioning(nn.initializers.normal(config.init_std), ("vocab", "embed"))
        self.embed = self.param("embed", table, (config.vocab_size, config.embed_dim), jnp.float32, unbox=True)
        if not config.tie_embeddings:
            self.head = self.param("head", table, (config.vocab_size, config.embed_dim), jnp.float32, unbox=True)
        block = _block_of(config)
        if config.remat != "none":
            block = nn.remat(block, policy=kept(config), prevent_cse=False)
        self.layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=config.num_layers,
            unroll=config.scan_unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(config)
        self.norm = RMSNorm(config.norm_epsilon)

    def __call__(self, tokens_BT: Array, segment_ids_BT: Array, positions_BT: Array) -> Array:
        """logits_BTV of packed rows, float32."""
        return self.logits(self.hidden(tokens_BT, segment_ids_BT, positions_BT))

    @shaped
    def hidden(self, tokens_BT: Array, segment_ids_BT: Array, positions_BT: Array) -> Array:
        """x_BTD after the last norm, for rows that attend within each document.

        Raises:
          ValueError: the row is longer than the model's `max_length`.
        """
        if tokens_BT.shape[1] > self.config.max_length:
            raise ValueError(
                f"a row of {tokens_BT.shape[1]} tokens is longer than the model's context: DecoderConfig.max_length is "
                f"{self.config.max_length}; shorten LENGTH or raise it (and set rope_scaling)"
            )
        plan = row_plan(segment_ids_BT, self.config)
        return collected(self._run(dealt(tokens_BT), dealt(positions_BT), plan, None)[0])

    @shaped
    def extend(self, tokens_BT: Array, positions_BT: Array, cache: KVCache) -> tuple[Array, KVCache]:
        """(x_BTD, cache) of tokens that follow what the cache holds: prefill with T tokens, decode with one.

        Each row is one document; places after a query's own are not seen, whatever they hold.
        """
        x_BTD, filled = self._run(tokens_BT, positions_BT, positions_BT, cache)
        assert filled is not None
        return x_BTD, filled

    @property
    def output_table(self) -> Array | Int8Weight:
        """The rows that hidden states are compared with: the embedding, or the head where they are not tied."""
        return self.embed if self.config.tie_embeddings else self.head

    def logits(self, x_BTD: Array) -> Array:
        """Scores over the vocabulary in float32."""
        weight = self.output_table
        values_VD = weight.values if isinstance(weight, Int8Weight) else weight
        table_VD = constrain(values_VD.astype(self.config.dtype), "vocab", None)
        logits_BTV = jnp.einsum("BTD,VD->BTV", x_BTD, table_VD, preferred_element_type=jnp.float32)
        if isinstance(weight, Int8Weight):
            logits_BTV = logits_BTV * weight.scale[:, 0]
        return constrain(logits_BTV, "batch", "length", "vocab") * self.config.logits_multiplier

    def _run(
        self, tokens_BT: Array, positions_BT: Array, sight: Sight, cache: KVCache | None
    ) -> tuple[Array, KVCache | None]:
        config = self.config
        # Read by gather, a table split over its width would be replicated whole: split it over the vocabulary alone.
        table_VD = jax.tree.map(lambda leaf: constrain(leaf, "vocab", None), self.embed)
        x_BTD = rows_of(table_VD, tokens_BT, config.dtype) * config.embedding_multiplier
        x_BTD = constrain(x_BTD, "batch", "length", "activation_embed")
        angles = rotary_angles(positions_BT, config)
        if stages_of(config) > 1 and isinstance(sight, AttentionPlan) and not self.is_initializing():
            weights = self.variables["params"]["layers"]
            x_BTD = pipelined(_layer_of(config), weights, x_BTD, angles, sight, config)
        else:
            (x_BTD, cache), _ = self.layers((x_BTD, cache), jnp.arange(config.num_layers), angles, sight)
        return self.norm(x_BTD), cache


def init_decoder(config: DecoderConfig, rng: Array) -> Params:
    """Boxed parameters. What the model is shown is one token, because a mesh divides no row of one."""
    blank_BT = jnp.zeros((1, 1), jnp.int32)
    return Decoder(config).init(rng, blank_BT, blank_BT, blank_BT)["params"]


def apply(
    config: DecoderConfig,
    params: Params,
    method: Callable[Concatenate[Decoder, P], R],
    *args: P.args,
    **kwargs: P.kwargs,
) -> R:
    """What `method` of a decoder with these parameters returns; flax's own `apply` does not say of what type."""
    return nn.apply(method, Decoder(config))({"params": params}, *args, **kwargs)
