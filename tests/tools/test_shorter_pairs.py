"""Comparisons against length: which answers of a run's rollouts are compared, and that reward models read them."""

import json

import pytest

from hcxjax.data.preference_forms import Comparison, preference_of
from hcxjax.text.templates import Message
from tools import shorter_pairs

ONE = [Message("user", "one?")]
TWO = [
    Message("system", "be kind"),
    Message("user", "a"),
    Message("assistant", "b"),
    Message("user", "Human: c Assistant:"),
]


def write(folder, *rollouts):
    """RUN_DIR with rollouts of (messages, answer, score, length, stopped)."""
    (folder / "rollouts").mkdir(parents=True)
    for update, answers in enumerate(rollouts):
        lines = [
            {
                "prompt": "<as the model was given it>",
                "messages": [message._asdict() for message in messages],
                "answer": answer,
                "score": score,
                "kl": 0.0,
                "repetition": 0.0,
                "length": length,
                "stopped": stopped,
                "number": 0,
                "source": "chat",
                "version": update,
            }
            for messages, answer, score, length, stopped in answers
        ]
        (folder / "rollouts" / f"{update:06d}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def made(run, *options):
    """(pairs by (chosen, rejected), the file's lines)."""
    output = run / "made" / "pairs.jsonl"
    assert shorter_pairs.main([str(run), "--output", str(output), *options]) == 0
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [path.name for path in output.parent.iterdir()] == ["pairs.jsonl"]
    return [(line["chosen"], line["rejected"]) for line in lines], lines


@pytest.fixture
def run(tmp_path):
    return write(
        tmp_path / "ppo",
        [(ONE, "long", 1.0, 20, True), (TWO, "a longer one", 0.05, 30, True), (ONE, "cut", 1.0, 40, False)],
        [(ONE, "short", 1.02, 8, True), (TWO, "brief", 0.0, 9, True), (ONE, " ", 1.0, 1, True)],
        [(ONE, "worse", -1.0, 5, True), (ONE, "short", 1.02, 8, True), (ONE, "as short", 1.05, 10, True)],
    )


def test_the_shorter_of_two_answers_that_are_worth_the_same_is_chosen(run, capsys):
    # The scores' deviation is 0.70. Nearest in score first.
    pairs, _ = made(run)
    assert pairs == [("short", "long"), ("as short", "long"), ("brief", "a longer one")]
    said = capsys.readouterr().out
    assert "9 answers to 2 prompts; left out: 1 did not end, 1 empty, 1 said before" in said
    assert "not compared: 3 scores differ, 1 about as long\n" in said
    assert "pairs.jsonl: 3 pairs of 2 prompts" in said


@pytest.mark.parametrize(
    ("options", "pairs"),
    [
        (["--tolerance", "0.06"], [("short", "long")]),
        (["--tolerance", "0.08"], [("short", "long"), ("as short", "long"), ("brief", "a longer one")]),
        (["--least_difference", "12"], [("short", "long"), ("brief", "a longer one")]),
        (["--least_difference", "13"], [("brief", "a longer one")]),
        (["--least_difference", "2"], [("short", "long"), ("short", "as short"), ("as short", "long")]),
        (["--most", "1"], [("short", "long"), ("brief", "a longer one")]),
    ],
)
def test_what_is_compared_can_be_set(run, options, pairs):
    assert made(run, *options)[0][: len(pairs)] == pairs
    if "--least_difference" not in options:
        assert len(made(run, *options)[0]) == len(pairs)


def test_reward_models_read_them_after_the_same_messages(run):
    _, lines = made(run)
    for line, messages in zip(lines, (ONE, ONE, TWO), strict=True):
        preference = preference_of(line)
        assert preference.prompt == messages
        assert preference.answers == [line["chosen"], line["rejected"]]
        assert preference.comparisons == [Comparison(0, 1, 0.0)]


def test_more_pairs_of_a_prompt_than_are_asked_for_are_counted(run, capsys):
    made(run, "--most", "1")
    assert "1 more than 1 of a prompt" in capsys.readouterr().out


def test_what_cannot_be_is_said(run, tmp_path, capsys):
    output = tmp_path / "pairs.jsonl"

    def complaint(folder, *options):
        assert shorter_pairs.main([str(folder), "--output", str(output), *options]) == 1
        assert not output.exists()
        return capsys.readouterr().err

    assert "--tolerance is -0.1; it must not be negative" in complaint(run, "--tolerance", "-0.1")
    assert "--least_difference is 0; it must be at least 1" in complaint(run, "--least_difference", "0")
    assert "--most is 0; it must be at least 1" in complaint(run, "--most", "0")
    alone = write(tmp_path / "alone", [(ONE, "long", 1.0, 20, True), (TWO, "short", 1.0, 2, True)])
    assert "there is no pair: write more down (Rollouts.logged)" in complaint(alone)
    assert "has no rollout" in complaint(tmp_path)
    path = alone / "rollouts" / "000000.jsonl"
    path.write_text(path.read_text().replace('"stopped": true, ', ""))
    assert "do not say what was asked" in complaint(alone)
