"""Held-out comparisons: the share that is put right, its floors, both orders, and lengths that are alike."""

import logging
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.evaluation.intervals import share_between
from hcxjax.evaluation.pair_accuracy import PairAccuracy, answers_of, compared, swapped
from hcxjax.mesh import Layout


class FirstToken:
    """Rewards an answer by its first token, and leans to the text that stands first; in place of a model."""

    def __init__(self, leaning=0.0):
        self.leaning = leaning

    def rewards(self, params, batch):
        first_BK1 = jnp.take_along_axis(batch["tokens_BKT"], batch["start_B"][:, None, None], axis=2)
        return (params * first_BK1[:, :, 0]).at[:, 0].add(self.leaning)


class Given:
    """Comparisons of two sources whose answers are told: (prompt, chosen, rejected, margin)."""

    def __init__(self, sources, learnt=()):
        self.sources, self.pairs = sources, learnt

    def load(self, layout):
        return {
            name: [self.batch(pairs[at : at + 7]) for at in range(0, len(pairs), 7)]
            for name, pairs in self.sources.items()
        }

    @staticmethod
    def batch(pairs):
        rows = {"tokens_BKT": np.full((8, 2, 16), 77, np.int32), "end_BK": np.zeros((8, 2), np.int32)}
        rows |= {name: np.zeros(8, np.int32) for name in ("start_B", "source_B", "prompt_B")}
        rows |= {name: np.zeros((8, 2, 2), np.float32) for name in ("margin_BKK", "preferred_BKK")}
        for row, (prompt, chosen, rejected, margin) in enumerate(pairs):
            start = 1 + prompt % 3
            for place, answer in enumerate((chosen, rejected)):
                rows["tokens_BKT"][row, place, start : start + len(answer)] = answer
                rows["end_BK"][row, place] = start + len(answer) - 1
            rows["start_B"][row], rows["prompt_B"][row] = start, prompt
            rows["margin_BKK"][row, 0, 1], rows["preferred_BKK"][row, 0, 1] = margin, 1
        return rows

    def learnt(self, most):
        yield from self.pairs[:most]


def measured(given, objective=None, params=1.0, **changes):
    accuracy = PairAccuracy(objective or FirstToken(), given, 10, **({"learnt": 0} | changes))
    layout = Layout()
    with layout.active():
        accuracy.start(layout, "")
        return accuracy.evaluate(jnp.float32(params), 5)


PAIRS = {
    "chat": [(n // 2, [9, *[5] * (n % 4)], [2, 5], 0.5) for n in range(10)],
    "code": [(n, [3, 4], [6, 4], 0.0) for n in range(4)] + [(9, [5] * 10, [5] * 9, 0.0)],
}
RIGHT = np.array([1.0] * 10 + [0.0] * 4 + [0.5])


def test_shares_by_source_with_an_interval_over_prompts(caplog):
    with caplog.at_level(logging.INFO):
        found = measured(Given(PAIRS))
    prompts = [*(n // 2 for n in range(10)), *(100 + n for n in range(5))]
    share, low, high = share_between(RIGHT, np.array(prompts))
    assert found["eval/preference/accuracy"] == pytest.approx(10.5 / 15) == pytest.approx(share)
    assert (found["eval/preference/low"], found["eval/preference/high"]) == pytest.approx((low, high))
    assert found["eval/preference/chat/accuracy"] == 1
    assert found["eval/preference/code/accuracy"] == pytest.approx(0.1)
    assert found["eval/preference/code/low"] == pytest.approx(share_between(RIGHT[10:], np.arange(5))[1])
    assert found["eval/preference/code/floor/shorter"] == pytest.approx(2 / 5)
    assert found["eval/preference/chat/floor/longer"] == pytest.approx(1 - 4.5 / 10)
    differences = np.array([7.0] * 10 + [-3.0] * 4 + [0.0])
    assert found["eval/preference/loss"] == pytest.approx(np.logaddexp(0, -differences).mean(), rel=1e-6)
    assert found["eval/preference/same_in_both_orders"] == 1
    assert "step 5: 0.700 " in caplog.text
    assert (
        "of 15 held-out comparisons of 10 prompts put right; floors: chance 0.500, shorter 0.433, longer 0.567"
        in caplog.text
    )


def test_floors_and_answers_of_like_length():
    found = measured(Given(PAIRS))
    # chat: 1, 2, 3, 4 tokens against 2, in turn; code: 2 against 2, and 10 against 9.
    shorter = (3 * 1 + 3 * 0.5 + 4 * 0 + 4 * 0.5 + 0) / 15
    assert found["eval/preference/floor/chance"] == 0.5
    assert found["eval/preference/floor/shorter"] == pytest.approx(shorter)
    assert found["eval/preference/floor/longer"] == pytest.approx(1 - shorter)
    assert found["eval/preference/like_length/count"] == 3 + 4 + 1
    assert found["eval/preference/like_length/accuracy"] == pytest.approx((3 + 0 + 0.5) / 8)
    assert found["eval/preference/like_length/low"] < 3.5 / 8 < found["eval/preference/like_length/high"]
    assert "eval/preference/floor/margins" not in found
    assert "eval/preference/floor/bigrams" not in found
    apart = measured(Given({"chat": [(0, [1, 2, 3], [4], 0.0), (1, [5] * 9, [6] * 8, 0.0)]}))
    assert apart["eval/preference/like_length/count"] == 0
    assert "eval/preference/like_length/accuracy" not in apart


def test_bigrams_learn_from_what_is_trained_on_and_noise_has_a_bound():
    rng = np.random.default_rng(0)
    learnt = [(np.append(rng.integers(10, 50, 5), [3, 4]), rng.integers(10, 50, 7)) for _ in range(60)]
    pairs = [(n, [8, 3, 4, 8], [8, 8, 3, 8], 1.0 if n < 6 else -1.0) for n in range(8)]
    found = measured(Given({"chat": pairs}, learnt), learnt=60)
    assert found["eval/preference/floor/bigrams"] == 1
    assert found["eval/preference/floor/margins"] == 0.75
    assert found["eval/preference/accuracy"] == 0.5


def test_a_judge_that_leans_to_one_side_is_seen():
    pairs = {"chat": [(n, [5, 6], [4 + n % 3, 6], 0.0) for n in range(9)]}
    assert measured(Given(pairs))["eval/preference/same_in_both_orders"] == 1
    leaning = measured(Given(pairs), FirstToken(leaning=0.5))
    assert leaning["eval/preference/accuracy"] == pytest.approx(6 / 9)
    assert leaning["eval/preference/same_in_both_orders"] == pytest.approx(6 / 9)


def test_swapping_is_its_own_inverse_and_answers_end_where_they_do():
    rows = Given.batch([(1, [3, 4, 5], [6], 0.0)])
    assert [[side.tolist() for side in pair] for pair in answers_of(rows)] == [[[3, 4, 5], [6]]]
    other = swapped(rows)
    assert (other["tokens_BKT"][0, 0, 2], other["tokens_BKT"][0, 1, 2]) == (6, 3)
    assert [[side.tolist() for side in pair] for pair in answers_of(other)] == [[[3, 4, 5], [6]]]
    again = swapped(swapped(rows))
    assert all(np.array_equal(again[name], rows[name]) for name in rows)


def test_texts_that_are_read_once_are_measured_as_each_comparison_by_itself(comparisons, one_by_one):
    """But for what the order does: a judge that leans to the text that stands first is seen in both."""
    batch = comparisons(8, 16, 50, 3, texts=4)
    pairs = {name: np.concatenate([rows, np.zeros_like(rows[:7])]) for name, rows in one_by_one(batch).items()}
    pairs = {name: rows[: len(rows) // 8 * 8] for name, rows in pairs.items()}  # 8 devices
    found, alone = (
        measured(SimpleNamespace(load=lambda layout, rows=rows: {"chat": [rows]})) for rows in (batch, pairs)
    )
    assert found == pytest.approx(alone)
    assert 0 < found["eval/preference/accuracy"] < 1
    assert found["eval/preference/same_in_both_orders"] == 1
    row, chosen, rejected = compared(batch)
    first = batch["tokens_BKT"][row, :, batch["start_B"][row]]
    differences = np.array(
        [one[better] - one[worse] for one, better, worse in zip(first, chosen, rejected, strict=True)]
    )
    leaning = 30.5 * ((chosen == 0) * 1.0 - (rejected == 0)), 30.5 * ((chosen == 3) * 1.0 - (rejected == 3))
    same = np.sign(differences + leaning[0]) == np.sign(differences + leaning[1])
    leans = measured(SimpleNamespace(load=lambda layout: {"chat": [batch]}), FirstToken(leaning=30.5))
    assert leans["eval/preference/same_in_both_orders"] == pytest.approx(same.mean()) != 1
