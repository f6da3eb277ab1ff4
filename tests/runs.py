"""Runs in processes of their own, as a user starts them."""

import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "tests" / "tiny.gin"


def start(
    run: Path, data: Path, environment: dict[str, str], *bindings: str, arguments=(), **popen
) -> subprocess.Popen:
    command = [sys.executable, "-m", "hcxjax.main", f"--gin_file={TINY}", f"--gin.RUN_DIR={run}"]
    command += [f"--gin.DATA_DIR={data}", *arguments, *[f"--gin.{binding}" for binding in bindings]]
    streams = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True, "cwd": ROOT} | popen
    return subprocess.Popen(command, env=environment, **streams)


def finish(process: subprocess.Popen, expected: int = 0, seconds: float = 240) -> str:
    _, messages = process.communicate(timeout=seconds)
    assert process.returncode == expected, messages
    return messages


def losses(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "train/loss" in line]
    assert len(steps) == len(set(steps)), "a step was told twice"
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def checkpoints(run: Path) -> list[int]:
    return sorted(int(folder.name) for folder in (run / "checkpoints").iterdir() if folder.name.isdigit())


def wait_for(what, process: subprocess.Popen, seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, f"ended before it was stopped: {process.communicate()[1]}"
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.005)


def reached(run: Path, step: int):
    path = run / "metrics.jsonl"
    return lambda: path.exists() and path.read_bytes().count(b'"train/loss":') >= step
