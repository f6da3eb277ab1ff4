"""Floating-point operations of an update by arithmetic: the model's, and what is computed twice to save memory."""

from hcxjax.models.config import TENSORS, DecoderConfig

TILE = 512
"""Queries whose attention is computed together: keys up to the end of their tile, half of the last one in vain."""


def attention_share(length: int) -> float:
    """Share of the T×T scores that a tiled causal attention computes: (1 + tile/T) / 2.

    Documents packed into a row are not known to the plan; a kernel that skips those of others computes less.
    """
    return (1 + min(1.0, TILE / length)) / 2


def matmul_weights(model: DecoderConfig) -> dict[str, int]:
    """Weights of each matmul of one block."""
    query, key = (model.embed_dim * model.head_dim * heads for heads in (model.num_heads, model.num_kv_heads))
    wide = model.embed_dim * model.mlp_dim
    return {"query": query, "key": key, "value": key, "output": query, "gate": wide, "up": wide, "down": wide}


def block_weights(model: DecoderConfig) -> int:
    """Weights of all blocks' matmuls."""
    return model.num_layers * sum(matmul_weights(model).values())


def recomputed(model: DecoderConfig) -> frozenset[str]:
    """Which results of a block the backward pass computes again, of `hcxjax.models.config.TENSORS`.

    Of a block's last matmul, `down`, backward needs the result only where a post-norm follows.
    """
    if model.remat == "none":
        return frozenset()
    named = {"full": (), "attention": ("attention", "attention_lse"), "dots": TENSORS}
    kept = {*(named[model.remat] if isinstance(model.remat, str) else model.remat), *model.offload}
    needed = {*TENSORS} if model.post_norms else {*TENSORS} - {"down"}
    return frozenset(needed - kept)


def hardware_flops_per_token(model: DecoderConfig, length: int) -> float:
    """FLOPs that are run for a token of a training step: forward, computed again, and backward.

      3w + 4.5a + 4v, + 2·(weights) of each matmul that is computed again, + a where attention is

    with w = 2·(weights of the blocks' matmuls), a = 4·L·N·H·T·share (`attention_share`), v = 2·V·D. Backward is twice
    forward; that of attention computes scores and dO·v^T twice, for dq and for dk and dv (Dao 2023, arXiv:2307.08691,
    algorithm 2), and that of the head makes the logits again, chunk by chunk.

    Source: Chowdhery et al. 2022, arXiv:2204.02311, appendix B, for the model's own 3(w + v) and its attention; the
    rest is what compiled programs run (`matmul_flops`).
    """
    again = recomputed(model)
    matmuls = 2.0 * block_weights(model)
    more = 2.0 * model.num_layers * sum(size for name, size in matmul_weights(model).items() if name in again)
    scores = 4.0 * model.num_layers * model.num_heads * model.head_dim * length * attention_share(length)
    return 3 * matmuls + more + (5.5 if "attention" in again else 4.5) * scores + head_flops_per_token(model)


def head_flops_per_token(model: DecoderConfig) -> float:
    """4v: logits, the same again, and backward twice as much."""
    return 8.0 * model.vocab_size * model.embed_dim
