"""Judges of answers: what they learn, how prompts are drawn, what is paired, and what the report says."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from hcxjax.data.preferences import Preferences
from hcxjax.data.prompts import PromptSet
from hcxjax.data.rollouts.episodes import Episodes
from hcxjax.data.tokenizer import Tokenizer
from hcxjax.inference.requests import Continuation
from hcxjax.mesh import Layout
from tools import judge_answers
from tools.answer_judges import Accuracy, BagOfBigrams, RewardModel
from tools.judge_answers import Gain, Judgement, Point
from tools.policy_checkpoints import ROWS, chosen

SHIPPED = Tokenizer(100_000, "hcxjax-100k")


def episodes(*answers, scores=None):
    """Answers, as token ids, to prompts of one token."""
    made = Episodes.empty(len(answers), 12)
    for row, answer in enumerate(answers):
        made.put(row, [1], Continuation(list(answer), [-1.0] * len(answer)))
    made.score_B[:] = 0 if scores is None else scores
    return made


def test_a_bag_of_bigrams_learns_from_files_and_tells_how_well(tmp_path):
    lines = [
        {"prompt": f"number {n}?", "chosen": f"it is certainly {n}", "rejected": f"who knows about {n}"}
        for n in range(60)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    sources = {"pairs": f"jsonl:{tmp_path}/pairs.jsonl"}
    judge = BagOfBigrams(Preferences(sources, SHIPPED, str(tmp_path), 64, validation_share=0.3), Layout())
    assert judge.accuracy.share == 1 and judge.accuracy.low < 1
    vocabulary = SHIPPED.load(str(tmp_path), lambda: ())
    sure, unsure = (vocabulary.encode(f"{begin} 77") for begin in ("it is surely", "who knows about"))
    gains = judge.gains(episodes(unsure, sure, sure), episodes(sure, unsure, sure), ())
    assert gains[0] == -gains[1] > 0 and gains[2] == 0


@pytest.fixture
def reward():
    """A reward model that scores an answer by its last token, and counts how often it is asked."""

    def scores(batch, last_B):
        asked.append(len(last_B))
        return batch["tokens_BT"][np.arange(len(last_B)), last_B].astype(np.float32)

    def rewards(score_B, sources):
        return score_B * np.where(np.array(sources) == "ko", 0.5, 1.0)

    asked: list[int] = []
    return SimpleNamespace(scores=scores, rewards=rewards, card=SimpleNamespace(accuracy=0.75), asked=asked)


def test_a_reward_model_judges_on_its_card_s_scale_some_rows_at_a_time(reward, tmp_path):
    told = [{"step": step, "eval/preference/low": step / 10, "eval/preference/high": 0.8} for step in (0, 7)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, told)))
    judge = RewardModel(reward, tmp_path, rows=2)
    assert (judge.name, judge.accuracy) == (tmp_path.name, (0.75, 0.7, 0.8))
    before, after = episodes((5,), (5, 5), (5,)), episodes((9,), (5, 3), (5,))
    assert judge.gains(before, after, ["ko", "en", "en"]).tolist() == [2, -2, 0]
    assert reward.asked == [2, 1, 2, 1]
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    assert math.isnan(RewardModel(reward, tmp_path, rows=2).accuracy.low)


def asked(**sources):
    names = [name for name, count in sources.items() for _ in range(count)]
    prompts = [(number,) for number in range(len(names))]
    return PromptSet(prompts, [f"{n}?" for (n,) in prompts], names, [None] * len(names), (2,), None)


def test_prompts_are_drawn_from_each_source_alike():
    prompts = asked(ko=100, en=7)
    numbers = chosen(prompts, 20)
    assert len(numbers) == ROWS and numbers == sorted(set(numbers)) == chosen(prompts, 20)
    numbers = chosen(prompts, 50)
    assert len(numbers) == 3 * ROWS
    assert sum(prompts.sources[number] == "en" for number in numbers) == 7, "what is left over is of the larger source"
    assert max(numbers[:-7]) > 50, "drawn, and not the first ones"
    with pytest.raises(ValueError, match=rf"14 prompts are held out; {ROWS} are needed"):
        chosen(asked(ko=10, en=7), 7)


class Run:
    """A run whose answers get longer and higher, by one at each step."""

    prompts = SimpleNamespace(stop_ids=(2,))
    sources = ("ko", "en", "en", "ko")

    def answers(self, step):
        return episodes(*([4 + step + row] * (1 + step) + [2] * (row < 3) for row in range(4)))

    def kl(self, answers):
        return 0.5 * answers.ends_B

    def lines(self, answers):
        return iter([{"answer": row.tolist()} for row in answers.tokens_BT])


class Longer:
    """Prefers longer answers, but of the last prompt the shorter one."""

    name = "longer"
    accuracy = Accuracy(0.5, 0.4, 0.6)

    def gains(self, before, after, sources):
        return (after.ends_B - before.ends_B) * np.array([1.0, 1.0, 2.0, -1.0])


def test_checkpoints_are_compared_with_the_beginning_prompt_by_prompt(tmp_path):
    first, second = judge_answers.measured(Run(), [Longer()], [0, 3], tmp_path / "kept")
    assert (first.step, first.judged["longer"]) == (0, ((0.5, 0), (0, 0)))
    assert (second.step, second.length, second.stopped) == (3, 4.75, 0.75)
    assert second.kl == pytest.approx(0.5 * 5.75)
    assert second.judged["longer"].share == pytest.approx((0.75, 0.25)), "the deviation of 1, 1, 1, 0 over 2"
    gains = np.array([3.0, 3.0, 6.0, -3.0])
    assert second.judged["longer"].gain == pytest.approx((2.25, np.std(gains, ddof=1) / 2))
    assert len((tmp_path / "kept" / "00000003.jsonl").read_text().splitlines()) == 4


def point(step, share, gain=0.5):
    return Point(step, step / 10, 8.0, 1.0, {"longer": Judgement(Gain(share, 0.01), Gain(gain, 0.02))})


def test_the_report_says_what_early_stopping_picks():
    points = [point(0, 0.5, 0), point(4, 0.6), point(8, 0.7), point(12, 0.4)]
    said = judge_answers.table(points, [Longer()], {0: 0.9, 4: 0.5, 8: 0.2, 12: 0.5}, 64)
    assert "| longer | 0.500 (0.400 to 0.600) |" in said
    assert "64 held-out prompts." in said
    assert "| 8 | 0.800 | 8.0 | 1.000 | 0.200 | 0.700 ± 0.010 | 0.500 ± 0.020 |" in said
    assert "followed best at step 4." in said and "longer: 0.600 there, 0.700 at its peak, step 8." in said
    assert "followed best" not in judge_answers.table(points, [Longer()], {}, 64)


def test_a_curve_is_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="the extra plots is not installed")
    judge_answers.draw([point(0, 0.5), point(4, 0.6)], tmp_path / "a" / "curve.png")
    assert (tmp_path / "a" / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_is_not_of_ppo_is_refused(tmp_path, capsys):
    (tmp_path / "config.gin").write_text("include 'gin/runs/quickstart.gin'\n")
    assert judge_answers.main(["--run", str(tmp_path)]) == 1
    assert f"{tmp_path}/config.gin does not train a whole policy by PPO" in capsys.readouterr().err
    assert judge_answers.main(["--run", str(tmp_path / "none")]) == 1
    assert "judge_answers: " in capsys.readouterr().err
