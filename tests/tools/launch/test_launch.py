"""What is launched, where and how: the commands that a dry run prints, and what users get wrong."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tools.launch.__main__ import PLACES, main
from tools.launch.training import environment, in_shell

ROOT = Path(__file__).resolve().parents[3]
RUN = ["--gin_file=gin/runs/quickstart.gin"]
SHARED = [*RUN, "--gin.RUN_DIR=/shared/my run", "--gin.RATES={'ko': 2, 'en': 1, 'code': 1}"]
XPK = ["xpk", "--cluster=pod", "--workload=hcx", "--tpu_type=v5litepod-256", "--container_image=gcr.io/mine/hcxjax:1"]


def printed(capsys, *arguments):
    assert main([*arguments[:-1], "--dry_run", "--", *arguments[-1]]) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments):
    assert main(["slurm", *arguments]) == 1
    return capsys.readouterr().err


def test_help_has_examples_for_every_place(capsys):
    for place in PLACES:
        name = place.__name__.rpartition(".")[2]
        with pytest.raises(SystemExit) as stopped:
            main([name, "--help"])
        assert stopped.value.code == 0
        text = capsys.readouterr().out
        assert f"python -m tools.launch {name}" in text and "--dry_run" in text and "--without_progress" in text


EXAMPLES = [example for place in PLACES for example in re.split(r"\n(?=python)", place.EXAMPLES.strip())]
DOCUMENTED = re.findall(r"```sh\n(python -m tools.launch .*?)\n```", (ROOT / "docs/launching.md").read_text(), re.S)


@pytest.mark.parametrize("example", [*EXAMPLES, *DOCUMENTED])
def test_examples_are_true(capsys, example):
    _, _, module, *arguments = shlex.split(example.replace("\\\n", " ").replace("...", "--gin.CODE=files:code"))
    assert module == "tools.launch"
    at = arguments.index("--")
    assert main([*arguments[:at], "--dry_run", *arguments[at:]]) == 0
    assert "hcxjax.main" in capsys.readouterr().out


def test_a_typo_costs_no_machine(capsys):
    assert "STEP has no effect on this run; did you mean STEPS?" in refused(capsys, "--", *RUN, "--gin.STEP=5")
    assert "no_such.gin" in refused(capsys, "--", "--gin_file=no_such.gin")
    assert "jax finds the processes itself" in refused(capsys, "--", *RUN, "--coordinator=host:1")
    assert "--env is 'DEBUG'; it must be NAME=VALUE" in refused(capsys, "--env=DEBUG", "--", *RUN)
    assert "--max_restarts is -1" in refused(capsys, "--max_restarts=-1", "--", *RUN)


@pytest.mark.parametrize(
    "arguments", [["slurm"], ["slurm", "--"], ["moon", "--", *RUN], ["slurm", "--", "--gin_fil=x"]]
)
def test_wrong_usage_exits_with_2(arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


def test_words_for_a_shell():
    assert environment(["A=b c", "B=x=y"]) == {"A": "b c", "B": "x=y"}
    assert in_shell("~/my project") == "~/'my project'"
    assert in_shell("/my project") == "'/my project'"


def test_here_is_the_plain_command(capsys):
    (line,) = printed(capsys, "here", "--env=XLA_FLAGS=--a --b", SHARED).splitlines()
    command = ["env", "XLA_FLAGS=--a --b", sys.executable, "-m", "hcxjax.main", *SHARED]
    assert shlex.split(line) == command


def test_here_goes_on_until_it_is_complete(tmp_path, capsys):
    """The program of a run, run: it is complete at once, because it has nothing to do."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho $* >> {tmp_path}/calls\ntest $(wc -l < {tmp_path}/calls) -eq 3 || exit 75\n")
    program.chmod(0o755)
    assert main(["here", f"--python={program}", "--pause_s=0", "--", *RUN, f"--gin.RUN_DIR={tmp_path}/run"]) == 0
    assert (tmp_path / "calls").read_text().count("-m hcxjax.main --gin_file=") == 3
    assert "ended with 0 (complete)" in capsys.readouterr().err


def test_xpk_s_command(capsys):
    line = printed(capsys, *XPK, "--slices=2", "--project=mine", "--zone=z", "--env=A=b c", "--max_restarts=7", SHARED)
    *command, last = shlex.split(line)
    assert command[:3] == ["xpk", "workload", "create"]
    assert {
        "--cluster=pod",
        "--workload=hcx",
        "--tpu-type=v5litepod-256",
        "--num-slices=2",
        "--project=mine",
        "--zone=z",
        "--docker-image=gcr.io/mine/hcxjax:1",
        "--max-restarts=7",
        "--restart-on-exit-codes=75",
        "--env=A=b c",
    } <= set(command)
    shell = last.removeprefix("--command=")
    assert shlex.split(shell) == ["exec", "python3", "-m", "hcxjax.main", "--distributed", *SHARED]
    subprocess.run(["bash", "-n", "-c", shell], check=True)


def test_xpk_is_started(monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: ran.append(command) or subprocess.CompletedProcess([], 3)
    )
    assert main([*XPK, "--folder=/app", "--", *SHARED]) == 3
    ((*_, last),) = ran
    assert last.startswith("--command=cd /app && exec python3 -m hcxjax.main --distributed --gin_file")


@pytest.mark.parametrize("place", [XPK, ["tpu", "--name=a", "--zone=b"]])
def test_a_folder_that_is_another_one_on_every_host_is_refused(capsys, place):
    assert main([*place, "--dry_run", "--", *RUN]) == 1
    assert "RUN_DIR is runs/quickstart, which is another folder on every host" in capsys.readouterr().err
    assert main([*place, "--slices=0", "--dry_run", "--", *SHARED]) == 1
    assert "--slices is 0; it must be at least 1" in capsys.readouterr().err
