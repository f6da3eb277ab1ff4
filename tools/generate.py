"""Lets a model write: goes on from a prompt, fills the gap before a suffix, or works through a file of prompts.

python -m tools.generate --model runs/quickstart --prompt "민준은 "
python -m tools.generate --model runs/quickstart --prompt "def add(a, b):" --suffix "    return total"
python -m tools.generate --model runs/quickstart --input prompts.jsonl --output written.jsonl

A line of the input is an object with `prompt` (and `suffix`) or `messages`; it may have an `id` and settings of its own
(temperature, top_k, top_p, min_p, repetition_penalty, seed, new_tokens, stop, stop_text). Lines of the output come as
they are done, with the `index` of their line, counted from 0. A command that was stopped goes on where it was.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hcxjax.checkpoint import CheckpointError
from hcxjax.evaluation.samples import Prompt
from hcxjax.inference.engine import Engine
from hcxjax.inference.requests import Request
from hcxjax.tracking import quiet_libraries
from tools import opening, prompt_files

INTERRUPTED = 130
"""What a shell returns for a command that Ctrl-C ended."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m tools.generate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    opening.add_model_arguments(arguments)
    what = arguments.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", metavar="TEXT", help="how the text begins; may be empty")
    what.add_argument("--input", metavar="FILE", help="a JSON object a line")
    arguments.add_argument("--output", metavar="FILE", help="where a line of --input has its texts written")
    arguments.add_argument("--suffix", metavar="TEXT", help="what follows the gap that the model fills")
    arguments.add_argument("--samples", type=int, default=1, help="texts for each prompt (default: %(default)s)")
    opening.add_sampling_arguments(arguments)
    arguments.add_argument(
        "--stop_text", action="append", default=[], metavar="TEXT", help="end before this text; may be given again"
    )
    opening.add_template_arguments(arguments)
    arguments.add_argument("--strict", action="store_true", help="end at a line of --input that cannot be used")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Writes to the terminal or to a file; 1 where something is wrong."""
    options = parser().parse_args(argv)
    quiet_libraries()
    try:
        _check(options)
        opened = opening.open_named(options)
        slots = min(options.slots, options.samples) if options.input is None else options.slots
        settings = opening.settings_of(options, opened, slots=slots)
        with opened.layout.active():
            engine = Engine(opened.model, opened.params, opened.vocabulary, settings)
            if options.input is None:
                _show(engine, opened, options)
            else:
                prompt_files.work_through(engine, opened, options)
    except (ValueError, OSError, CheckpointError) as error:
        print(f"generate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    return 0


def _check(options: argparse.Namespace) -> None:
    """What is wrong with the command line, before a model is read."""
    opening.sampling_of(options)
    if options.input is None:
        _request(options, (0,), ())
        if options.output is not None:
            raise ValueError("--output is for --input; a single prompt is written to the terminal")
        return
    if options.output is None:
        raise ValueError("--input needs --output, the file that the texts go to")
    if options.suffix is not None:
        raise ValueError("--suffix is for --prompt; a line of --input has its own")
    if Path(options.output).resolve() == Path(options.input).resolve():
        raise ValueError(f"--output is {options.output}, the input itself; name another file")
    if not Path(options.output).parent.is_dir():
        raise ValueError(f"--output is {options.output}, and there is no folder {Path(options.output).parent}; make it")


def _request(options: argparse.Namespace, tokens: Sequence[int], ends: tuple[int, ...]) -> Request:
    return Request(
        tokens,
        options.new_tokens,
        opening.sampling_of(options),
        stop_ids=(*ends, *options.stop),
        stop=tuple(options.stop_text),
        samples=options.samples,
    )


def _show(engine: Engine, opened: opening.OpenModel, options: argparse.Namespace) -> None:
    """Prompt, text as it comes, suffix; of several samples the first comes, and the others follow in their order."""
    begin, ends = opened.text_ids
    tokens = Prompt(options.prompt, options.suffix).tokens(opened.vocabulary, begin)
    engine.submit(_request(options, tokens, ends))
    held, done, current = [""] * options.samples, [False] * options.samples, 0
    print(options.prompt, end="", flush=True)
    while not engine.idle:
        for delta in engine.advance():
            held[delta.sample] += delta.text
            done[delta.sample] = delta.finish is not None
        while current < options.samples:
            print(held[current], end="", flush=True)
            held[current] = ""
            if not done[current]:
                break
            print(options.suffix or "")
            current += 1
            if current < options.samples:
                print(f"\n── {current + 1} of {options.samples} ──\n{options.prompt}", end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
