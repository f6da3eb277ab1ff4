"""On this machine, with all its devices in one process: a workstation, or one node of GPUs."""

import argparse
import shlex
import sys
from typing import Any

from tools.launch.restarts import Command, keep_going, policy_of
from tools.launch.training import Training

EXAMPLES = """\
python -m tools.launch here -- --gin_file=gin/runs/pretrain_125m.gin --gin.CODE=files:/data/code
"""


def add(commands: Any) -> None:
    """The command `here`."""
    parser = commands.add_parser(
        "here",
        help="on this machine",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(launch=launch, parser=parser, python=sys.executable)


def launch(training: Training, options: argparse.Namespace) -> int:
    """Runs it here, again where that helps."""
    variables = [f"{name}={value}" for name, value in training.environment.items()]
    command = [*(["env", *variables] if variables else []), *training.command(distributed=False)]
    print(shlex.join(command), flush=True)
    return 0 if options.dry_run else keep_going(Command(command, training.run_dir), policy_of(options))
