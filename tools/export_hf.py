"""Exports a run, or an imported model, as a Hugging Face checkpoint: config.json, safetensors, tokenizer.

python -m tools.export_hf runs/quickstart exported/quickstart
python -m tools.export_hf runs/pretrain_1b exported/1b --dtype bfloat16 --max_shard_mb 2000
"""

import argparse
import dataclasses
import filecmp
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from hcxjax.checkpoint import CheckpointError, read, stored_leaves
from hcxjax.convert.config import decoder_config, hugging_face_config, read_config, text_config
from hcxjax.convert.model_folder import CARD, CHECKPOINTS, CONFIG, TOKENIZER_FOLDER, Card
from hcxjax.convert.names import Weight, weights
from hcxjax.convert.safetensors_folder import Tensor, write_tensors
from hcxjax.convert.tokenizer import (
    GENERATION,
    TOKENIZER,
    TokenIds,
    copy_tokenizer,
    describe_tokenizer,
    write_generation,
    write_tokenizer_json,
)
from hcxjax.convert.whole_folder import check_absent, check_space, whole_folder
from hcxjax.main import configure
from hcxjax.models.config import DecoderConfig
from hcxjax.objectives.dpo import DPO
from hcxjax.objectives.language_model import LanguageModel
from hcxjax.objectives.lora import LoRA, Writes
from hcxjax.objectives.ppo import PPO
from hcxjax.text.vocabulary import Vocabulary
from hcxjax.tracking import quiet_libraries
from hcxjax.train import Experiment
from tools.adapters import PARAMS, Leaf, blocks, merged_leaves
from tools.opening import KnowsVocabulary, owner_of

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@dataclasses.dataclass(frozen=True)
class Source:
    """What is exported.

    Attributes:
      config: the decoder.
      leaves: parameters of the decoder, by path.
      dtypes: canonical name of a tensor → its dtype; others are float32.
      write_tokenizer: writes a tokenizer's files into a folder, and returns the ids of begin, end and padding.
    """

    config: DecoderConfig
    leaves: Mapping[str, Leaf]
    dtypes: Mapping[str, str]
    write_tokenizer: Callable[[Path], TokenIds]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m tools.export_hf", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("source", metavar="SOURCE", help="RUN_DIR of a training run, or a folder of tools.import_hf")
    arguments.add_argument("out", metavar="OUT", help="folder to make; must not exist")
    arguments.add_argument("--step", type=int, help="which checkpoint (default: the newest)")
    arguments.add_argument(
        "--dtype", choices=sorted(DTYPES), help="of all tensors (default: a run's float32, an import's own)"
    )
    arguments.add_argument("--max_shard_mb", type=int, default=4000, help="(default: %(default)s)")
    return arguments


def open_source(folder: Path, step: int | None) -> Source:
    """The model in a model folder, or in a run's folder.

    Raises:
      ValueError: it is neither, or it trains no language model.
    """
    if (folder / CARD).is_file():
        raw = read_config(folder)
        _, leaves = _stored(folder, step)
        return Source(decoder_config(raw), leaves, Card.read(folder).dtypes, _copier(folder / TOKENIZER_FOLDER, raw))
    if not (folder / "config.gin").is_file():
        raise ValueError(f"{folder} has neither config.gin nor {CARD}: name a RUN_DIR or a folder of tools.import_hf")
    experiment, _ = configure([str(folder / "config.gin")], [f"RUN_DIR={folder}"])
    if not isinstance(experiment, Experiment) or not isinstance(experiment.source, KnowsVocabulary):
        raise ValueError(f"{folder} does not train a language model")
    adapter = isinstance(experiment.objective, LoRA)
    step, leaves = merged_leaves(experiment, step) if adapter else _stored(folder, step)
    objective = experiment.timeline.at(step).objective
    objective = objective.objective if isinstance(objective, LoRA) else objective
    if not isinstance(objective, Writes):
        raise ValueError(f"{folder} does not train a language model")
    assert isinstance(objective, LanguageModel | DPO | PPO)
    if isinstance(objective, PPO):
        leaves = {path.removeprefix("policy/"): leaves[path] for path in leaves if path.startswith("policy/")}
    known = {"tokenizer": np.asarray(0)}
    template = {"source": {"phase_0": known} if experiment.phases else known}
    _, state = read(folder / CHECKPOINTS, template, step)
    state = state["source"]["phase_0"] if experiment.phases else state["source"]
    source = experiment.source
    vocabulary = source.vocabulary(int(state["tokenizer"]))
    return Source(objective.model, leaves, {}, tokenizer_writer(vocabulary, owner_of(source).tokenizer.path))


def _stored(folder: Path, step: int | None) -> tuple[int, dict[str, Leaf]]:
    """(step, {path: leaf}) of a checkpoint's parameters."""
    step, leaves = stored_leaves(folder / CHECKPOINTS, step)
    return step, {path.removeprefix(PARAMS): leaves[path] for path in leaves if path.startswith(PARAMS)}


def _copier(folder: Path, raw: Mapping) -> Callable[[Path], TokenIds]:
    """Copies an imported tokenizer; ids are those of its config.json."""

    def write(out: Path) -> TokenIds:
        copy_tokenizer(folder, out)
        config = text_config(raw)
        tokens = {name: config.get(name, raw.get(name)) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        if not (out / GENERATION).is_file():
            write_generation(out, tokens)
        return tokens

    return write


def tokenizer_writer(vocabulary: Vocabulary, original: str | None) -> Callable[[Path], TokenIds]:
    """Writes a run's tokenizer; what lay beside the tokenizer.json that it was given goes along."""

    def write(out: Path) -> TokenIds:
        given = Path(original or "")
        if given.name == TOKENIZER and given.is_file() and filecmp.cmp(given, vocabulary.path, shallow=False):
            copy_tokenizer(given.parent, out)
        write_tokenizer_json(vocabulary, out)
        tokens = describe_tokenizer(vocabulary, out)
        if not (out / GENERATION).is_file():
            write_generation(out, tokens)
        return tokens

    return write


def export_model(
    source: str | Path, out: str | Path, *, step: int | None = None, dtype: str | None = None, max_shard_mb: int = 4000
) -> DecoderConfig:
    """Makes the Hugging Face folder `out`; the decoder that it holds.

    A block of the checkpoint is in memory at a time: a layer of an import; of a run, a whole stacked leaf per device
    that it was sharded over.

    Args:
      source: a run's folder or a model folder.
      step: which checkpoint, None for the newest.
      dtype: of all tensors; None: as imported, and float32 for a run.
      max_shard_mb: a file's largest size in 10^6 bytes.
    Raises:
      ValueError: `out` exists, `source` is no such folder, the disk is too full, or a value does not fit `dtype`.
      CheckpointError: the checkpoint is damaged.
    """
    out = Path(out)
    check_absent(out)
    if max_shard_mb < 1:
        raise ValueError(f"--max_shard_mb is {max_shard_mb}; it must be at least 1")
    opened = open_source(Path(source), step)
    tensors = list(_tensors(opened, DTYPES[dtype] if dtype else None))
    total = sum(tensor.nbytes for tensor in tensors)
    check_space(out, total)
    with whole_folder(out) as folder:
        tokens = opened.write_tokenizer(folder)
        (most, _), *_ = Counter(tensor.dtype for tensor in tensors).most_common()
        names = {short: name for name, short in DTYPES.items()}
        config = json.dumps(hugging_face_config(opened.config, tokens, names[most]), indent=2)
        (folder / CONFIG).write_text(config + "\n", encoding="utf-8")
        with tqdm(total=total, unit="B", unit_scale=True, leave=False, disable=None) as bar:
            write_tensors(folder, tensors, max_shard_mb * 10**6, bar.update)
    return opened.config


def _tensors(source: Source, dtype: str | None) -> Iterator[Tensor]:
    """All tensors, leaf by leaf, because a leaf may be stored in one block."""
    for weight in weights(source.config):
        leaf = source.leaves.get(weight.path)
        shape = weight.shape(source.config)
        if leaf is None or leaf.shape != shape:
            raise ValueError(f"the checkpoint's {weight.path} is {leaf and leaf.shape}, the configuration's {shape}")
        for layer, name in enumerate(weight.tensors(source.config)):
            yield Tensor(
                name,
                dtype or source.dtypes.get(name, "F32"),
                weight.their_shape(source.config),
                lambda weight=weight, leaf=leaf, layer=layer: _blocks(source.config, weight, leaf, layer),
            )


def _blocks(config: DecoderConfig, weight: Weight, leaf: Leaf, layer: int) -> Iterator[np.ndarray]:
    if weight.stacked:
        yield weight.to_theirs(leaf.read((layer,)), config)
        return
    yield from map(leaf.read, blocks(leaf.shape))


def main(argv: list[str] | None = None) -> int:
    """Exports and says so; 1 where something is wrong."""
    options = parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    quiet_libraries()
    try:
        config = export_model(
            options.source, options.out, step=options.step, dtype=options.dtype, max_shard_mb=options.max_shard_mb
        )
    except (ValueError, OSError, CheckpointError) as error:
        print(f"export_hf: {error}", file=sys.stderr)
        return 1
    if config.embed_dim % config.num_heads:
        print(
            f"export_hf: transformers will not read it: it asks that hidden_size ({config.embed_dim}) be a multiple of "
            f"num_attention_heads ({config.num_heads})",
            file=sys.stderr,
        )
    print(f"{options.out}: {config.parameters:,} parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
