"""Rollouts written down: every episode a line, with the messages that were asked and whether the answer stopped."""

import json

import numpy as np

from hcxjax.data.prompts import PromptSet
from hcxjax.data.rollouts.episodes import Episodes
from hcxjax.data.rollouts.lessons import Judged, Lessons
from hcxjax.data.rollouts.log import RolloutLog
from hcxjax.inference.requests import Continuation
from hcxjax.text.templates import Message
from tests.data.rollouts.parts import STOP, Words

ASKED = [
    [Message("user", "one?")],
    [Message("user", "two?"), Message("assistant", "yes"), Message("user", "which?")],
]


class Marked(Words):
    """Stop tokens are specials."""

    def decode(self, ids, *, specials=False):
        return " ".join("<stop>" if token == STOP else str(token) for token in ids if token != STOP or specials)


PROMPTS = PromptSet([(3,), (4, STOP, 5)], ASKED, ["a", "b"], [None, None], (STOP,), Marked())
ANSWERS = {1: (7, 7, 7, 7, 7, 7), 0: (7, 8, STOP)}
"""By the number of the prompt: one that was cut off, one that stopped."""
WIDTH = 10


def written(folder, episodes):
    rollout = Episodes.empty(len(ANSWERS), WIDTH)
    for row, (number, tokens) in enumerate(ANSWERS.items()):
        rollout.put(row, PROMPTS.tokens[number], Continuation(list(tokens), [-1.0] * len(tokens)))
        rollout.prompt_B[row], rollout.score_B[row], rollout.version_B[row] = number, row - 0.5, 2
    nothing_BT = np.zeros((len(ANSWERS), WIDTH), np.float32)
    rollout.tokens_BT[:, -1], rollout.reference_BT[:] = 9, -0.25  # nothing of the padding may be shown
    lesson, _ = Lessons().learn(rollout, Judged(nothing_BT, nothing_BT, nothing_BT), PROMPTS.stop_ids, 3, 0.1)
    RolloutLog(str(folder), episodes, PROMPTS).write(3, rollout, lesson)
    return [json.loads(line) for line in (folder / "rollouts" / "000003.jsonl").read_text().splitlines()]


def test_an_episode_is_a_line(tmp_path):
    cut, stopped = written(tmp_path, 2)
    np.testing.assert_allclose(cut.pop("repetition"), 1 - 1 / 3, atol=1e-6)
    assert cut == {
        "prompt": "4 <stop> 5",
        "messages": [message._asdict() for message in ASKED[1]],
        "answer": "7 7 7 7 7 7",
        "score": -0.5,
        "kl": 1.5,
        "length": 6,
        "stopped": False,
        "number": 1,
        "source": "b",
        "version": 2,
    }
    assert stopped["messages"] == [{"role": "user", "content": "one?"}]
    told = [stopped[name] for name in ("prompt", "answer", "stopped", "source", "length", "kl")]
    assert told == ["3", "7 8", True, "a", 3, 0.75]


def test_the_first_episodes_alone_are_written(tmp_path):
    (line,) = written(tmp_path, 1)
    assert line["number"] == 1
