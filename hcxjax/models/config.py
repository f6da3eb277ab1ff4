"""Sizes and switches of the decoder, as plain data."""

import dataclasses
import math

from hcxjax.checks import whole

MATRICES = {"query": 1, "key": 1, "value": 1, "output": 2, "gate": 1, "up": 1, "down": 1}
"""Layer of a block → leading dimensions of its weight that its equation sums over."""

REMAT = ("none", "full", "dots", "attention")
"""Policies of `DecoderConfig.remat` that have a name."""

TENSORS = (*MATRICES, "attention", "attention_lse")
"""Results of a layer that may be kept by name: of its weights, of attention, and the log of the softmax's sums."""


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Stretches rotary frequencies so that a model reads beyond the length it was trained at.

    Attributes:
      kind: 'linear' divides every frequency by `factor` (Chen et al. 2023, arXiv:2306.15595); 'llama3' divides only
        those whose wavelength is long against `original_length` and blends between (Llama 3, arXiv:2407.21783, as in
        its released code).
      factor: how many times longer.
      low_frequency, high_frequency: llama3 only; turns within `original_length` below which a frequency is fully
        divided, and above which it is kept.
      original_length: llama3 only; tokens of context before stretching.
    """

    kind: str
    factor: float
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    original_length: int = 8192

    def __post_init__(self):
        if self.kind not in ("linear", "llama3"):
            raise ValueError(f"RopeScaling.kind is {self.kind!r}; it must be 'linear' or 'llama3'")
        if self.factor < 1:
            raise ValueError(f"RopeScaling.factor is {self.factor}; it must be at least 1")


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A HyperCLOVA X decoder: RoPE, pre-norm, grouped-query attention, SwiGLU; the block of HyperCLOVAX-SEED.

    The report discloses no dimensions; the shape follows the open SEED models of the same family (spec sections 1, 11).

    Attributes:
      vocab_size: rows of the embedding, padding entries included.
      num_layers, embed_dim, mlp_dim, num_heads, num_kv_heads, head_dim: L, D, F, N, K, H.
      max_length: longest row or context in tokens.
      rope_theta: base of the rotary frequencies.
      rope_scaling: stretching for long contexts, or None.
      norm_epsilon: added to the mean square in RMSNorm.
      post_norms: normalise each sub-block's output too (SEED `use_post_norm`, Peri-LN).
      embedding_multiplier, residual_multiplier, logits_multiplier: factors of SEED's μP block; 1 is a plain Llama.
      attention_multiplier: scale of q·k; None is head_dim^-0.5.
      tie_embeddings: the output head is the embedding.
      dtype: compute dtype of matmuls; weights are float32, norms, softmax and logits are computed in float32.
      matmuls: of weights in the layers when training: 'dtype' as above, or in 'int8' or 'fp8', see
        `hcxjax.models.low_precision`.
      attention: backend, see `hcxjax.kernels.backends`; 'auto' takes the fastest that the device has.
      attention_tile: (queries, keys) that the backend takes at a time; None for its own choice.
      context: where a row is divided over devices, how these come by each other's keys: 'gather' takes all at once,
        'ring' a device's at a time, in less memory.
      remat: what the backward pass keeps of a layer: 'none' recomputes nothing (in stages it is 'dots'); 'full' keeps
        only the layer's input; 'attention' keeps attention outputs and their log-sums, so that the kernel is not run
        again; 'dots' keeps these and all weight matmuls; or names out of `TENSORS`, which are kept.
      offload: names out of `TENSORS` that are kept in the host's memory; needs remat by name, without these names.
      pipe_rows: where layers are divided over devices in stages, rows of a device that a stage takes at a time. Fewer
        leave stages waiting less, as long as they keep a device busy. See `hcxjax.models.pipeline`.
      pipe_repeats: groups of layers that a stage holds, and times that rows go round. More leave stages waiting less,
        and move rows more often.
      scan_unroll: layers unrolled in a step of the scan; more compiles longer and may run faster.
      init_std: standard deviation of the embedding; matmuls use fan-in scaling. The report discloses none: our choice.
    """

    vocab_size: int
    num_layers: int
    embed_dim: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_length: int
    rope_theta: float = 500_000.0
    rope_scaling: RopeScaling | None = None
    norm_epsilon: float = 1e-5
    post_norms: bool = False
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_multiplier: float = 1.0
    attention_multiplier: float | None = None
    tie_embeddings: bool = True
    dtype: str = "bfloat16"
    matmuls: str = "dtype"
    attention: str = "auto"
    attention_tile: tuple[int, int] | None = None
    context: str = "gather"
    remat: str | tuple[str, ...] = "none"
    offload: tuple[str, ...] = ()
    pipe_rows: int = 1
    pipe_repeats: int = 1
    scan_unroll: int = 1
    init_std: float = 0.02

    def __post_init__(self):
        sizes = (
            "vocab_size",
            "num_layers",
            "embed_dim",
            "mlp_dim",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "max_length",
        )
        whole(self, 1, *sizes, "scan_unroll", "pipe_rows", "pipe_repeats")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"DecoderConfig.num_heads is {self.num_heads}; it must be a multiple of "
                f"num_kv_heads, {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"DecoderConfig.head_dim is {self.head_dim}; rotary embedding needs an even number")
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"DecoderConfig.dtype is {self.dtype!r}; it must be float32, bfloat16 or float16")
        if self.matmuls not in ("dtype", "int8", "fp8"):
            raise ValueError(f"DecoderConfig.matmuls is {self.matmuls!r}; it must be dtype, int8 or fp8")
        if self.context not in ("gather", "ring"):
            raise ValueError(f"DecoderConfig.context is {self.context!r}; it must be 'gather' or 'ring'")
        if self.attention_tile is not None and (len(self.attention_tile) != 2 or min(self.attention_tile) < 1):
            raise ValueError(
                f"DecoderConfig.attention_tile is {self.attention_tile}; it must be (queries, keys) or None"
            )
        self._check_remat()

    def _check_remat(self) -> None:
        named = isinstance(self.remat, tuple)
        if not named and self.remat not in REMAT:
            raise ValueError(
                f"DecoderConfig.remat is {self.remat!r}; it must be {', '.join(REMAT)}, "
                f"or a tuple of {', '.join(TENSORS)}"
            )
        for field, names in (("remat", self.remat if named else ()), ("offload", self.offload)):
            if unknown := set(names) - set(TENSORS):
                raise ValueError(f"DecoderConfig.{field} names {sorted(unknown)}; there are {', '.join(TENSORS)}")
        if self.offload and (not named or set(self.offload) & set(self.remat)):
            raise ValueError(
                f"DecoderConfig.offload is {self.offload} and remat {self.remat!r}; remat must be a tuple of names, "
                "none of them in offload"
            )

    @property
    def attention_scale(self) -> float:
        """Multiplier of q·k."""
        return self.head_dim**-0.5 if self.attention_multiplier is None else self.attention_multiplier

    @property
    def parameters(self) -> int:
        """Number of weights, from the shapes alone."""
        norms = 4 if self.post_norms else 2
        attention = 2 * self.embed_dim * self.head_dim * (self.num_heads + self.num_kv_heads)
        layer = attention + 3 * self.embed_dim * self.mlp_dim + norms * self.embed_dim
        tables = 1 if self.tie_embeddings else 2
        return self.num_layers * layer + self.embed_dim + tables * self.vocab_size * self.embed_dim

    def flops_per_token(self, length: int) -> float:
        """Forward and backward FLOPs a token of rows of `length`: 6 per matmul weight, 6·L·N·H·T for causal attention.

        Source: Chowdhery et al. 2022, arXiv:2204.02311, appendix B, with attention halved, because masked scores are
        no useful work. Documents packed into a row attend to less still; that is not subtracted.
        """
        weights = self.parameters - (0 if self.tie_embeddings else self.vocab_size * self.embed_dim)
        return 6.0 * weights + 6.0 * self.num_layers * self.num_heads * self.head_dim * length

    def rotary_frequencies(self) -> list[float]:
        """Radians a position for each of the head_dim/2 pairs.

        θ_i = rope_theta^(−2i/H). Source: Su et al. 2021, arXiv:2104.09864, eq. 15; scaling as `RopeScaling` says.
        """
        frequencies = [self.rope_theta ** (-2 * i / self.head_dim) for i in range(self.head_dim // 2)]
        scaling = self.rope_scaling
        if scaling is None:
            return frequencies
        if scaling.kind == "linear":
            return [frequency / scaling.factor for frequency in frequencies]
        return [_llama3_frequency(frequency, scaling) for frequency in frequencies]


def _llama3_frequency(frequency: float, scaling: RopeScaling) -> float:
    turns = scaling.original_length * frequency / (2 * math.pi)
    kept = (turns - scaling.low_frequency) / (scaling.high_frequency - scaling.low_frequency)
    kept = min(1.0, max(0.0, kept))
    return kept * frequency + (1 - kept) * frequency / scaling.factor
