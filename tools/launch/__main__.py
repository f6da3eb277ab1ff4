"""Starts a run on all hosts of a pod or cluster, and goes on with it after a failure.

python -m tools.launch WHERE [options] -- ARGUMENTS of hcxjax.main
python -m tools.launch slurm --nodes=4 --dry_run -- --gin_file=gin/runs/pretrain_1b.gin --gin.RUN_DIR=/shared/1b ...

The configuration is resolved here first, so that a typo costs no machine. --dry_run prints what would be started, and
nothing else happens. What happens on a failure is in docs/launching.md.
"""

import argparse
import sys
from collections.abc import Sequence

from tools.launch import here, slurm, tpu, xpk
from tools.launch.restarts import add_policy, policy_of, split
from tools.launch.training import training_of

PLACES = (here, slurm, tpu, xpk)


def parser() -> argparse.ArgumentParser:
    """The command line before `--`."""
    arguments = argparse.ArgumentParser(
        prog="python -m tools.launch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = arguments.add_subparsers(metavar="WHERE", required=True)
    for place in PLACES:
        place.add(commands)
    for command in commands.choices.values():
        common = command.add_argument_group("everywhere")
        common.add_argument("--dry_run", action="store_true", help="print what would be started, and start nothing")
        common.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable of the run")
        python = command.get_default("python")
        common.add_argument("--python", default=python, help="interpreter of the run (default: %(default)s)")
        add_policy(command)
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: that of the run where this machine looks after it; 1 an error; 2 wrong usage."""
    ours, theirs = split(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(ours)
    if not theirs:
        options.parser.error("name the run after --, as in: -- --gin_file=gin/runs/pretrain_1b.gin")
    try:
        policy_of(options)
        return options.launch(training_of(theirs, options), options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
