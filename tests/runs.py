"""Runs in processes of their own, as a user starts them."""

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "tests" / "tiny.gin"
MAIN = ("-m", "hcxjax.main")
STARTED: list[subprocess.Popen] = []


def start(
    run: Path, data: Path, environment: dict[str, str], *bindings: str, arguments=(), program=MAIN, **popen
) -> subprocess.Popen:
    command = [sys.executable, *program, f"--gin_file={TINY}", f"--gin.RUN_DIR={run}"]
    command += [f"--gin.DATA_DIR={data}", *arguments, *[f"--gin.{binding}" for binding in bindings]]
    streams = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True, "cwd": ROOT} | popen
    STARTED.append(subprocess.Popen(command, env=environment, **streams))
    return STARTED[-1]


def end_all() -> None:
    """Ends what a test left running, which waits for peers that are gone, or trains for hours."""
    for process in STARTED:
        if process.poll() is None:
            process.kill()
            process.communicate()
    STARTED.clear()


def together(
    run: Path, data: Path, environment: dict[str, str], processes: int, *bindings: str, arguments=(), last=MAIN
) -> list[subprocess.Popen]:
    """The processes of one run, on this machine; the last may be another program."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    common = (f"--coordinator={address}", f"--processes={processes}", *arguments)
    programs = [*[MAIN] * (processes - 1), last]
    return [
        start(run, data, environment, *bindings, arguments=(*common, f"--process={number}"), program=program)
        for number, program in enumerate(programs)
    ]


def finish(process: subprocess.Popen, expected: int = 0, seconds: float = 240) -> str:
    _, messages = process.communicate(timeout=seconds)
    assert process.returncode == expected, messages
    return messages


def losses(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "train/loss" in line]
    assert len(steps) == len(set(steps)), "a step was told twice"
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def taken(run: Path) -> dict[int, dict[str, float]]:
    """What of the metrics says which rows were taken: equal to the bit wherever the order is."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = ("train/share/", "train/padding", "train/weight")
    return {
        line["step"]: {name: value for name, value in line.items() if name.startswith(names)}
        for line in lines
        if "train/loss" in line
    }


def checkpoints(run: Path) -> list[int]:
    return sorted(int(folder.name) for folder in (run / "checkpoints").iterdir() if folder.name.isdigit())


def back_to(run: Path, step: int) -> None:
    """Takes the checkpoints after `step` away."""
    for later in checkpoints(run):
        if later > step:
            shutil.rmtree(run / "checkpoints" / str(later))


def assert_same_course(run: Path, whole: Path, exact: int = 4) -> None:
    """The same rows; the same losses to `exact`, and to 1e-5 after it, because sums are taken in another order."""
    ours, theirs = losses(run), losses(whole)
    assert taken(run) == taken(whole)
    assert list(ours) == list(theirs)
    assert [ours[step] for step in range(1, exact + 1)] == [theirs[step] for step in range(1, exact + 1)]
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-5)


def wait_for(what, process: subprocess.Popen, seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, f"ended before it was stopped: {process.communicate()[1]}"
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.005)


def reached(run: Path, step: int):
    path = run / "metrics.jsonl"
    return lambda: path.exists() and path.read_bytes().count(b'"train/loss":') >= step
