"""The README's promise: the quickstart learns what an untrained model lacks."""

import json
import subprocess
import sys

import pytest

from tests.runs import ROOT, finish


@pytest.mark.slow
def test_the_quickstart_learns_particles_and_halves_its_bits(compiled, tmp_path):
    command = [sys.executable, "-m", "hcxjax.main", "--gin_file=gin/runs/quickstart.gin", f"--gin.RUN_DIR={tmp_path}"]
    with (tmp_path / "messages").open("w+") as messages:
        finish(subprocess.Popen(command, env=compiled, cwd=ROOT, stderr=messages), seconds=3600)
        messages.seek(0)
        shown = messages.read()
    told = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    measured = [line for line in told if "eval/bits_per_byte" in line]
    before, after = measured[0], measured[-1]
    for name in ("ko", "en", "code"):
        assert after[f"eval/{name}/bits_per_byte"] < before[f"eval/{name}/bits_per_byte"] / 2
    assert before["eval/world/particle/choice"] < 0.7
    assert after["eval/world/particle/choice"] > 0.9
    padding = [line["train/padding"] for line in told if "train/padding" in line]
    assert sum(padding) / len(padding) < 0.02
    (text,) = (tmp_path / "samples").glob("*600.txt")
    assert text.read_text().count("⟦") == 4
    assert "samples at step 600" in shown
