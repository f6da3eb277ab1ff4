"""On the hosts of a Cloud TPU, by gcloud over ssh; this machine looks after the run, so let it be one that stays on.

The TPU is there, or --create makes it, and makes it anew when it was taken away. RUN_DIR lies on a disk that all hosts
share, such as a bucket that --bucket mounts on them. Ctrl-C asks the run on the hosts to save and end.
"""

import argparse
import shlex
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from tools.launch.restarts import AGAIN, Command, keep_going, newest_step, policy_of, say
from tools.launch.training import Training, in_shell

EXAMPLES = """\
python -m tools.launch tpu --name=pod --zone=us-east5-b --bucket=mine --dry_run \\
  -- --gin_file=gin/runs/pretrain_1b.gin --gin.RUN_DIR=/mnt/disks/mine/1b --gin.CODE=files:/mnt/disks/mine/code
python -m tools.launch tpu --name=pod --zone=us-east5-b --create --tpu_type=v5litepod-256 --slices=2 --spot \\
  --runtime_version=v2-alpha-tpuv5-lite --bucket=mine \\
  --setup='test -d hcxjax || git clone URL hcxjax; cd hcxjax && pip install -e . "jax[tpu]"' \\
  -- --gin_file=gin/runs/pretrain_1b.gin --gin.RUN_DIR=/mnt/disks/mine/1b --gin.CODE=files:/mnt/disks/mine/code
"""

_READY = ("READY", "ACTIVE")
_GONE = ("SUSPENDING", "SUSPENDED", "FAILED", "PREEMPTED", "TERMINATED", "STOPPED")
_POLL_S = 60.0
_OURS = shlex.quote("hcxjax[.]main")  # a pattern that does not match the shell whose argument it is
_ERROR = 65
"""What hcxjax.main's exit status 1 becomes on the way, because gcloud's own failures are 1 as well."""


def add(commands: Any) -> None:
    """The command `tpu`."""
    parser = commands.add_parser(
        "tpu",
        help="on a Cloud TPU, by gcloud",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--name", required=True, help="of the TPU, and of its queued resource")
    parser.add_argument("--zone", required=True, help="such as us-east5-b")
    parser.add_argument("--project", help="(default: gcloud's)")
    parser.add_argument("--slices", type=int, default=1, help="(default: %(default)s)")
    hosts = parser.add_argument_group("on the hosts")
    hosts.add_argument("--folder", default="~/hcxjax", help="the project's (default: %(default)s)")
    hosts.add_argument("--setup", metavar="COMMAND", help="of a shell, on every host, at every launch and on a new TPU")
    hosts.add_argument("--bucket", metavar="NAME", help="mount it, by gcsfuse, which must be there")
    hosts.add_argument("--mount", metavar="DIR", help="where (default: /mnt/disks/NAME)")
    hosts.add_argument("--container_image", metavar="IMAGE", help="run in it, by docker; --folder is in it, then")
    hosts.add_argument("--ssh_extra", action="append", default=[], metavar="OPTION", help="of ssh: --internal-ip")
    new = parser.add_argument_group("a TPU that is made")
    new.add_argument("--create", action="store_true", help="make it where it is not there, or was taken away")
    new.add_argument("--tpu_type", help="such as v5litepod-256, or v5p beside --topology")
    new.add_argument("--topology", help="such as 4x4x4")
    new.add_argument("--runtime_version", help="of the hosts, such as v2-alpha-tpuv5")
    new.add_argument("--spot", action="store_true", help="cheap, and may be taken away")
    new.add_argument(
        "--extra", action="append", default=[], metavar="OPTION", help="of its creation: --extra=--reserved"
    )
    parser.set_defaults(launch=launch, parser=parser, python="python3")


def launch(training: Training, options: argparse.Namespace) -> int:
    """Starts the run on all hosts, again where that helps, or prints how."""
    options.mount = options.mount or (options.bucket and f"/mnt/disks/{options.bucket}")
    _check(options)
    training.check_shared(options.mount)
    pod = Pod(training, options)
    if options.dry_run:
        for purpose, command in pod.commands():
            print(f"# {purpose}\n{shlex.join(command)}")
        return 0
    return keep_going(pod, policy_of(options))


def _check(options: argparse.Namespace) -> None:
    """ValueError for flags that do not go together."""
    if options.slices < 1:
        raise ValueError(f"--slices is {options.slices}; it must be at least 1")
    if options.mount and not options.bucket:
        raise ValueError("--mount says where --bucket is mounted; name a bucket")
    if options.container_image and options.folder.startswith("~"):
        raise ValueError("--container_image needs --folder=/..., where the project lies in the image")
    for name in ("tpu_type", "runtime_version"):
        if options.create and not getattr(options, name):
            raise ValueError(f"--create needs --{name}")
    for name in ("tpu_type", "topology", "runtime_version", "spot", "extra"):
        if getattr(options, name) and not options.create:
            raise ValueError(f"--{name} describes a TPU that is made; add --create, or leave it out")


class Pod:
    """The run on the hosts of a TPU; a `Start`."""

    def __init__(self, training: Training, options: argparse.Namespace):
        self._training, self._options = training, options
        self._is_set_up = self._was_started = self._stopped = False
        self._running = Command(self._ssh(self._line()), None)

    def run(self) -> int:
        """As `Start.run`. ValueError where there is no TPU, and none is to be made."""
        try:
            self.make_ready()
        except RuntimeError as error:
            say(str(error))
            return AGAIN if self._stopped else 255
        if self._was_started and not self._stopped:
            subprocess.run(self._ssh(self._clearing()), check=False)
        self._was_started = True  # from here on `stop` asks the hosts
        if self._stopped:
            say("it was stopped before the run was started")
            return AGAIN
        status = self._running.run()
        return 255 if status == 1 else 1 if status == _ERROR else status

    def stop(self) -> None:
        """Asks the processes on the hosts to save and end; what waits for a TPU no longer does."""
        self._stopped = True
        if self._was_started:
            subprocess.run(self._ssh(f"sudo pkill -TERM -f {_OURS}"), check=False)

    def step(self) -> int | None:
        """As `Start.step`, by a look at RUN_DIR from the first host."""
        if self._training.run_dir is None:
            return None
        look = self._ssh(self._listing(), everywhere=False)
        found = subprocess.run(look, capture_output=True, text=True, check=False)
        return newest_step(found.stdout.splitlines())

    def make_ready(self) -> None:
        """Returns when the TPU is there and set up.

        Raises:
          ValueError: it is not there, and not to be made.
          RuntimeError: gcloud or the hosts failed, which may pass; or it was stopped.
        """
        while (state := self._state()) not in _READY:
            told = f"TPU {self._options.name} is {state or 'not there'}"
            if not self._options.create:
                raise ValueError(f"{told}; --create makes it")
            say(told)
            self._is_set_up = False
            if state is None:
                self._do(self._creation())
            elif state in _GONE:
                self._do(self._deletion())
            else:
                self._wait()
        if not self._is_set_up:
            for _, line in self._preparation():
                self._do(self._ssh(line))
            self._is_set_up = True

    def commands(self) -> list[tuple[str, list[str]]]:
        """(purpose, command) of all that is run, in its order."""
        made = [("where the TPU is not there", self._creation()), ("where it was taken away", self._deletion())]
        return [
            ("is the TPU there?", self._description()),
            *(made if self._options.create else []),
            *((purpose, self._ssh(line)) for purpose, line in self._preparation()),
            ("the run, on every host", self._ssh(self._line())),
            ("how far is it?", self._ssh(self._listing(), everywhere=False)),
            ("before a restart: what is left on the hosts", self._ssh(self._clearing())),
        ]

    def _line(self) -> str:
        """What every host's shell does."""
        options, training = self._options, self._training
        line = f"({training.shell(options.folder)})"
        if options.container_image:
            variables = [f"--env={name}={value}" for name, value in training.environment.items()]
            disks = [f"--volume={options.mount}:{options.mount}"] if options.mount else []
            docker = ["sudo", "docker", "run", "--rm", "--privileged", "--net=host", *variables, *disks]
            line = shlex.join([*docker, f"--workdir={options.folder}", options.container_image, *training.command()])
        return f"{line}; status=$?; [ $status -eq 1 ] && status={_ERROR}; exit $status"

    def _preparation(self) -> list[tuple[str, str]]:
        """(purpose, line for every host's shell), once for each TPU."""
        options, lines = self._options, []
        if options.bucket:
            place, bucket = shlex.quote(options.mount), shlex.quote(options.bucket)
            # A checkpoint is committed by renaming its folder.
            rights = "-o allow_other --uid=$(id -u) --gid=$(id -g) --implicit-dirs --rename-dir-limit=1000000"
            mounting = f"sudo mkdir -p {place} && sudo gcsfuse {rights} {bucket} {place}"
            lines.append(("the bucket", f"mountpoint -q {place} || ({mounting})"))
        return [*lines, ("set-up", options.setup)] if options.setup else lines

    def _clearing(self) -> str:
        """Ends processes that lost their ssh: they would keep the chips and RUN_DIR."""
        waiting = f"for i in $(seq 60); do pgrep -f {_OURS} > /dev/null || exit 0; sleep 1; done"
        return f"sudo pkill -TERM -f {_OURS}; {waiting}; sudo pkill -KILL -f {_OURS}; true"

    def _listing(self) -> str:
        folder = in_shell(self._training.run_dir or "")
        return f"ls -d {folder}/checkpoints/* {folder}/*/checkpoints/* 2> /dev/null || true"

    def _ssh(self, line: str, everywhere: bool = True) -> list[str]:
        options, which = self._options, "all" if everywhere else "0"
        many = options.slices > 1
        kind = ["alpha", "compute", "tpus", "queued-resources"] if many else ["compute", "tpus", "tpu-vm"]
        # gcloud goes host by host in batches; hosts that wait for each other must all be in one.
        place = [*([f"--node={which}"] if many else []), f"--worker={which}", "--batch-size=all"]
        return ["gcloud", *kind, "ssh", options.name, *self._where(), *place, *options.ssh_extra, f"--command={line}"]

    def _where(self) -> list[str]:
        project = [f"--project={self._options.project}"] if self._options.project else []
        return [f"--zone={self._options.zone}", *project]

    def _queued(self, action: str) -> list[str]:
        return ["gcloud", "compute", "tpus", "queued-resources", action, self._options.name, *self._where()]

    def _description(self) -> list[str]:
        if self._options.create or self._options.slices > 1:
            return [*self._queued("describe"), "--format=value(state.state)"]
        tpu = ["gcloud", "compute", "tpus", "tpu-vm", "describe", self._options.name]
        return [*tpu, *self._where(), "--format=value(state)"]

    def _creation(self) -> list[str]:
        options = self._options
        shape = [f"--accelerator-type={options.tpu_type}"]
        if options.topology:
            shape = [f"--type={options.tpu_type}", f"--topology={options.topology}"]
        nodes = [f"--node-id={options.name}"]
        if options.slices > 1:
            nodes = [f"--node-prefix={options.name}", f"--node-count={options.slices}"]
        more = [*(["--spot"] if options.spot else []), *options.extra]
        return [*self._queued("create"), *nodes, *shape, f"--runtime-version={options.runtime_version}", *more]

    def _deletion(self) -> list[str]:
        return [*self._queued("delete"), "--force", "--quiet"]

    def _state(self) -> str | None:
        """What gcloud calls it; None where there is no such TPU."""
        told = subprocess.run(self._description(), capture_output=True, text=True, check=False)
        if told.returncode and "NOT_FOUND" not in told.stderr:
            raise RuntimeError(f"gcloud does not say how TPU {self._options.name} is: {told.stderr.strip()}")
        return told.stdout.strip() or None

    def _wait(self) -> None:
        until = time.monotonic() + _POLL_S
        while time.monotonic() < until:
            if self._stopped:
                raise RuntimeError("no longer waiting for the TPU")
            time.sleep(min(0.2, _POLL_S))

    def _do(self, command: Sequence[str]) -> None:
        """RuntimeError where it fails, or is no longer wanted."""
        if self._stopped:
            raise RuntimeError(f"stopped before: {shlex.join(command)}")
        say(shlex.join(command))
        done = subprocess.run(command, check=False)
        if done.returncode:
            raise RuntimeError(f"it ended with {done.returncode}: {shlex.join(command)}")
