"""Makes a whole model of a run that trained an adapter: a folder that INIT_FROM, the tools and the export take.

python -m tools.merge_adapter runs/sft_seed_lora models/tuned
"""

import argparse
import json
import logging
import math
import shutil
import sys
from pathlib import Path

import numpy as np

from hcxjax.checkpoint import CheckpointError, Streamed, read, write_streamed
from hcxjax.checksums import CHECKSUMS
from hcxjax.convert.config import hugging_face_config
from hcxjax.convert.model import block_shape
from hcxjax.convert.model_folder import CHECKPOINTS, CONFIG, GIN, TOKENIZER_FOLDER, Card, checksums, model_gin
from hcxjax.convert.names import weights
from hcxjax.convert.tokenizer import TOKENIZER, TokenIds
from hcxjax.convert.whole_folder import check_absent, check_space, whole_folder
from hcxjax.data.tokenizer import COPIED_FROM, MODEL_FILE
from hcxjax.main import configure
from hcxjax.models.config import DecoderConfig
from hcxjax.objectives import reward_card
from hcxjax.objectives.lora import LoRA
from hcxjax.partition import covers, nested
from hcxjax.tracking import quiet_libraries
from hcxjax.train import Experiment
from tools.adapters import Leaf, blocks, merged_leaves
from tools.export_hf import tokenizer_writer
from tools.opening import KnowsVocabulary


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m tools.merge_adapter", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("run", metavar="RUN", help="RUN_DIR of a run whose objective is LoRA")
    arguments.add_argument("out", metavar="FOLDER", help="model folder to make; must not exist")
    arguments.add_argument("--step", type=int, help="which checkpoint (default: the newest)")
    arguments.add_argument(
        "--part", default="", metavar="PATH", help="of the parameters, such as policy after PPO (default: all)"
    )
    return arguments


def merge(run: str | Path, out: str | Path, step: int | None = None, part: str = "") -> int:
    """Makes the folder `out`; how many numbers its weights have.

    What makes up a decoder becomes a model folder as of tools.import_hf. Of other parameters, such as a reward model's,
    it has the weights, the tokenizer and the reward card.

    Args:
      run: whose adapter is added to the weights that it was trained on.
      step: which checkpoint, None for the newest.
      part: prefix of the parameters that are taken, which begin there in `out`; '' takes all.
    Raises:
      ValueError: `run` trained no adapter, `out` exists, the weights below the adapter are gone or other ones, there is
        no such part, or the disk is too full.
      CheckpointError: a checkpoint is damaged.
    """
    run, out, part = Path(run), Path(out), part.strip("/")
    check_absent(out)
    experiment = _experiment(run)
    step, leaves = merged_leaves(experiment, step)
    chosen = {path[len(part) :].lstrip("/"): leaf for path, leaf in leaves.items() if covers(part, path)}
    if not chosen:
        tops = ", ".join(sorted({path.partition("/")[0] for path in leaves}))
        raise ValueError(f"--part is {part!r}, but the parameters of {run} are {tops}")
    count = sum(math.prod(leaf.shape) for leaf in chosen.values())
    check_space(out, 4 * count)
    with whole_folder(out) as folder:
        tokens, tokenizer = _write_tokenizer(experiment, run, step, folder / TOKENIZER_FOLDER)
        streamed = {path: _streamed(leaf) for path, leaf in chosen.items()}
        write_streamed(folder / CHECKPOINTS, step, {"state": {"params": nested(streamed)}})
        lora = experiment.timeline.at(step).objective
        assert isinstance(lora, LoRA)
        if chosen.keys() == {weight.path for weight in weights(lora.model)}:
            _describe(lora.model, folder, out, run, step, tokens, tokenizer)
        elif (run / reward_card.FILE).is_file():
            shutil.copyfile(run / reward_card.FILE, folder / reward_card.FILE)
    return count


def _experiment(run: Path) -> Experiment:
    if not (run / "config.gin").is_file():
        raise ValueError(f"{run} has no config.gin: name the RUN_DIR of a run that trained an adapter")
    experiment, _ = configure([str(run / "config.gin")], [f"RUN_DIR={run}"])
    if not isinstance(experiment, Experiment) or not isinstance(experiment.objective, LoRA):
        raise ValueError(f"{run} trained no adapter (LoRA): its checkpoints are whole, INIT_FROM takes {run} as it is")
    return experiment


def _streamed(leaf: Leaf) -> Streamed:
    part = block_shape(leaf.shape) if leaf.shape else ()
    return Streamed(
        leaf.shape, np.dtype(np.float32), part, lambda: ((index, leaf.read(index)) for index in blocks(leaf.shape))
    )


def _write_tokenizer(experiment: Experiment, run: Path, step: int, folder: Path) -> tuple[TokenIds, str]:
    """Writes the run's tokenizer; (ids of begin, end and padding, name of its file)."""
    if not isinstance(experiment.source, KnowsVocabulary):
        raise ValueError(f"{run}: its source, {type(experiment.source).__name__}, keeps no vocabulary")
    known = {"tokenizer": np.asarray(0)}
    template = {"source": {"phase_0": known} if experiment.phases else known}
    _, state = read(run / CHECKPOINTS, template, step)
    state = state["source"]["phase_0"] if experiment.phases else state["source"]
    vocabulary = experiment.source.vocabulary(int(state["tokenizer"]))
    copied = run / TOKENIZER_FOLDER / COPIED_FROM
    folder.mkdir()
    tokens = tokenizer_writer(vocabulary, copied.read_text(encoding="utf-8") if copied.is_file() else None)(folder)
    if Path(vocabulary.path).read_bytes().lstrip()[:1] == b"{":
        return tokens, TOKENIZER
    shutil.copyfile(vocabulary.path, folder / MODEL_FILE)  # the next run compares its own with the very file
    return tokens, MODEL_FILE


def _describe(
    model: DecoderConfig, folder: Path, out: Path, run: Path, step: int, tokens: TokenIds, tokenizer: str
) -> None:
    """Writes config.json, model.gin and the card of a decoder."""
    config = json.dumps(hugging_face_config(model, tokens, "float32"), indent=2)
    (folder / CONFIG).write_text(config + "\n", encoding="utf-8")
    came = f"of checkpoint {step} of {run}, its adapter added"
    (folder / GIN).write_text(model_gin(model, out, came, tokenizer), encoding="utf-8")
    files = [run / "config.gin", run / CHECKPOINTS / str(step) / CHECKSUMS]
    Card(str(run), "model.", {}, checksums(files), left_out=[], ignored=[], unknown_fields=[]).write(folder)


def main(argv: list[str] | None = None) -> int:
    """Merges and says so; 1 where something is wrong."""
    options = parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    quiet_libraries()
    try:
        count = merge(options.run, options.out, options.step, options.part)
    except (ValueError, OSError, CheckpointError) as error:
        print(f"merge_adapter: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {count:,} parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
