"""Prepares the data of a run before it is started: reads, cleans, drops duplicates, trains the tokenizer, tokenises.

python -m tools.prepare_data --gin_file=gin/runs/folders.gin --gin.KOREAN='jsonl:ko/*.jsonl.zst' ... --workers 8

Goes on where it was after a kill; several commands on one folder share the work. Prints what was kept and what was not,
by source and reason, and the rows that it makes; --report writes a page too. On a cluster: docs/data.md.
"""

import argparse
import dataclasses
import logging
import sys
import time
from concurrent.futures.process import BrokenProcessPool

from hcxjax.data.cleaning.report import tables, write_report
from hcxjax.data.cleaning.tally import Tally
from hcxjax.data.corpus import Corpus
from hcxjax.data.packed import PackedTokens
from hcxjax.main import configure
from hcxjax.mesh import Layout
from hcxjax.tracking import quiet_libraries
from hcxjax.train import Experiment


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m tools.prepare_data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument(
        "--gin_file", action="append", required=True, metavar="FILE", help="the run; can be repeated"
    )
    arguments.add_argument("--gin.NAME=value", dest="_", help="a binding that overrides the files; may be repeated")
    arguments.add_argument("--workers", type=int, help="processes on this machine, in place of the run's Corpus.engine")
    arguments.add_argument("--report", metavar="FOLDER", help="writes report.md, and report.png where matplotlib is")
    arguments.add_argument("--examples", action="store_true", help="shows excerpts of dropped documents in the report")
    return arguments


def corpora(experiment: Experiment) -> list[Corpus]:
    """The corpora of a run's phases, each once.

    Raises:
      ValueError: a phase is not trained on packed text.
    """
    found: list[Corpus] = []
    for phase in experiment.timeline.phases:
        if not isinstance(phase.source, PackedTokens):
            raise ValueError(f"the run trains on {type(phase.source).__name__}, but only PackedTokens has a corpus")
        if phase.source.corpus not in found:
            found.append(phase.source.corpus)
    return found


def prepare(corpus: Corpus) -> dict[str, Tally]:
    """Writes the stores of both splits; what was read, kept and left out of each source."""
    tallies = {}
    stores = {split: corpus.stores(split) for split in ("train", "validation")}
    for name, store in stores["train"].items():
        held_out = stores["validation"][name]
        tally = Tally.from_json(store.manifest["tally"])
        if held_out.manifest["read_from"] == "validation":
            tally = tally + Tally.from_json(held_out.manifest["tally"])
        tally.tokens = store.manifest["tokens"] + held_out.manifest["tokens"]
        tallies[name] = tally
    return tallies


def rows_table(experiment: Experiment) -> list[str]:
    """Lines of Markdown: rows of an epoch and their padding, by phase and source."""
    lines = ["| row length | source | rows an epoch | share | padding |", "|---:|---|---:|---:|---:|"]
    for phase in experiment.timeline.phases:
        source = phase.source
        assert isinstance(source, PackedTokens)
        source = dataclasses.replace(source, run_dir=None)
        source.start(Layout(rules=(("batch", None),)), None)  # any number of rows a batch, on any devices
        for name, epochs, share in source.plans():
            lines.append(
                f"| {source.length:,} | {name} | {epochs.rows:,} | {float(share):.3%} | {epochs.padding:.2%} |"
            )
        source.close()
    return lines


def main(argv: list[str] | None = None) -> int:
    """Prepares and prints; 1 where something is wrong."""
    arguments = sys.argv[1:] if argv is None else argv
    bindings = [argument for argument in arguments if argument.startswith("--gin.")]
    options = parser().parse_args([argument for argument in arguments if argument not in bindings])
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    quiet_libraries()
    try:
        if options.workers is not None:
            bindings += ["--gin.Corpus.engine=@Local()", f"--gin.Local.workers={options.workers}"]
        experiment, _ = configure(options.gin_file, [binding.removeprefix("--gin.") for binding in bindings])
        if not isinstance(experiment, Experiment):
            raise ValueError(f"{options.gin_file[-1]} trains nothing, so it has no data to prepare")
        for corpus in corpora(experiment):
            started = time.monotonic()
            tallies = prepare(corpus)
            seconds = time.monotonic() - started
            megabytes = sum(tally.bytes_in for tally in tallies.values()) / 1e6
            print("\n".join(tables(tallies)))
            print(f"\n{megabytes:.1f} MB in {seconds:.0f} s, {megabytes / seconds:.2f} MB/s: {corpus.directory}\n")
            if options.report:
                print(write_report(options.report, tallies, examples=options.examples), "\n")
        print("\n".join(rows_table(experiment)))
    except (ValueError, OSError, BrokenProcessPool) as error:
        print(f"prepare_data: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
