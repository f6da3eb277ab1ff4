"""The one table between Hugging Face's tensors and our parameters: names, and how their axes lie."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from hcxjax.models.config import DecoderConfig

Index = tuple[slice, ...]

EMBEDDING, HEAD = "embed", "head"


@dataclasses.dataclass(frozen=True)
class Weight:
    """A parameter and the tensors, one or one a layer, that hold it.

    Attributes:
      path: in the tree of parameters, joined by '/'.
      name: of the tensor; {layer} stands for its number.
      ours: axes of the parameter, without the stacked L.
      theirs: axes of the tensor; 'NH' is one axis of N·H, heads outermost. Linear weights are (out, in).
    """

    path: str
    name: str
    ours: str
    theirs: tuple[str, ...]

    @property
    def stacked(self) -> bool:
        """Whether there is a tensor a layer."""
        return "{layer}" in self.name

    def tensors(self, config: DecoderConfig) -> list[str]:
        """Names of the tensors, by layer."""
        return [self.name.format(layer=layer) for layer in range(config.num_layers if self.stacked else 1)]

    def shape(self, config: DecoderConfig) -> tuple[int, ...]:
        """Of the parameter."""
        sizes = _sizes(config)
        return (config.num_layers,) * self.stacked + tuple(sizes[axis] for axis in self.ours)

    def their_shape(self, config: DecoderConfig) -> tuple[int, ...]:
        """Of each tensor."""
        sizes = _sizes(config)
        return tuple(math.prod(sizes[axis] for axis in group) for group in self.theirs)

    def their_index(self, index: Sequence[slice], config: DecoderConfig) -> Index:
        """The smallest slice of a tensor that holds `index` of its parameter (without L)."""
        sizes = _sizes(config)
        wanted = {axis: part.indices(sizes[axis])[:2] for axis, part in zip(self.ours, index, strict=True)}
        slices = []
        for outer, *inner in self.theirs:
            width = math.prod(sizes[axis] for axis in inner)
            start, stop = wanted[outer]
            slices.append(slice(start * width, stop * width))
        return tuple(slices)

    def to_ours(self, tensor: np.ndarray, config: DecoderConfig) -> np.ndarray:
        """The parameter (without L) of a tensor, or of a slice over outer axes of one; a view."""
        flat = "".join(self.theirs)
        split = tensor.reshape([size for shape in self._split(tensor.shape, config) for size in shape])
        return split.transpose([flat.index(axis) for axis in self.ours])

    def to_theirs(self, parameter: np.ndarray, config: DecoderConfig) -> np.ndarray:
        """The inverse of `to_ours`; a view where axes are not merged."""
        merged = parameter.transpose([self.ours.index(axis) for group in self.theirs for axis in group])
        return merged.reshape([math.prod(shape) for shape in self._split(None, config, parameter.shape)])

    def _split(
        self, shape: Sequence[int] | None, config: DecoderConfig, ours: Sequence[int] | None = None
    ) -> list[tuple[int, ...]]:
        """Sizes of the axes in each of the tensor's: inner ones whole, the outer one as long as is there."""
        sizes = _sizes(config)
        groups = []
        for number, (outer, *inner) in enumerate(self.theirs):
            rest = tuple(sizes[axis] for axis in inner)
            length = shape[number] // math.prod(rest) if shape is not None else (ours or ())[self.ours.index(outer)]
            groups.append((length, *rest))
        return groups


def _norm(name: str, theirs: str) -> Weight:
    return Weight(f"layers/{name}/weight", f"model.layers.{{layer}}.{theirs}.weight", "D", ("D",))


def _linear(path: str, theirs: str, ours: str, axes: tuple[str, str]) -> Weight:
    return Weight(f"layers/{path}/weight", f"model.layers.{{layer}}.{theirs}.weight", ours, axes)


TABLE = (
    Weight(EMBEDDING, "model.embed_tokens.weight", "VD", ("V", "D")),
    _norm("input_norm", "input_layernorm"),
    _linear("attention/query", "self_attn.q_proj", "DNH", ("NH", "D")),
    _linear("attention/key", "self_attn.k_proj", "DKH", ("KH", "D")),
    _linear("attention/value", "self_attn.v_proj", "DKH", ("KH", "D")),
    _linear("attention/output", "self_attn.o_proj", "NHD", ("D", "NH")),
    _norm("post_norm1", "post_norm1"),
    _norm("mlp_norm", "post_attention_layernorm"),
    _linear("mlp/gate", "mlp.gate_proj", "DF", ("F", "D")),
    _linear("mlp/up", "mlp.up_proj", "DF", ("F", "D")),
    _linear("mlp/down", "mlp.down_proj", "FD", ("D", "F")),
    _norm("post_norm2", "post_norm2"),
    Weight("norm/weight", "model.norm.weight", "D", ("D",)),
    Weight(HEAD, "lm_head.weight", "VD", ("V", "D")),
)


def weights(config: DecoderConfig) -> tuple[Weight, ...]:
    """The rows of the table that a decoder of `config` has."""
    left_out = () if config.post_norms else ("layers/post_norm1/weight", "layers/post_norm2/weight")
    left_out += (HEAD,) if config.tie_embeddings else ()
    return tuple(weight for weight in TABLE if weight.path not in left_out)


def nested(flat: Mapping[str, object]) -> dict:
    """The tree of {path: leaf}."""
    tree: dict = {}
    for path, leaf in flat.items():
        *folders, last = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return tree


def _sizes(config: DecoderConfig) -> dict[str, int]:
    return {
        "V": config.vocab_size,
        "D": config.embed_dim,
        "F": config.mlp_dim,
        "N": config.num_heads,
        "K": config.num_kv_heads,
        "H": config.head_dim,
    }
