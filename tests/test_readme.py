"""The README is true: its commands name what exists, and the gate runs its test command."""

import re
from pathlib import Path

import pytest

from hcxjax.main import configure

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_gate_runs_the_readme_s_test_command():
    (command,) = [line for line in README.splitlines() if line.endswith("python -m pytest")]
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\((docs/[\w./]+)\)|(gin/runs/\w+\.gin)", README))))
def test_files_that_it_names_exist(path):
    assert (ROOT / next(part for part in path if part)).exists()


SHOWN = re.findall(r"--gin\.([\w.]+=(?:\"[^\"]+\"|[@\w.()]+))", README.split("## Change")[1].split("## Resume")[0])


@pytest.mark.parametrize("binding", SHOWN)
def test_bindings_that_it_shows_are_understood(binding):
    name, _, value = binding.partition("=")
    configure(["gin/runs/quickstart.gin"], [f"{name}={value.strip(chr(34))}"])
