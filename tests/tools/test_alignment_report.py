"""The report of a chain: paired gains from what the runs have written, and what was not measured is named."""

import json
import math

import pytest

from tools import alignment_report
from tools.alignment_report import PARTS, Chain, Gain

REWARDS = {0: [0.5, 1.0, 0.0, 1.5], 10: [1.0, 1.0, 1.0, 2.0], 20: [1.5, 1.0, 1.0, 2.0]}


@pytest.fixture
def chain(tmp_path):
    """A chain whose policy gains 0.625 in reward by step 20, and whose form is best at step 10."""
    folder = tmp_path / "chain" / "7"
    (folder / "ppo" / "known_reward").mkdir(parents=True)
    (folder / "reward").mkdir()
    for step, rewards in REWARDS.items():
        rest = {part: float(step > 0) for part in PARTS}
        lines = [{**rest, "asked": f"{number}?", "reward": reward} for number, reward in enumerate(rewards)]
        write(folder / "ppo" / "known_reward" / f"{step:08d}.jsonl", lines)
    kl = [{"step": step, "objective/kl": step / 100, "objective/score": 0.0} for step in (1, 10, 20)]
    followed = [{"step": step, "eval/instructions/followed": value} for step, value in ((0, 1.0), (10, 0.9), (20, 0.8))]
    world = [{"step": step, "eval/world/reward": 1.0, "eval/world/length": 9.0} for step in REWARDS]
    write(folder / "ppo" / "metrics.jsonl", [*kl, *followed, *world])
    told = {"accuracy": 0.81, "low": 0.78, "high": 0.84, "floor/margins": 0.9}
    told = [{"step": 5, **{f"eval/preference/{name}": value for name, value in told.items()}}]
    write(folder / "reward" / "metrics.jsonl", [{"step": 0, "eval/preference/accuracy": 0.5}, *told])
    return folder


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_gains_are_paired(chain):
    read = Chain.read(chain, "last")
    assert (read.name, read.prompts, read.step) == ("7", 4, 20)
    assert read.accuracy == (0.81, 0.78, 0.84) and read.bound == 0.9 and read.kl == 0.2
    gain = read.gains["reward"]
    differences = [1.0, 0.0, 1.0, 0.5]
    deviation = math.sqrt(sum((one - 0.625) ** 2 for one in differences) / 3)
    assert (gain.before, gain.after) == (0.75, 1.375)
    assert gain.error == pytest.approx(deviation / 2)
    assert gain.errors == pytest.approx(0.625 / (deviation / 2))
    assert read.gains["truth"] == (0, 1, 0) and read.gains["truth"].errors == math.inf


def test_the_best_measurement_is_the_one_that_follows_instructions_best(chain):
    assert Chain.read(chain, "best").step == 10
    assert Chain.read(chain, "best").kl == 0.1


def test_a_gain_without_spread_is_without_end_and_no_gain_is_none():
    assert Gain(0, -1, 0).errors == -math.inf and Gain(1, 1, 0).errors == 0


def test_the_table_says_who_rose(chain, capsys, tmp_path):
    assert alignment_report.main(["--chain", str(chain), str(chain)]) == 0
    said = capsys.readouterr().out
    assert "| 7 | after SFT | 0.750 | 0.000 |" in said
    assert "| | after PPO, step 20 | 1.375 | 1.000 |" in said
    assert "| | gain | +0.625 ± 0.239 |" in said
    assert "| 7 | 4 | +2.6 standard errors | 0.810 (0.780 to 0.840) | 0.900 | 0.900 | 0.200 |" in said
    assert "more than 3 paired standard errors in 0 of 2 chains" in said
    assert alignment_report.main(["--chain", str(chain), "--output", str(tmp_path / "a" / "r.md")]) == 0
    assert "0 of 1 chains" in (tmp_path / "a" / "r.md").read_text()


def test_a_picture_is_drawn(chain, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the extra plots is not installed")
    assert alignment_report.main(["--chain", str(chain), "--picture", str(tmp_path / "p" / "c.png")]) == 0
    assert (tmp_path / "p" / "c.png").read_bytes().startswith(b"\x89PNG")


def test_what_was_not_measured_is_named(chain, capsys):
    def complaint(*more):
        assert alignment_report.main(["--chain", str(chain), *more]) == 1
        return capsys.readouterr().err

    later = chain / "ppo" / "known_reward" / "00000020.jsonl"
    lines = later.read_text()
    later.write_text(lines.replace('"3?"', '"4?"'))
    assert "other prompts were asked at step 20" in complaint()
    later.unlink()
    (chain / "ppo" / "known_reward" / "00000010.jsonl").unlink()
    assert "has [0]; step 0 and a later one are needed" in complaint()
    later.write_text(lines)
    kept = (chain / "ppo" / "metrics.jsonl").read_text()
    (chain / "ppo" / "metrics.jsonl").write_text(kept.replace("followed", "length"))
    assert "has no eval/instructions/followed" in complaint("--at", "best")
    (chain / "reward" / "metrics.jsonl").write_text("")
    assert "has not told eval/preference/accuracy" in complaint()
    (chain / "reward" / "metrics.jsonl").unlink()
    assert "reward has no metrics.jsonl" in complaint()
