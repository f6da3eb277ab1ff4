"""Compiles for chips that are absent, in a process of its own: libtpu is not loaded beside other tests."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import ROOT

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (pip install 'jax[tpu]')"
)


def run(arguments: list[str], timeout: float) -> str:
    """What a Python process prints. An assertion where it fails; an exception where it takes longer than `timeout`."""
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    path = os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])
    environment |= {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


def plan(folder: Path, *options: str, timeout: float) -> None:
    """`tools.plan`, its page in `folder`."""
    run(["-m", "tools.plan", *options, "--page", str(folder)], timeout)
