"""Imports a Hugging Face checkpoint (`llama` or `hyperclovax`, safetensors) as a model folder to train on or to run.

python -m tools.import_hf HyperCLOVAX-SEED-Text-Instruct-0.5B models/seed_0.5b
"""

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from hcxjax.checkpoint import CheckpointError, Streamed, write_streamed
from hcxjax.convert.model import HuggingFaceModel
from hcxjax.convert.model_folder import CHECKPOINTS, CONFIG, GIN, TOKENIZER_FOLDER, Card, checksums, model_gin
from hcxjax.convert.names import Index, Weight, nested, weights
from hcxjax.convert.tokenizer import TOKENIZER, copy_tokenizer
from hcxjax.convert.whole_folder import check_absent, check_space, whole_folder
from hcxjax.text.vocabulary import Vocabulary
from hcxjax.tracking import quiet_libraries

_log = logging.getLogger(__name__)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m tools.import_hf", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("source", metavar="SOURCE", help="folder with config.json, safetensors, tokenizer.json")
    arguments.add_argument("out", metavar="OUT", help="model folder to make; must not exist")
    return arguments


def import_model(source: str | Path, out: str | Path) -> HuggingFaceModel:
    """Makes the model folder `out` of the checkpoint in `source`; what was read.

    Weights become float32 and are written a part at a time. No code of the checkpoint is run. A process that is killed
    leaves `out`.unfinished, which the same command removes and makes again.

    Raises:
      ValueError: what `HuggingFaceModel` refuses, `out` exists, or the disk is too full.
      CheckpointError: a weight could not be read or written.
    """
    out, source = Path(out), Path(source)
    check_absent(out)
    model = HuggingFaceModel(source)
    check_space(out, 4 * model.config.parameters)
    with whole_folder(out) as folder:
        files = [source / CONFIG, *model.files.files]
        files += copy_tokenizer(source, folder / TOKENIZER_FOLDER)
        tokenizer = TOKENIZER if (folder / TOKENIZER_FOLDER / TOKENIZER).is_file() else None
        (folder / CONFIG).write_bytes((source / CONFIG).read_bytes())
        (folder / GIN).write_text(model_gin(model.config, out, f"imported from {source}", tokenizer), encoding="utf-8")
        with tqdm(total=model.config.parameters, unit=" weights", unit_scale=True, leave=False, disable=None) as bar:
            leaves = {weight.path: _streamed(model, weight, bar.update) for weight in weights(model.config)}
            write_streamed(folder / CHECKPOINTS, 0, {"state": {"params": nested(leaves)}})
        card = Card(
            source=str(source),
            prefix=model.prefix,
            dtypes=model.dtypes(),
            sha256=checksums(files),
            left_out=model.left_out,
            ignored=model.buffers,
            unknown_fields=model.unknown,
        )
        card.write(folder)
    return model


def _streamed(model: HuggingFaceModel, weight: Weight, read: Callable[[int], object]) -> Streamed:
    def parts():
        index: Index
        for index, values in model.parts(weight):
            yield index, values
            read(values.size)

    return Streamed(weight.shape(model.config), np.dtype(np.float32), model.block(weight), parts)


def remarks(model: HuggingFaceModel, out: Path) -> list[str]:
    """What the user should know of an import that succeeded."""
    said = []
    if model.unknown:
        said.append(f"config.json has fields that are not known here and were left alone: {', '.join(model.unknown)}")
    if model.runs_code:
        said.append("config.json names code of the checkpoint's own (auto_map); none of it was read or run")
    if model.buffers:
        said.append(f"{len(model.buffers)} tensors that follow from others were ignored")
    if model.left_out:
        said.append(f"{len(model.left_out)} tensors of other parts of the model were left out (import.json lists them)")
    tokenizer = out / TOKENIZER_FOLDER / TOKENIZER
    if not tokenizer.is_file():
        return [*said, f"there is no {TOKENIZER}: set Tokenizer.path to the model's tokenizer"]
    try:
        size = Vocabulary(str(tokenizer)).size
        if size > model.config.vocab_size:
            said.append(f"the tokenizer has {size} entries, the model {model.config.vocab_size}")
    except ValueError as error:
        said.append(f"the tokenizer was copied, but cannot be used here: {error}")
    return said


def main(argv: list[str] | None = None) -> int:
    """Imports and says what came of it; 1 where something is wrong."""
    options = parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    quiet_libraries()
    try:
        model = import_model(options.source, options.out)
    except (ValueError, OSError, CheckpointError) as error:
        print(f"import_hf: {error}", file=sys.stderr)
        return 1
    for remark in remarks(model, Path(options.out)):
        print(f"import_hf: {remark}", file=sys.stderr)
    print(f"{options.out}: {model.config.parameters:,} parameters, {len(model.names)} tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
