"""A decoder that says one number of a text instead of the next token: a reward model, or a value network.

Parameters are `{"decoder": those of a Decoder, "head": {"weight": (D,), "bias": ()}}`, so that either starts from the
checkpoint of a language model. An output table that is not tied to the embedding comes along and is not used.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hcxjax.mesh import constrain
from hcxjax.models.config import DecoderConfig
from hcxjax.models.decoder import Decoder, apply, init_decoder
from hcxjax.protocols import Array, Batch, Params
from hcxjax.shapes import shaped


def init_scalar(model: DecoderConfig, rng: Array) -> Params:
    """Boxed parameters: a drawn decoder, a head of N(0, 1/√(D + 1)), a bias of 0; all float32.

    Source: Huang et al. 2024, "The N+ Implementation Details of RLHF with PPO", arXiv:2403.17031, on the reward head.
    """
    body, head = jax.random.split(rng)
    weight_D = jax.random.normal(head, (model.embed_dim,), jnp.float32) / jnp.sqrt(model.embed_dim + 1.0)
    return {
        "decoder": init_decoder(model, body),
        "head": {
            "weight": nn.LogicallyPartitioned(weight_D, ("embed",)),
            "bias": nn.LogicallyPartitioned(jnp.zeros((), jnp.float32), ()),
        },
    }


def scalars(model: DecoderConfig, params: Params, batch: Batch) -> Array:
    """x_BT, float32: the number after each token, from the hidden state that has read it and what stands before it.

    Args:
      batch: `tokens_BT`, `segment_ids_BT` and `positions_BT`; other arrays are not looked at.
    """
    return _head(params, _hidden(model, params, batch["tokens_BT"], batch["segment_ids_BT"], batch["positions_BT"]))


@shaped
def score(
    model: DecoderConfig, params: Params, tokens_BT: Array, segment_ids_BT: Array, positions_BT: Array, end_B: Array
) -> Array:
    """score_B, float32: the number of each row, read at its last token, and nowhere else.

    What stands after that token, padding or not, changes nothing.

    Args:
      end_B: int32, the place of the last token of request and answer: what ends the answer, where something does.
    """
    x_BTD = _hidden(model, params, tokens_BT, segment_ids_BT, positions_BT)
    x_B1D = jnp.take_along_axis(x_BTD, end_B[:, None, None], axis=1)
    return _head(params, x_B1D)[:, 0]


def _hidden(
    model: DecoderConfig, params: Params, tokens_BT: Array, segment_ids_BT: Array, positions_BT: Array
) -> Array:
    return apply(model, params["decoder"], Decoder.hidden, tokens_BT, segment_ids_BT, positions_BT)


def _head(params: Params, x_BTD: Array) -> Array:
    """The head in float32, on accelerators too, whose products of float32 are shorter unless asked."""
    weight_D, bias = params["head"]["weight"], params["head"]["bias"]
    x_BT = jnp.einsum("BTD,D->BT", x_BTD.astype(jnp.float32), weight_D, precision=jax.lax.Precision.HIGHEST)
    return constrain(x_BT + bias, "batch", "length")


def flops_per_token(model: DecoderConfig, length: int) -> float:
    """Forward and backward FLOPs a token of rows of `length`, as `DecoderConfig.flops_per_token` without logits."""
    return model.flops_per_token(length) - 6.0 * model.vocab_size * model.embed_dim
