"""Folders of safetensors: read tensor by tensor, a slice at a time; written as shards without holding one in memory."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

FLOATS = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}
"""Name of a dtype in safetensors → numpy's."""
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
LISTED = 12
"""Of problems of one kind, this many are named and the rest counted."""


def listing(problems: Sequence[str]) -> str:
    """All problems, or the first of them and how many more there are."""
    more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
    return "; ".join(problems[:LISTED]) + more


@dataclasses.dataclass(frozen=True)
class Stored:
    """Where a tensor lies, and what its header says."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


class SafetensorsFolder:
    """The tensors of a checkpoint: one file, or shards with an index. Only headers are read until one is asked for.

    Args:
      folder: holds model.safetensors, or model.safetensors.index.json and what it names, or one other .safetensors.
    Raises:
      ValueError: none of these; pickles; a file that is missing or damaged; an index that does not fit its files.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        placed = self._placed()
        self.files = sorted(set(placed.values()) if isinstance(placed, dict) else placed)
        found = {file: _header(file) for file in self.files}
        self.tensors: dict[str, Stored] = {}
        self.problems: list[str] = []
        for file, tensors in found.items():
            for name, stored in tensors.items():
                if isinstance(placed, dict) and placed.get(name) != file:
                    self.problems.append(f"{name} is in {file.name}, where {INDEX} does not have it")
                else:
                    self.tensors[name] = stored
        if isinstance(placed, dict):
            self.problems += [
                f"{name} is not in {file.name}, where {INDEX} has it"
                for name, file in placed.items()
                if name not in found[file]
            ]

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """A slice of a tensor, in the dtype that it is stored in. Nothing of the file stays in memory afterwards."""
        stored = self.tensors[name]
        with _opened(stored.file) as file:
            tensor = file.get_slice(name)
            return tensor[index or tuple(slice(None) for _ in stored.shape)]

    def _placed(self) -> dict[str, Path] | list[Path]:
        """{tensor: file} of an index, or the files."""
        index = self.folder / INDEX
        if index.is_file():
            try:
                named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
                files = set(named.values())
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{index} is no index of safetensors: {error!r}") from error
            if outside := sorted(file for file in files if Path(file).name != file):
                raise ValueError(f"{index} names files outside its folder: {listing(outside)}")
            if missing := sorted(file for file in files if not (self.folder / file).is_file()):
                raise ValueError(f"{self.folder} lacks files that {INDEX} names: {listing(missing)}")
            return {name: self.folder / file for name, file in named.items()}
        if (self.folder / SINGLE).is_file():
            return [self.folder / SINGLE]
        others = sorted(self.folder.glob("*.safetensors"))
        if len(others) == 1:
            return others
        if others:
            raise ValueError(
                f"{self.folder} has {len(others)} .safetensors files and no {INDEX} that says how they fit"
            )
        pickles = sorted(file.name for pattern in PICKLES for file in self.folder.glob(pattern))
        if pickles:
            raise ValueError(
                f"{self.folder} has only pickle files ({listing(pickles)}), and reading one can run any code: "
                "save the model as safetensors where you trust it"
            )
        raise ValueError(f"{self.folder} has no .safetensors files")


def _opened(file: Path):  # safetensors' class has no type outside Rust
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(str(file), framework="np")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} ({file.stat().st_size:,} bytes) is no whole safetensors file: {error}") from error


def _header(file: Path) -> dict[str, Stored]:
    with _opened(file) as opened:
        names = opened.keys()
        slices = {name: opened.get_slice(name) for name in names}
        return {name: Stored(file, part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that is to be written.

    Attributes:
      name, dtype, shape: of its header; dtype is a key of `FLOATS`.
      blocks: called once, yields float32 arrays that follow each other along the first axis.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[np.ndarray]]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return int(np.prod(self.shape, dtype=np.int64)) * FLOATS[self.dtype].itemsize


def write_tensors(
    folder: str | Path, tensors: Sequence[Tensor], shard_bytes: int, wrote: Callable[[int], object] = lambda _: None
) -> list[Path]:
    """Writes tensors in their order into shards of at most `shard_bytes` (one tensor may be larger); the files.

    Args:
      wrote: told the number of bytes after each block.
    Raises:
      ValueError: a value does not fit its dtype (float16 ends at 65,504); names the tensor.
    """
    shards: list[list[Tensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(other.nbytes for other in shards[-1]) + tensor.nbytes > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    count, folder = len(shards), Path(folder)
    names = [SINGLE] if count == 1 else [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    for file, shard in zip(names, shards, strict=True):
        _write_shard(folder / file, shard, wrote)
    if count > 1:
        placed = {tensor.name: file for file, shard in zip(names, shards, strict=True) for tensor in shard}
        total = {"total_size": sum(tensor.nbytes for tensor in tensors)}
        index = json.dumps({"metadata": total, "weight_map": placed}, indent=2, sort_keys=True)
        (folder / INDEX).write_text(index + "\n", encoding="utf-8")
    return [folder / name for name in names]


def _write_shard(file: Path, tensors: Sequence[Tensor], wrote: Callable[[int], object]) -> None:
    """Source: the safetensors format, version 0.4 (header length, JSON header padded with spaces, little-endian data).

    The library's own writer wants the whole shard in memory.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file without it
    at = 0
    for tensor in tensors:
        span = [at, at := at + tensor.nbytes]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": span}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            start = out.tell()
            for block in tensor.blocks():
                data = _rounded(block, tensor)
                out.write(data.reshape(-1).view(np.uint8).data)
                wrote(data.nbytes)
            assert out.tell() - start == tensor.nbytes, tensor.name
        out.flush()
        os.fsync(out.fileno())


def _rounded(block: np.ndarray, tensor: Tensor) -> np.ndarray:
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(block, FLOATS[tensor.dtype])
    if tensor.dtype != "F32" and np.isfinite(block).all() and not np.isfinite(rounded).all():
        raise ValueError(f"{tensor.name} has values beyond {tensor.dtype}: choose another dtype")
    return rounded
