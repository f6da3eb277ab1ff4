"""What is started again, how often, and when not; with a fake srun that fails as a test tells it."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hcxjax import peers
from tests.tools.launch.fakes import Fakes, answer
from tools.launch.restarts import AGAIN, FINAL, Command, Policy, _Stopping, keep_going, newest_step, say

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def fakes(tmp_path):
    return Fakes(tmp_path / "bin")


def started(fakes, *arguments, **popen):
    command = [sys.executable, "-m", "tools.launch.restarts", "--pause_s=0", *arguments, "--", "srun", "train", "a b"]
    environment = os.environ | {"PATH": fakes.path, "SLURM_JOB_ID": "17"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, **popen)


def ended(fakes, *arguments):
    process = started(fakes, *arguments)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


class Planned:
    """A start that ends with given statuses and steps."""

    def __init__(self, *ends):
        self._ends, self.starts = list(ends), 0

    def run(self):
        self.starts += 1
        status, self._step = self._ends[min(self.starts, len(self._ends)) - 1]
        return status

    def step(self):
        return self._step

    def stop(self):
        raise AssertionError


def test_it_speaks_main_s_exit_statuses():
    assert AGAIN == peers.AGAIN
    assert {0, 1, 2} <= FINAL.keys() and AGAIN not in FINAL


def test_it_fails_three_times_and_is_complete(fakes, tmp_path):
    made = [str(tmp_path / "run" / "checkpoints" / str(step)) for step in (4, 8)]
    fakes.add("srun", answer((137, "", made[0]), (AGAIN, "", made[1]), 134, 0))
    status, said = ended(fakes, f"--run_dir={tmp_path / 'run'}")
    assert status == 0
    assert fakes.calls("srun") == [["train", "a b"]] * 4
    lines = said.splitlines()
    assert "ended with 137 (SIGKILL" in lines[0]
    assert lines[1] == "launch: its checkpoints are at step 4; restart 1 of 20 in 0 s"
    assert "ended with 75 (saved on SIGTERM, or another process was lost)" in lines[2]
    assert lines[3] == "launch: its checkpoints are at step 8; restart 2 of 20 in 0 s"
    assert "SIGABRT" in lines[4]
    assert "ended with 0 (complete)" in lines[6]


@pytest.mark.parametrize("status", [1, 2, 126, 127])
def test_what_another_start_would_meet_again_is_not_started_again(status):
    start = Planned((status, 0))
    assert keep_going(start, Policy(pause_s=0)) == status
    assert start.starts == 1


def test_a_run_that_gets_no_further_is_given_up(capsys):
    start = Planned((137, 4), (137, 8), (137, 8), (137, 8), (137, 4))
    assert keep_going(start, Policy(without_progress=2, pause_s=0)) == 137
    assert start.starts == 5
    assert "3 starts brought no checkpoint after step 8 (--without_progress=2)" in capsys.readouterr().err


def test_restarts_are_bounded_however_far_it_gets(capsys):
    start = Planned(*((137, 4 * step) for step in range(1, 9)))
    assert keep_going(start, Policy(max_restarts=3, pause_s=0)) == 137
    assert start.starts == 4
    assert "there were 3 restarts (--max_restarts)" in capsys.readouterr().err


def test_where_steps_are_not_known_nothing_counts_as_progress():
    start = Planned((137, None))
    keep_going(start, Policy(without_progress=2, pause_s=0))
    assert start.starts == 3


def test_a_signal_s_status_is_that_of_a_shell():
    assert Command(["sh", "-c", "kill -9 $$"], None).run() == 137


def test_pauses_double_where_there_is_no_progress():
    policy = Policy(pause_s=10, longest_pause_s=60)
    assert [policy.pause(stuck) for stuck in range(6)] == [10, 10, 20, 40, 60, 60]


def test_steps_are_read_from_folders_of_one_run_or_of_many():
    assert newest_step([]) == 0
    assert newest_step(["/r/checkpoints/4", "/r/checkpoints/12/", "/r/checkpoints/16.orbax-checkpoint-tmp"]) == 12
    assert (
        newest_step(["/r/sft/checkpoints/8\n", "/r/ppo/checkpoints/3", "/r/ppo/checkpoints/8.corrupt", "ls: no"]) == 11
    )


@pytest.mark.parametrize(("further", "requeued"), [(True, [["requeue", "17"]]), (False, [])])
def test_sigterm_is_passed_on_and_the_job_goes_back_into_the_queue_if_it_got_further(
    fakes, tmp_path, further, requeued
):
    run = tmp_path / "run"
    (run / "checkpoints" / "4").mkdir(parents=True)
    fakes.add("srun", answer(("wait", "", str(run / "checkpoints" / "8") if further else "")))
    fakes.add("scontrol", answer(0))
    (fakes.folder / "scontrol.jsonl").touch()
    process = started(fakes, f"--run_dir={run}", "--requeue")
    until = time.monotonic() + 30
    while not (fakes.folder / "waiting").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == AGAIN
    assert len(fakes.calls("srun")) == 1 and "restart 1" not in said
    assert fakes.calls("scontrol") == requeued
    assert ("not put back into the queue: no checkpoint after step 4" in said) is not further


def test_a_job_that_has_had_its_restarts_does_not_have_as_many_again_from_the_queue(fakes, tmp_path):
    made = [str(tmp_path / "run" / "checkpoints" / str(step)) for step in (4, 8, 12)]
    fakes.add("srun", answer(*((AGAIN, "", step) for step in made)))
    fakes.add("scontrol", answer(0))
    (fakes.folder / "scontrol.jsonl").touch()
    status, said = ended(fakes, f"--run_dir={tmp_path / 'run'}", "--max_restarts=1", "--requeue")
    assert status == AGAIN
    assert "not started again: there were 1 restarts (--max_restarts)" in said
    assert len(fakes.calls("srun")) == 2 and fakes.calls("scontrol") == []


def test_sigterm_in_the_pause_before_a_restart_puts_the_job_back_into_the_queue(fakes, tmp_path):
    """The time limit of the job comes when it comes."""
    fakes.add("srun", answer((137, "", str(tmp_path / "run" / "checkpoints" / "4"))))
    fakes.add("scontrol", answer(0))
    process = started(fakes, f"--run_dir={tmp_path / 'run'}", "--pause_s=600", "--requeue")
    said = iter(process.stderr.readline, "")
    assert any("restart 1 of 20 in 600 s" in line for line in said)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 137
    assert len(fakes.calls("srun")) == 1 and fakes.calls("scontrol") == [["requeue", "17"]]


class Interrupted(io.RawIOBase):
    """A stream in whose midst SIGTERM comes."""

    def writable(self):
        return True

    def write(self, data):
        if not signal.getsignal(signal.SIGTERM).__self__.asked:
            os.kill(os.getpid(), signal.SIGTERM)
        return len(data)


def test_sigterm_while_a_line_is_written_is_heard(monkeypatch):
    ended = []

    class Asked:
        def stop(self):
            ended.append("asked")

    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BufferedWriter(Interrupted())))
    with _Stopping(Asked()) as stopping:
        say("a line")
    assert stopping.asked and ended == ["asked"]


def test_a_second_ctrl_c_ends_it_at_once(fakes):
    fakes.add("srun", answer(("wait",)))
    (fakes.folder / "srun").write_text(
        f"#!{sys.executable}\nimport signal, time\nfrom pathlib import Path\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"Path({str(fakes.folder / 'waiting')!r}).touch()\ntime.sleep(60)\n"
    )
    process = started(fakes)
    while not (fakes.folder / "waiting").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=0.5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--max_restarts=-1",), "--max_restarts is -1; it must be at least 0"), (("--run_dir=x", "y"), "unrecognized")],
)
def test_wrong_usage(fakes, arguments, message):
    status, said = ended(fakes, *arguments)
    assert status == 2
    assert message in said


def test_a_program_that_is_not_there_is_named(tmp_path):
    command = [sys.executable, "-m", "tools.launch.restarts", "--", str(tmp_path / "no such program")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "no such program" in done.stderr


def test_it_needs_nothing_but_python():
    """It runs beside a container, where only Python is."""
    program = "import sys, tools.launch.restarts; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert not {"jax", "numpy", "hcxjax", "orbax"} & set(eval(done.stdout))
