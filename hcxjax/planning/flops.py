"""Floating-point operations of an update by arithmetic: the model's, and what is computed twice to save memory."""

from hcxjax.models.config import DecoderConfig

TILE = 512
"""Queries whose attention is computed together: keys up to the end of their tile, half of the last one in vain."""


def attention_share(length: int) -> float:
    """Share of the T×T scores that a tiled causal attention computes: (1 + tile/T) / 2.

    Documents packed into a row are not known to the plan; a kernel that skips those of others computes less.
    """
    return (1 + min(1.0, TILE / length)) / 2


def hardware_flops_per_token(model: DecoderConfig, length: int) -> float:
    """FLOPs that are run for a token of a training step: forward, computed again, and backward.

    With w = 2·(weights of the blocks' matmuls), a = 4·L·N·H·T·share (`attention_share`), v = 2·V·D, d = 2·L·F·D:

      remat none       3w + 4.5a       backward is twice forward; attention's computes scores and dO·v^T twice, for dq and
                                       for dk and dv (Dao 2023, arXiv:2307.08691, algorithm 2)
      remat dots       3w + 5.5a       matmuls with weights are kept, attention is computed again
      remat attention  4w − d + 4.5a   the blocks' matmuls are computed again, the last only where a post-norm needs it
      remat full       4w − d + 5.5a   both

    and 4v: the logits are made chunk by chunk, and again in the backward pass.

    Source: Chowdhery et al. 2022, arXiv:2204.02311, appendix B, for the model's own 3(w + v) and its attention; the rest
    is what compiled programs run (`matmul_flops`).
    """
    matmuls = 2.0 * block_weights(model)
    scores = 4.0 * model.num_layers * model.num_heads * model.head_dim * length * attention_share(length)
    head = 2.0 * model.vocab_size * model.embed_dim
    down = 0.0 if model.post_norms else 2.0 * model.num_layers * model.mlp_dim * model.embed_dim
    again = matmuls - down if model.remat in ("full", "attention") else 0.0
    passes = 5.5 if model.remat in ("full", "dots") else 4.5
    return 3 * matmuls + again + passes * scores + 4 * head


def block_weights(model: DecoderConfig) -> int:
    """Weights of all blocks' matmuls."""
    attention = 2 * model.embed_dim * model.head_dim * (model.num_heads + model.num_kv_heads)
    return model.num_layers * (attention + 3 * model.embed_dim * model.mlp_dim)
