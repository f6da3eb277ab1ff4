"""As a SLURM job: a script for sbatch, whose restarts happen inside the allocation.

One process a GPU, which is what jax makes of SLURM's variables. The project's folder and RUN_DIR lie on a disk that all
nodes share. Before the time limit SLURM sends SIGTERM: the run saves, and the job goes back into the queue.
"""

import argparse
import shlex
import subprocess
from pathlib import Path
from typing import Any

from tools.launch.restarts import say
from tools.launch.training import Training

EXAMPLES = """\
python -m tools.launch slurm --nodes=4 --gpus_per_node=8 --partition=gpu --time=2-00:00:00 --dry_run \\
  -- --gin_file=gin/runs/pretrain_1b.gin --gin.RUN_DIR=/shared/runs/1b --gin.CODE=files:/shared/code
python -m tools.launch slurm --nodes=2 --gpus_per_node=4 --container_image=/shared/hcxjax.sqsh \\
  --container_mounts=/shared:/shared --extra=--exclusive -- --gin_file=gin/runs/pretrain_1b.gin ...
"""


def add(commands: Any) -> None:
    """The command `slurm`."""
    parser = commands.add_parser(
        "slurm",
        help="as a SLURM job",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--nodes", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--gpus_per_node", type=int, default=8, help="0: one process a node (default: %(default)s)")
    parser.add_argument("--cpus_per_task", type=int, help="of each process (default: the cluster's)")
    parser.add_argument("--partition", help="(default: the cluster's)")
    parser.add_argument("--account", help="(default: yours)")
    parser.add_argument("--time", metavar="D-HH:MM:SS", help="limit of the job (default: the partition's)")
    parser.add_argument("--name", default="hcxjax", help="of the job and its log (default: %(default)s)")
    parser.add_argument(
        "--save_before_s",
        type=int,
        default=300,
        help="SIGTERM so many seconds before the time limit (default: %(default)s)",
    )
    parser.add_argument("--folder", default=str(Path.cwd()), help="the project's, on the nodes (default: this one)")
    parser.add_argument("--container_image", metavar="IMAGE", help="run in it, by the plugin pyxis")
    parser.add_argument("--container_mounts", metavar="FROM:TO,...", help="folders that it sees")
    parser.add_argument("--extra", action="append", default=[], metavar="OPTION", help="of sbatch: --extra=--exclusive")
    parser.set_defaults(launch=launch, parser=parser, python="python3")


def launch(training: Training, options: argparse.Namespace) -> int:
    """Hands the script to sbatch, or prints it."""
    for name, least in (("nodes", 1), ("gpus_per_node", 0), ("save_before_s", 1)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name} is {getattr(options, name)}; it must be at least {least}")
    if options.container_mounts and not options.container_image:
        raise ValueError("--container_mounts needs --container_image")
    text = script(training, options)
    print(text, flush=True)
    if options.dry_run:
        return 0
    say("sbatch < the script above")
    return subprocess.run(["sbatch"], input=text, text=True, check=False).returncode


def script(training: Training, options: argparse.Namespace) -> str:
    """The batch script."""
    settings = {
        "job-name": options.name,
        "output": f"{options.name}-%j.log",
        "open-mode": "append",
        "nodes": options.nodes,
        "ntasks-per-node": options.gpus_per_node or 1,
        "gpus-per-node": options.gpus_per_node or None,
        "cpus-per-task": options.cpus_per_task,
        "partition": options.partition,
        "account": options.account,
        "time": options.time,
        "signal": f"B:TERM@{options.save_before_s}",
    }
    directives = [f"--{name}={value}" for name, value in settings.items() if value is not None]
    lines = [f"#SBATCH {directive}" for directive in [*directives, "--requeue", *options.extra]]
    exports = [f"export {name}={shlex.quote(value)}" for name, value in training.environment.items()]
    return "\n".join(
        [
            "#!/bin/bash",
            *lines,
            f"cd {shlex.quote(options.folder)} || exit 2",
            *exports,
            # Bash would keep SIGTERM to itself until its child ends; so it makes way.
            f"exec {shlex.join(_restarting(training, options))}",
            "",
        ]
    )


def _restarting(training: Training, options: argparse.Namespace) -> list[str]:
    run_dir = [] if training.run_dir is None else [f"--run_dir={training.run_dir}"]
    policy = [f"--{name}={getattr(options, name):g}" for name in ("max_restarts", "without_progress", "pause_s")]
    wrapper = ["python3", "-m", "tools.launch.restarts", *run_dir, *policy, "--requeue", "--"]
    # Processes end together by themselves, with an exit status that says why; srun gives the highest of them.
    step = ["srun", "--kill-on-bad-exit=0"]
    if options.cpus_per_task:
        step.append(f"--cpus-per-task={options.cpus_per_task}")  # since SLURM 22.05 srun does not take it from the job
    if options.container_image:
        step += [f"--container-image={options.container_image}", f"--container-workdir={options.folder}"]
        step += [f"--container-mounts={options.container_mounts}"] if options.container_mounts else []
    return [*wrapper, *step, *training.command()]
