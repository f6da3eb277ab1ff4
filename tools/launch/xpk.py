"""On a GKE cluster of TPUs, as a workload of xpk: Kubernetes restarts all its pods when one fails.

The image holds the project and its requirements. RUN_DIR lies on a disk that all pods mount, such as a bucket or a
Filestore that was attached to the cluster once: `xpk storage attach --help`.
"""

import argparse
import shlex
import subprocess
from typing import Any

from tools.launch.restarts import AGAIN
from tools.launch.training import Training

EXAMPLES = """\
python -m tools.launch xpk --cluster=pod --workload=hcx-1b --tpu_type=v5litepod-256 --slices=2 --dry_run \\
  --project=mine --zone=us-east5-b --container_image=gcr.io/mine/hcxjax:1 \\
  -- --gin_file=gin/runs/pretrain_1b.gin --gin.RUN_DIR=/bucket/runs/1b --gin.CODE=files:/bucket/code
"""


def add(commands: Any) -> None:
    """The command `xpk`."""
    parser = commands.add_parser(
        "xpk",
        help="as a workload of a GKE cluster",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, meaning in (
        ("cluster", "name of the cluster"),
        ("workload", "name of the workload, new in the cluster"),
        ("tpu_type", "such as v5litepod-256 or v6e-64"),
        ("container_image", "holds the project; pods pull it"),
    ):
        parser.add_argument(f"--{name}", required=True, help=meaning)
    parser.add_argument("--slices", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--project", help="(default: gcloud's)")
    parser.add_argument("--zone", help="(default: gcloud's)")
    parser.add_argument("--priority", default="medium", help="(default: %(default)s)")
    parser.add_argument("--folder", help="the project's in the image (default: where the image begins)")
    parser.add_argument(
        "--grace_s", type=int, default=300, help="seconds to save in after SIGTERM (default: %(default)s)"
    )
    parser.add_argument("--extra", action="append", default=[], metavar="OPTION", help="of `xpk workload create`, too")
    parser.set_defaults(launch=launch, parser=parser, python="python3")


def launch(training: Training, options: argparse.Namespace) -> int:
    """Creates the workload, or prints how."""
    training.check_shared()
    if options.slices < 1:
        raise ValueError(f"--slices is {options.slices}; it must be at least 1")
    command = workload(training, options)
    print(shlex.join(command), flush=True)
    return 0 if options.dry_run else subprocess.run(command, check=False).returncode


def workload(training: Training, options: argparse.Namespace) -> list[str]:
    """The command of xpk. Its restarts are counted by Kubernetes, which knows of no checkpoints."""
    where = [f"--{name}={value}" for name in ("project", "zone") if (value := getattr(options, name))]
    return [
        "xpk",
        "workload",
        "create",
        f"--cluster={options.cluster}",
        f"--workload={options.workload}",
        f"--tpu-type={options.tpu_type}",
        f"--num-slices={options.slices}",
        *where,
        f"--docker-image={options.container_image}",
        f"--priority={options.priority}",
        f"--max-restarts={options.max_restarts}",
        # Besides those that xpk restarts on by itself, among them all signals; 1 and 2 end the workload.
        f"--restart-on-exit-codes={AGAIN}",
        f"--termination-grace-period-seconds={options.grace_s}",
        *(f"--env={name}={value}" for name, value in training.environment.items()),
        *options.extra,
        # Variables are set by xpk; exec, so that SIGTERM reaches the program.
        f"--command={Training(training.arguments, training.run_dir, {}, training.python).shell(options.folder)}",
    ]
