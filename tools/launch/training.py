"""What is launched: hcxjax.main, whose arguments are looked at here, before machines are rented for them."""

import argparse
import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath


@dataclasses.dataclass(frozen=True)
class Training:
    """A command line of hcxjax.main for every host.

    Attributes:
      arguments: of hcxjax.main.
      run_dir: the folder of the run, or of a list of runs; None where the job has none.
      environment: variables that are set for it.
      python: the interpreter's name on the hosts.
    """

    arguments: tuple[str, ...]
    run_dir: str | None
    environment: Mapping[str, str]
    python: str = "python3"

    def command(self, distributed: bool = True) -> list[str]:
        """The program and its arguments, without the environment."""
        start = [self.python, "-m", "hcxjax.main", *(["--distributed"] if distributed else [])]
        return [*start, *self.arguments]

    def shell(self, folder: str | None) -> str:
        """A line for a host's shell; `exec`, so that signals reach the program.

        Args:
          folder: where the project lies on the hosts; None: where the shell begins. `~` is the user's.
        """
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        line = "exec " + shlex.join([*(["env", *variables] if variables else []), *self.command()])
        return line if folder is None else f"cd {in_shell(folder)} && {line}"

    def check_shared(self, below: str | None = None) -> None:
        """ValueError unless RUN_DIR can be the same folder for all hosts.

        Args:
          below: the folder that they share, if it is known.
        """
        if self.run_dir is None:
            return
        if not self.run_dir.startswith("/"):
            raise ValueError(
                f"RUN_DIR is {self.run_dir}, which is another folder on every host; name an absolute one on a disk "
                "that all of them share: --gin.RUN_DIR=/..."
            )
        if below is not None and not PurePosixPath(self.run_dir).is_relative_to(below):
            raise ValueError(f"RUN_DIR is {self.run_dir}; with --bucket it must lie below {below} (--mount)")


def in_shell(folder: str) -> str:
    """Quoted for a shell, but a `~/` in front still means the home folder."""
    return f"~/{shlex.quote(folder[2:])}" if folder.startswith("~/") else shlex.quote(folder)


def environment(settings: Sequence[str]) -> dict[str, str]:
    """NAME → value of every NAME=VALUE. ValueError names one that is none."""
    for setting in settings:
        if not re.match(r"[A-Za-z_]\w*=", setting):
            raise ValueError(f"--env is {setting!r}; it must be NAME=VALUE")
    return dict(setting.split("=", 1) for setting in settings)


def training_of(arguments: Sequence[str], options: argparse.Namespace) -> Training:
    """What the arguments after `--` start; they are resolved here, as hcxjax.main will.

    Raises:
      ValueError: the configuration cannot be, or the arguments say how processes find each other.
    """
    from hcxjax.main import configure, parse

    parsed, bindings = parse(arguments)
    if parsed.coordinator:
        raise ValueError("--coordinator is for processes that are started by hand; here jax finds the processes itself")
    job, _ = configure(parsed.gin_file, bindings)
    run_dir = getattr(job, "run_dir", None) or getattr(job, "folder", None)
    given = tuple(argument for argument in arguments if argument != "--distributed")
    return Training(given, run_dir, environment(options.env), options.python)
