"""A Hugging Face checkpoint as parameters of a decoder: every tensor accounted for, read slice by slice."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from hcxjax.convert.config import decoder_config, read_config, unknown_fields
from hcxjax.convert.names import EMBEDDING, HEAD, TABLE, Index, Weight, nested, weights
from hcxjax.convert.safetensors_folder import FLOATS, SafetensorsFolder, listing
from hcxjax.mesh import Layout
from hcxjax.models.config import DecoderConfig
from hcxjax.models.decoder import init_decoder
from hcxjax.protocols import Params, PyTree

_EMBEDDING, _HEAD = "embed_tokens.weight", "lm_head.weight"
_BUFFERS = ("rotary_emb.inv_freq",)
"""Ends of the names of tensors that older libraries saved and that follow from the configuration."""
BLOCK_BYTES = 32 << 20
"""About this many bytes of a parameter are read, and written, at a time."""


class HuggingFaceModel:
    """The weights of a `llama` or `hyperclovax` checkpoint, checked against its config.json and then read in parts.

    Names may lack `model.` in front or have more there, as those of a model that also sees do; that model's other
    tensors are left out. Rotary buffers are ignored, and so is `lm_head.weight` where it repeats tied embeddings.

    Args:
      folder: config.json and safetensors. No code in it is run.
    Attributes:
      config: the decoder.
      prefix: what stands before `embed_tokens.weight`.
      names: canonical name of each tensor → its name in the files.
      left_out: names of another part's tensors.
      buffers: names of ignored buffers and repetitions.
      unknown: fields of config.json that were not read.
      runs_code: whether config.json names code of the checkpoint's own.
    Raises:
      ValueError: what `decoder_config` and `SafetensorsFolder` refuse; tensors that are missing, extra, misshapen, or
        of no float dtype of 16 or 32 bits: all of them in one message.
    """

    def __init__(self, folder: str | Path):
        raw = read_config(folder)
        self.folder = Path(folder)
        self.config: DecoderConfig = decoder_config(raw)
        self.unknown = unknown_fields(raw)
        self.runs_code = "auto_map" in raw
        self.files = SafetensorsFolder(folder)
        found = self.files.tensors
        self.prefix = self._prefix()
        heads = (self.prefix.removesuffix("model.") + _HEAD, _HEAD, self.prefix + _HEAD)
        self.head = next((name for name in heads if name in found), _HEAD)
        self.names = {
            name: self.head if weight.path == HEAD else self.prefix + name.removeprefix("model.")
            for weight in weights(self.config)
            for name in weight.tensors(self.config)
        }
        spare = found.keys() - set(self.names.values())
        self.buffers = sorted(name for name in spare if name.endswith(_BUFFERS))
        wrapped = raw.get("text_config") is not None
        own = (self.prefix, self.head)
        self.left_out = sorted(name for name in spare if wrapped and not name.startswith(own)) if own[0] else []
        extra = sorted(spare - set(self.buffers) - set(self.left_out))
        if self.config.tie_embeddings and self.head in extra and self._repeats_embedding():
            extra.remove(self.head)
            self.buffers.append(self.head)
        self._refuse(extra)

    def read(self, weight: Weight, index: Sequence[slice]) -> np.ndarray:
        """A slice of a parameter, float32; reads no more of the files than it needs.

        Args:
          index: over the parameter's axes, L first where it is stacked.
        """
        shape = weight.shape(self.config)
        spans = [part.indices(size)[:2] for part, size in zip(index, shape, strict=True)]
        out = np.empty([stop - start for start, stop in spans], np.float32)
        if not weight.stacked:
            out[...] = self._read_tensor(weight, weight.name, index)
            return out
        tensors = weight.tensors(self.config)
        for place, layer in enumerate(range(*spans[0])):
            out[place] = self._read_tensor(weight, tensors[layer], index[1:])
        return out

    def block(self, weight: Weight) -> tuple[int, ...]:
        """Shape of the parts that `parts` yields; the last may be shorter."""
        return block_shape(weight.shape(self.config))

    def parts(self, weight: Weight) -> Iterator[tuple[Index, np.ndarray]]:
        """(index, values) of the parts of a parameter, in order."""
        shape, (step, *_) = weight.shape(self.config), self.block(weight)
        for start in range(0, shape[0], step):
            index = (slice(start, min(start + step, shape[0])), *(slice(0, size) for size in shape[1:]))
            yield index, self.read(weight, index)

    def dtypes(self) -> dict[str, str]:
        """Canonical name of each tensor → its dtype in the files."""
        return {name: self.files.tensors[stored].dtype for name, stored in self.names.items()}

    def _read_tensor(self, weight: Weight, name: str, index: Sequence[slice]) -> np.ndarray:
        config = self.config
        theirs = self.files.read(self.names[name], weight.their_index(index, config))
        # A tensor's slice is whole in the axes that it merges: what is too much of them is cut here.
        inner = {axis for group in weight.theirs for axis in group[1:]}
        cut = tuple(part if axis in inner else slice(None) for axis, part in zip(weight.ours, index, strict=True))
        return weight.to_ours(theirs, config)[cut]

    def _prefix(self) -> str:
        ends = [name for name in self.files.tensors if name == _EMBEDDING or name.endswith("." + _EMBEDDING)]
        if len(ends) > 1:
            raise ValueError(f"{self.folder} has several {_EMBEDDING}: {listing(sorted(ends))}")
        return ends[0].removesuffix(_EMBEDDING) if ends else "model."

    def _repeats_embedding(self) -> bool:
        (embedding,) = (weight for weight in TABLE if weight.path == EMBEDDING)
        name = self.names[embedding.name]
        one, other = self.files.tensors[name], self.files.tensors[self.head]
        if (one.dtype, one.shape) != (other.dtype, other.shape) or one.dtype not in FLOATS:
            return False
        step = block_shape(one.shape)[0]
        cuts = [(slice(start, start + step), slice(None)) for start in range(0, one.shape[0], step)]
        return all(np.array_equal(self.files.read(name, cut), self.files.read(self.head, cut)) for cut in cuts)

    def _refuse(self, extra: Sequence[str]) -> None:
        found = self.files.tensors
        missing = [name for name in self.names.values() if name not in found]
        problems = [*self.files.problems]
        if missing:
            problems.append(f"{len(missing)} missing: {listing(missing)}")
        if extra:
            problems.append(f"{len(extra)} too many: {listing(extra)}")
        shapes, dtypes = [], []
        for weight in weights(self.config):
            shape = weight.their_shape(self.config)
            for name in (self.names[name] for name in weight.tensors(self.config)):
                if name in found and found[name].shape != shape:
                    shapes.append(f"{name} is {list(found[name].shape)}, config.json asks for {list(shape)}")
                if name in found and found[name].dtype not in FLOATS:
                    dtypes.append(f"{name} is {found[name].dtype}")
        if shapes:
            problems.append(f"{len(shapes)} misshapen: {listing(shapes)}")
        if dtypes:
            problems.append(f"{len(dtypes)} of a dtype other than {', '.join(FLOATS)}: {listing(dtypes)}")
        if problems:
            raise ValueError(f"the tensors of {self.folder} do not fit its config.json: {'; '.join(problems)}")


def block_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Blocks over the first axis of about `BLOCK_BYTES` in float32, at least one row each."""
    row = 4 * int(np.prod(shape[1:], dtype=np.int64))
    return (min(shape[0], max(1, BLOCK_BYTES // row)), *shape[1:])


def load(folder: str | Path, layout: Layout) -> tuple[DecoderConfig, Params]:
    """(decoder, parameters) of a Hugging Face checkpoint, read straight onto a mesh.

    Each process reads only the slices that its devices hold, one parameter at a time.

    Args:
      folder: as for `HuggingFaceModel`, which says what is refused.
    """
    model = HuggingFaceModel(folder)
    shardings = layout.param_shardings(abstract_params(model.config))
    loaded: dict[str, object] = {}
    for weight in weights(model.config):
        sharding = shardings
        for key in weight.path.split("/"):
            sharding = sharding[key]
        shape, read = weight.shape(model.config), {}

        def values(index: Index | None, weight: Weight = weight, shape=shape, read=read) -> np.ndarray:
            assert index is not None
            spans = tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
            if spans not in read:  # devices that hold the same slice share one reading
                read[spans] = model.read(weight, [slice(*span) for span in spans])
            return read[spans]

        loaded[weight.path] = jax.make_array_from_callback(shape, sharding, values)
    return model.config, nested(loaded)


def abstract_params(config: DecoderConfig) -> PyTree:
    """Boxed shapes of a decoder's parameters."""
    return jax.eval_shape(lambda: init_decoder(config, jax.random.key(0)))
