"""Rollouts are shown: in short, listed, as a page and as a picture; also of a run that is still going on."""

import json
import re

import pytest

from tools import show_rollouts
from tools.rollout_files import Written

EPISODES = {
    0: [("ask a", "one one", -1.0, 0.0, 0.5, 2, 7, "ko"), ("ask b", "good", 2.0, 0.1, 0.0, 1, 8, "en")],
    1: [("ask c", "x\x1b[2J<b>", 0.0, 0.2, 0.0, 3, 9, "ko"), ("ask d", "a long answer", 0.5, 0.3, 0.0, 13, 4, "ko")],
    2: [("ask a", "one more", 1.0, 0.4, 0.0, 2, 7, "ko"), ("ask c", "y y y y y", -2.0, 0.9, 0.8, 9, 9, "ko")],
    3: [("ask a", "the best", 3.0, 0.5, 0.1, 5, 7, "ko"), ("ask e", "the worst", -3.0, 0.7, 0.2, 6, 5, "en")],
}
FIELDS = ("prompt", "answer", "score", "kl", "repetition", "length", "number", "source")


@pytest.fixture
def run(tmp_path):
    """Four rollouts of two episodes; of each the metrics of two minibatches; the last line is half written."""
    folder = tmp_path / "ppo"
    (folder / "rollouts").mkdir(parents=True)
    for update, episodes in EPISODES.items():
        lines = [dict(zip(FIELDS, episode, strict=True)) | {"version": max(0, update - 1)} for episode in episodes]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / "rollouts" / f"{update:06d}.jsonl").write_text(text, encoding="utf-8")
    (folder / "rollouts" / "000004.partial").write_text('{"prompt": "un')
    lines = [{"step": 0, "eval/world/reward": 1.0}]
    for update in range(4):
        told = {"objective/score": update / 4, "objective/kl": update / 10, "rollout/length": 5.0 + update}
        lines.append({"step": 2 * update + 1, "train/policy/clipfrac": 0.0, **told})
        lines.append({"step": 2 * update + 2, "train/policy/clipfrac": 0.5 + update})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9, "tra')
    return folder


def shown(capsys, run, *arguments):
    assert show_rollouts.main(["--run", str(run), *arguments]) == 0
    return capsys.readouterr().out


def test_numbers_follow_the_updates(run):
    curves = Written.read(run).curves
    assert curves["score"] == [(0, 0.0), (1, 0.25), (2, 0.5), (3, 0.75)]
    assert curves["clipfrac"] == [(0, 0.25), (1, 0.75), (2, 1.25), (3, 1.75)], "the mean over an update's minibatches"
    assert "entropy" not in curves


def test_in_short(run, capsys):
    said = shown(capsys, run)
    assert "4 rollouts are written down, updates 0 to 3" in said
    assert re.search(r"^update +0 +1 +3$", said, re.M) and re.search(r"^score +0 +0.25 +0.75$", said, re.M)
    again, last = said.split("prompts that came again")[1].split("update 3, the last")
    assert re.findall(r"prompt (\d) of (\w+)", again) == [("7", "ko"), ("9", "ko")], "the longest apart first"
    assert re.findall(r"update (\d): score ([-.\d]+)", again.split("prompt 9")[0]) == [
        ("0", "-1.000"),
        ("2", "1.000"),
        ("3", "3.000"),
    ]
    assert "  best: score 3.000" in last and "  worst, longest, most repetitive: score -3.000" in last
    assert "written before update 2" in last


def test_an_answer_cannot_move_the_cursor_and_is_cut(run, capsys):
    said = shown(capsys, run, "--update", "1", "--cut", "6")
    assert "\x1b" not in said and "│ x␛[2J<… (2 characters more)" in said


@pytest.mark.parametrize(
    ("arguments", "answers"),
    [
        (["--update", "0"], ["good", "one one"]),
        (["--update", "0", "--least"], ["one one", "good"]),
        (["--update", "2", "--sort", "kl"], ["y y y y y", "one more"]),
        (["--sort", "length", "--count", "1"], ["the worst"]),
        (["--sort", "score", "--source", "en"], ["the worst"]),
    ],
)
def test_episodes_are_listed_in_order(run, capsys, arguments, answers):
    assert re.findall(r"^  │ (.*)$", shown(capsys, run, *arguments), re.M) == answers


def test_a_page_is_whole_and_text_stays_text(run, capsys, tmp_path):
    file = tmp_path / "p" / "page.html"
    assert shown(capsys, run, "--html", str(file)).strip() == str(file)
    page = file.read_text(encoding="utf-8")
    assert "&lt;b&gt;" in page and "<b>" not in page.split("<table>")[1]
    assert page.count("<svg") == 4 and page.count("<details") == 4 and page.count("<tr>") == 4 + 8
    assert not re.search(r"https?:|src=|@import", page), "self-contained"
    blue, red = (re.search(rf'rgba\((\d+), \d+, \d+, 0.45\)">{score}<', page) for score in ("3.000", "-3.000"))
    assert (blue and blue[1], red and red[1]) == ("37", "200")


def test_a_picture_is_drawn(run, capsys, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra plots is not installed")
    shown(capsys, run, "--picture", str(tmp_path / "p" / "c.png"))
    assert (tmp_path / "p" / "c.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_metrics_is_shown(run, capsys):
    (run / "metrics.jsonl").unlink()
    assert "tells nothing of rollouts yet" in shown(capsys, run)


def test_what_is_not_there_is_named(run, capsys, tmp_path):
    def complaint(*arguments):
        assert show_rollouts.main(["--run", str(run), *arguments]) == 1
        return capsys.readouterr().err

    assert "update 9 is not written down; 4 are, from 0 to 3" in complaint("--update", "9")
    assert "no episode is of the source 'fr'; there are en, ko" in complaint("--source", "fr")
    assert "--count is 0" in complaint("--count", "0")
    (run / "metrics.jsonl").write_text("{}x\n")
    assert "has a line that is not JSON" in complaint()
    (run / "rollouts" / "000001.jsonl").write_text('{"prompt": 1}\n')
    assert "000001.jsonl is not what a run of PPO writes" in complaint()
    assert show_rollouts.main(["--run", str(tmp_path)]) == 1
    assert "has no rollout: name the RUN_DIR of a PPO run" in capsys.readouterr().err
