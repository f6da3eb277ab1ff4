"""The batch script, read by bash and run with a fake srun."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runs import assert_same_course
from tests.tools.launch.fakes import Fakes, answer
from tools.launch.__main__ import main

ROOT = Path(__file__).resolve().parents[3]
RUN = ["--gin_file=gin/runs/quickstart.gin", "--gin.RATES={'ko': 2, 'en': 1, 'code': 1}"]


def script(capsys, *arguments, run_dir="/shared/my run"):
    assert main(["slurm", *arguments, "--dry_run", "--", *RUN, f"--gin.RUN_DIR={run_dir}"]) == 0
    text = capsys.readouterr().out
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    return text


def directives(text):
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]


def test_one_process_a_gpu_is_asked_for(capsys):
    text = script(
        capsys, "--nodes=4", "--gpus_per_node=8", "--partition=gpu", "--time=2-00:00:00", "--extra=--exclusive"
    )
    assert directives(text) == [
        "--job-name=hcxjax",
        "--output=hcxjax-%j.log",
        "--open-mode=append",
        "--nodes=4",
        "--ntasks-per-node=8",
        "--gpus-per-node=8",
        "--partition=gpu",
        "--time=2-00:00:00",
        "--signal=B:TERM@300",
        "--requeue",
        "--exclusive",
    ]
    assert text.startswith("#!/bin/bash\n#SBATCH")


def test_without_gpus_there_is_one_process_a_node(capsys):
    asked = directives(script(capsys, "--nodes=2", "--gpus_per_node=0", "--cpus_per_task=16", "--save_before_s=60"))
    assert {"--ntasks-per-node=1", "--cpus-per-task=16", "--signal=B:TERM@60"} <= set(asked)
    assert not [directive for directive in asked if "gpus" in directive]


def test_a_container_sees_the_folders_that_are_named(capsys):
    text = script(
        capsys, "--folder=/app", "--container_image=/shared/hcxjax.sqsh", "--container_mounts=/shared:/shared"
    )
    step = text.partition(" -- ")[2]
    assert step.startswith(
        "srun --kill-on-bad-exit=0 --container-image=/shared/hcxjax.sqsh --container-workdir=/app "
        "--container-mounts=/shared:/shared python3 -m hcxjax.main --distributed --gin_file="
    )


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--nodes=0", "--nodes is 0; it must be at least 1"),
        ("--gpus_per_node=-1", "--gpus_per_node is -1; it must be at least 0"),
        ("--container_mounts=/a:/b", "--container_mounts needs --container_image"),
    ],
)
def test_what_cannot_be(capsys, flag, message):
    assert main(["slurm", flag, "--", *RUN]) == 1
    assert message in capsys.readouterr().err


@pytest.fixture
def job(capsys, tmp_path):
    """(fakes, run folder, start): the script as SLURM runs it."""
    fakes, run = Fakes(tmp_path / "bin"), tmp_path / "my run"
    (fakes.folder / "python3").symlink_to(sys.executable)
    text = script(capsys, f"--folder={ROOT}", "--pause_s=0", '--env=SAID=it\'s "so" $HOME', run_dir=run)
    (tmp_path / "job.sh").write_text(text)
    environment = os.environ | {"PATH": fakes.path, "SLURM_JOB_ID": "17"}

    def start():
        streams = {"stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
        return subprocess.Popen(["bash", tmp_path / "job.sh"], env=environment, **streams)

    return fakes, run, start


def test_the_script_goes_on_until_the_run_is_complete(job):
    fakes, run, start = job
    fakes.add("srun", answer((137, "", str(run / "checkpoints" / "4")), 0))
    process = start()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    main_arguments = [*RUN, f"--gin.RUN_DIR={run}"]
    step = ["--kill-on-bad-exit=0", "python3", "-m", "hcxjax.main", "--distributed", *main_arguments]
    assert fakes.calls("srun") == [step, step]
    assert "its checkpoints are at step 4; restart 1 of 20" in said


def test_sigterm_before_the_time_limit_saves_and_goes_back_into_the_queue(job):
    fakes, run, start = job
    fakes.add("srun", answer(("wait", "", str(run / "checkpoints" / "4"))))
    fakes.add("scontrol", answer(0))
    process = start()
    until = time.monotonic() + 30
    while not (fakes.folder / "waiting").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert fakes.calls("scontrol") == [["requeue", "17"]]


def test_variables_reach_the_run_as_they_are_in_the_project_s_folder(job):
    fakes, _, start = job
    fakes.add("srun", answer(0))
    (fakes.folder / "srun").write_text(f'#!/bin/sh\nprintf %s "$SAID" > {fakes.folder}/said\npwd > {fakes.folder}/at\n')
    start().communicate(timeout=60)
    assert (fakes.folder / "said").read_text() == 'it\'s "so" $HOME'
    assert (fakes.folder / "at").read_text() == f"{ROOT}\n"


def test_sbatch_gets_the_script(monkeypatch, tmp_path, capsys):
    fakes = Fakes(tmp_path)
    fakes.add("sbatch", answer(0))
    (tmp_path / "sbatch").write_text(f"#!/bin/sh\ncat > {tmp_path}/got\n")
    monkeypatch.setenv("PATH", fakes.path)
    assert main(["slurm", "--", *RUN, "--gin.RUN_DIR=/shared/my run"]) == 0
    assert (tmp_path / "got").read_text() == capsys.readouterr().out.removesuffix("\n")


SRUN = """\
#!{python}
import os, signal, subprocess, sys, time
from pathlib import Path
at = sys.argv.index({python!r})
tasks = [
    subprocess.Popen(
        sys.argv[at:],
        env=os.environ | {{"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number), "SLURM_NTASKS": "2"}},
    )
    for number in range(2)
]
first = Path({folder!r}) / "first"
if not first.exists():
    first.touch()
    while not Path({checkpoint!r}).exists():
        time.sleep(0.005)
    tasks[1].kill()
ends = [task.wait() for task in tasks]
sys.exit(max(end if end >= 0 else 128 - end for end in ends))
"""


@pytest.mark.slow
def test_a_job_of_two_processes_that_jax_finds_by_itself_loses_one_and_is_complete(whole, compiled, tmp_path, capsys):
    """All is real but srun, which starts both processes on this machine and kills one of them."""
    fakes, run = Fakes(tmp_path / "bin"), tmp_path / "run"
    (fakes.folder / "python3").symlink_to(sys.executable)
    srun = fakes.folder / "srun"
    srun.write_text(SRUN.format(python=sys.executable, folder=str(tmp_path), checkpoint=str(run / "checkpoints" / "4")))
    srun.chmod(0o755)
    wanted = ["--gin_file=tests/tiny.gin", f"--gin.RUN_DIR={run}", f"--gin.DATA_DIR={whole}", "--heartbeat_s=5"]
    arguments = [f"--folder={ROOT}", "--gpus_per_node=0", "--nodes=2", f"--python={sys.executable}", "--pause_s=0"]
    assert main(["slurm", *arguments, "--dry_run", "--", *wanted]) == 0
    (tmp_path / "job.sh").write_text(capsys.readouterr().out)
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost", "PATH": fakes.path}
    done = subprocess.run(
        ["bash", tmp_path / "job.sh"], env=compiled | job, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "process 1 has not been heard of for" in done.stderr
    assert "restart 1 of 20" in done.stderr
    assert_same_course(run, whole, exact=0)
