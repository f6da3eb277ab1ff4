"""What a model's folder holds beside its weights: the gin file of its shape, and where it came from."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hcxjax.models.config import DecoderConfig

CONFIG, CARD, GIN, TOKENIZER_FOLDER, CHECKPOINTS = "config.json", "import.json", "model.gin", "tokenizer", "checkpoints"

_HOW_IT_RUNS = (
    "dtype",
    "matmuls",
    "attention",
    "attention_tile",
    "context",
    "remat",
    "offload",
    "scan_unroll",
    "init_std",
)
"""Fields of `DecoderConfig` that are a run's business and no part of the model."""


@dataclasses.dataclass(frozen=True)
class Card:
    """import.json: what a model folder was made from.

    Attributes:
      source: folder that was imported.
      prefix: what stood before `embed_tokens.weight` there.
      dtypes: canonical name of each tensor → its dtype there, as safetensors calls it.
      sha256: of each file that was read.
      left_out: tensors of other parts of the model.
      ignored: buffers, and repetitions of tied embeddings.
      unknown_fields: of config.json.
    """

    source: str
    prefix: str
    dtypes: dict[str, str]
    sha256: dict[str, str]
    left_out: list[str]
    ignored: list[str]
    unknown_fields: list[str]

    def write(self, folder: Path) -> None:
        """Into `folder`."""
        text = json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1)
        (folder / CARD).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Card":
        """From `folder`; ValueError where it is none of ours."""
        try:
            return cls(**json.loads((folder / CARD).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{folder / CARD} is no card of an imported model: {error}") from error


def checksums(files: Iterable[Path]) -> dict[str, str]:
    """{file name: sha256}."""
    sums = {}
    for file in files:
        with file.open("rb") as opened:
            sums[file.name] = hashlib.file_digest(opened, "sha256").hexdigest()
    return sums


def model_gin(config: DecoderConfig, folder: Path, came: str, tokenizer: str | None) -> str:
    """model.gin of the folder: what a file in gin/models holds, the tokenizer, and the weights to start from.

    Args:
      folder: where the model folder will lie; its paths are written absolute.
      came: how it came about, as in 'imported from PATH'.
      tokenizer: name of its file, or None.
    """
    lines = [
        f"# {config.parameters:,} parameters, {' '.join(came.split())}.",
        f"VOCAB_SIZE = {config.vocab_size}",
    ]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in (*_HOW_IT_RUNS, "vocab_size", "rope_scaling"):
            lines.append(f"DecoderConfig.{field.name} = {value!r}")
    scaling: dict[str, Any] = dataclasses.asdict(config.rope_scaling) if config.rope_scaling else {}
    lines.append(f"DecoderConfig.rope_scaling = {'@RopeScaling()' if scaling else None}")
    lines += [f"RopeScaling.{name} = {value!r}" for name, value in scaling.items()]
    if tokenizer:
        lines.append(f"Tokenizer.path = {str(folder.absolute() / TOKENIZER_FOLDER / tokenizer)!r}")
    lines.append(f"INIT_FROM = {str(folder.absolute())!r}")
    return "\n".join(lines) + "\n"
