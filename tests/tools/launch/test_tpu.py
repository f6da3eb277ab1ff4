"""A TPU by gcloud: the commands, and a fake gcloud that fails, takes the TPU away and gives it back."""

import shlex
import subprocess

import pytest

from tests.tools.launch.fakes import Fakes, answer
from tools.launch import tpu
from tools.launch.__main__ import main
from tools.launch.restarts import AGAIN

RUN = ["--gin_file=gin/runs/quickstart.gin", "--gin.RUN_DIR=/mnt/disks/mine/my run"]
POD = ["tpu", "--name=pod", "--zone=us-east5-b", "--bucket=mine", "--pause_s=0"]
MADE = [*POD, "--create", "--tpu_type=v5litepod-256", "--runtime_version=v2", "--spot"]
LISTED = "/mnt/disks/mine/my run/checkpoints/{}\n"


@pytest.fixture
def gcloud(tmp_path, monkeypatch):
    fakes = Fakes(tmp_path)
    monkeypatch.setenv("PATH", fakes.path)
    monkeypatch.setattr(tpu, "_POLL_S", 0.01)

    def plan(**answers):
        """Of each kind of call the answers, one after the other."""
        words = {"state": ["describe"], "made": ["create"], "deleted": ["delete"], "listed": ["ls -d"]}
        words |= {"cleared": ["pkill -KILL"], "mounted": ["gcsfuse"], "set_up": ["./setup"], "run": ["hcxjax.main"]}
        fakes.add("gcloud", *(answer(*turns, words=words[name]) for name, turns in answers.items()))

    fakes.plan = plan
    return fakes


def commands(capsys, *arguments):
    """purpose → command of a dry run."""
    assert main([*arguments, "--dry_run", "--", *RUN]) == 0
    lines = capsys.readouterr().out.splitlines()
    return {purpose: shlex.split(line) for purpose, line in zip(lines[::2], lines[1::2], strict=True)}


def shell_of(command):
    line = command[-1].removeprefix("--command=")
    subprocess.run(["bash", "-n", "-c", line], check=True)
    return line


def test_a_tpu_that_is_there(capsys):
    printed = commands(capsys, *POD, "--project=mine", "--env=A=b c", "--ssh_extra=--internal-ip")
    assert list(printed) == [
        "# is the TPU there?",
        "# the bucket",
        "# the run, on every host",
        "# how far is it?",
        "# before a restart: what is left on the hosts",
    ]
    where = ["pod", "--zone=us-east5-b", "--project=mine"]
    asked = ["gcloud", "compute", "tpus", "tpu-vm", "describe", *where, "--format=value(state)"]
    assert printed["# is the TPU there?"] == asked
    run = printed["# the run, on every host"]
    ssh = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", *where, "--worker=all", "--batch-size=all", "--internal-ip"]
    assert run[:-1] == ssh
    quoted = shlex.join(["env", "A=b c", "python3", "-m", "hcxjax.main", "--distributed", *RUN])
    ending = "status=$?; [ $status -eq 1 ] && status=65; exit $status"
    assert shell_of(run) == f"(cd ~/hcxjax && exec {quoted}); {ending}"
    for command in list(printed.values())[1:]:
        shell_of(command)
    assert "--worker=0" in printed["# how far is it?"]


def test_slices_that_are_made(capsys):
    shape = ["--tpu_type=v5p", "--topology=4x4x4", "--slices=2", "--extra=--reserved"]
    printed = commands(capsys, *MADE, *shape, "--setup=./setup it")
    queued = ["gcloud", "compute", "tpus", "queued-resources"]
    assert printed["# where the TPU is not there"] == [
        *queued,
        "create",
        "pod",
        "--zone=us-east5-b",
        "--node-prefix=pod",
        "--node-count=2",
        "--type=v5p",
        "--topology=4x4x4",
        "--runtime-version=v2",
        "--spot",
        "--reserved",
    ]
    assert printed["# where it was taken away"][4:] == ["delete", "pod", "--zone=us-east5-b", "--force", "--quiet"]
    run = printed["# the run, on every host"]
    assert run[:7] == ["gcloud", "alpha", *queued[1:], "ssh", "pod"]
    assert {"--node=all", "--worker=all"} <= set(run)
    assert shell_of(printed["# set-up"]) == "./setup it"


def test_in_a_container(capsys):
    line = shell_of(
        commands(capsys, *POD, "--container_image=img", "--folder=/app", "--env=A=b")["# the run, on every host"]
    )
    docker = "sudo docker run --rm --privileged --net=host --env=A=b --volume=/mnt/disks/mine:/mnt/disks/mine"
    assert line.startswith(f"{docker} --workdir=/app img python3 -m hcxjax.main --distributed --gin_file=")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--create"], "--create needs --tpu_type"),
        (["--create", "--tpu_type=v5p"], "--create needs --runtime_version"),
        (["--spot"], "--spot describes a TPU that is made; add --create"),
        (["--mount=/data"], "RUN_DIR is /mnt/disks/mine/my run; with --bucket it must lie below /data (--mount)"),
        (["--bucket=", "--mount=/data"], "--mount says where --bucket is mounted"),
        (["--container_image=img"], "--container_image needs --folder=/..."),
    ],
)
def test_what_cannot_be(capsys, arguments, message):
    assert main([*POD, *arguments, "--dry_run", "--", *RUN]) == 1
    assert message in capsys.readouterr().err


def test_the_run_goes_on_after_failures(gcloud, capsys):
    """A host that died, and gcloud's own failure, which is not the run's."""
    listed = [(0, LISTED.format(4)), (0, LISTED.format(8))]
    gcloud.plan(listed=listed, state=[(0, "READY\n")], cleared=[0], mounted=[0], run=[137, 1, 0])
    assert main([*POD, "--", *RUN]) == 0
    assert len(gcloud.calls("gcloud", "hcxjax.main", "--distributed")) == 3
    assert len(gcloud.calls("gcloud", "pkill -KILL")) == 2, "what is left is ended before each restart"
    assert len(gcloud.calls("gcloud", "gcsfuse")) == 1, "hosts are set up once"
    said = capsys.readouterr().err
    assert "its checkpoints are at step 8; restart 2 of 20" in said
    assert "ended with 255 (ssh lost the machine)" in said


def test_an_error_of_the_run_is_not_started_again(gcloud, capsys):
    gcloud.plan(state=[(0, "READY\n")], mounted=[0], run=[tpu._ERROR])
    assert main([*POD, "--", *RUN]) == 1
    assert len(gcloud.calls("gcloud", "hcxjax.main")) == 1


def test_a_spot_tpu_that_was_taken_away_is_made_anew(gcloud, capsys):
    missing = (1, "", "", "ERROR: NOT_FOUND: Resource not found")
    waiting, active = (0, "WAITING_FOR_RESOURCES\n"), (0, "ACTIVE\n")
    states = [missing, waiting, active, (0, "SUSPENDED\n"), missing, waiting, active]
    gcloud.plan(
        listed=[(0, LISTED.format(4))],
        state=states,
        made=[0],
        deleted=[0],
        cleared=[0],
        mounted=[0],
        set_up=[0],
        run=[255, 0],
    )
    assert main([*MADE, "--setup=./setup", "--", *RUN]) == 0
    kinds = ("create", "delete", "gcsfuse", "./setup", "hcxjax.main --distributed")
    assert [len(gcloud.calls("gcloud", kind)) for kind in kinds] == [2, 1, 2, 2, 2]
    assert "TPU pod is SUSPENDED" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("point", "name", "calls"),
    [
        ("made", "SIGTERM", (1, 0, 0, 0)),
        ("set_up", "SIGTERM", (0, 1, 1, 0)),
        ("set_up", "SIGINT", (0, 1, 1, 0)),
        ("cleared", "SIGINT", (0, 1, 1, 1)),  # before a restart
    ],
)
def test_stopped_on_the_way_to_the_run_nothing_more_is_begun(gcloud, point, name, calls):
    missing, active = (1, "", "", "NOT_FOUND"), (0, "ACTIVE\n")
    answers = {"state": [missing, active] if point == "made" else [active], "made": [0], "mounted": [0], "set_up": [0]}
    answers |= {"run": [137, 0], "listed": [(0, LISTED.format(4))], "cleared": [0]}
    gcloud.plan(**answers | {point: [name]})
    assert main([*MADE, "--setup=./setup", "--", *RUN]) == AGAIN
    kinds = ("create", "gcsfuse", "./setup", "hcxjax.main --distributed")
    assert tuple(len(gcloud.calls("gcloud", kind)) for kind in kinds) == calls


def test_without_create_no_tpu_is_made(gcloud, capsys):
    gcloud.plan(state=[(0, "PREEMPTED\n")])
    assert main([*POD, "--", *RUN]) == 1
    assert "error: TPU pod is PREEMPTED; --create makes it" in capsys.readouterr().err
    assert len(gcloud.calls("gcloud")) == 1


def test_gcloud_that_fails_is_tried_again_and_quoted(gcloud, capsys):
    denied = (1, "", "", "ERROR: PERMISSION_DENIED")
    gcloud.plan(listed=[1], state=[denied])
    assert main([*POD, "--without_progress=1", "--", *RUN]) == 255
    said = capsys.readouterr().err
    assert said.count("PERMISSION_DENIED") == 2
    assert "(--without_progress=1)" in said
