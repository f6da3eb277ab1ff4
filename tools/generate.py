"""Lets a trained run write: goes on from a prompt, or fills the gap before a suffix.

python -m tools.generate --run runs/quickstart --prompt "민준은 "
python -m tools.generate --run runs/quickstart --prompt "def add(a, b):" --suffix "    return total"
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from hcxjax.checkpoint import CheckpointError, read
from hcxjax.data.packed import PackedTokens
from hcxjax.evaluation.samples import Prompt
from hcxjax.inference.decode import Limits, decode
from hcxjax.inference.sampling import Sampling
from hcxjax.main import configure
from hcxjax.mesh import Layout
from hcxjax.models.config import DecoderConfig
from hcxjax.objectives.language_model import LanguageModel
from hcxjax.protocols import Params
from hcxjax.text.vocabulary import StreamDecoder, Vocabulary
from hcxjax.tracking import quiet_libraries
from hcxjax.train import Experiment
from hcxjax.update import abstract_state


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m tools.generate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--run", required=True, metavar="DIR", help="RUN_DIR of a training run")
    arguments.add_argument("--step", type=int, help="which checkpoint (default: the newest)")
    arguments.add_argument("--prompt", required=True, metavar="TEXT", help="how the text begins; may be empty")
    arguments.add_argument("--suffix", metavar="TEXT", help="what follows the gap that the model fills")
    arguments.add_argument("--new_tokens", type=int, default=128, help="at most this many (default: %(default)s)")
    arguments.add_argument("--temperature", type=float, default=0.7, help="0 is greedy (default: %(default)s)")
    arguments.add_argument("--top_k", type=int, default=0, help="0 keeps all tokens (default: %(default)s)")
    arguments.add_argument("--top_p", type=float, default=1.0, help="(default: %(default)s)")
    arguments.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    arguments.add_argument(
        "--stop", action="append", type=int, default=[], metavar="ID", help="more token ids to stop at"
    )
    return arguments


def open_run(run: Path, step: int | None) -> tuple[DecoderConfig, Layout, Vocabulary, Params]:
    """(model, layout, vocabulary, params) of a run's checkpoint.

    Raises:
      ValueError: no run there, or its parts do not fit each other.
    """
    config = run / "config.gin"
    if not config.is_file():
        raise ValueError(f"{run} has no config.gin: name the RUN_DIR of a training run")
    experiment, _ = configure([str(config)], [f"RUN_DIR={run}"])
    if not isinstance(experiment, Experiment) or not isinstance(experiment.objective, LanguageModel):
        raise ValueError(f"{config} does not train a language model")
    assert isinstance(experiment.source, PackedTokens)
    layout = Layout()  # the devices that are here, whatever the run was trained on
    phases = experiment.timeline
    abstract = abstract_state(experiment.recipe(phases.at(0)), layout)
    tokenizer = {"tokenizer": np.asarray(0)}
    source = {"phase_0": tokenizer} if experiment.phases else tokenizer
    step, tree = read(run / "checkpoints", {"state": {"params": abstract.params}, "source": source}, step)
    state = tree["source"]["phase_0"] if experiment.phases else tree["source"]
    objective = phases.at(step).objective
    assert isinstance(objective, LanguageModel)
    return objective.model, layout, experiment.source.vocabulary(int(state["tokenizer"])), tree["state"]["params"]


def main(argv: list[str] | None = None) -> int:
    """Prints prompt, what the model writes as it comes, and the suffix; 1 where something is wrong."""
    options = parser().parse_args(argv)
    quiet_libraries()
    try:
        sampling = Sampling(options.temperature, options.top_k, options.top_p, options.seed)
        model, layout, vocabulary, params = open_run(Path(options.run), options.step)
        limits = Limits(options.new_tokens, (vocabulary.end_of_text, *options.stop))
        prompt = Prompt(options.prompt, options.suffix)
        with layout.active():
            print(options.prompt, end="", flush=True)
            text = StreamDecoder(vocabulary)
            for (token,) in decode(model, params, [prompt.tokens(vocabulary)], limits, sampling):
                if token is not None and token not in limits.stop_ids:
                    print(text.push(token), end="", flush=True)
            print(options.suffix or "")
    except (ValueError, CheckpointError) as error:
        print(f"generate: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
