"""The bench of PPO: both sides are given the same, times are taken where they belong, and a tiny run gives numbers."""

import types

import numpy as np
import pytest

from tools import bench_ppo, bench_ppo_trl, bench_ppo_unlikelihood
from tools.bench import parser
from tools.bench_ppo_case import PAD, STOP, Case

SHAPE = {
    "vocab_size": 300,
    "num_layers": 1,
    "embed_dim": 32,
    "mlp_dim": 32,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 16,
    "max_length": 64,
    "dtype": "float32",
}


def test_prompts_have_all_lengths_and_end_nothing():
    case = Case(SHAPE, episodes=200, prompt_tokens=16)
    assert {len(prompt) for prompt in case.prompts} == set(range(4, 17))
    ids = {token for prompt in case.prompts for token in prompt}
    assert not ids & {PAD, STOP} and max(ids) < 300
    assert case.prompts == Case(SHAPE, episodes=200, prompt_tokens=16).prompts


def test_a_few_prompts_lead_to_long_answers():
    case = Case(SHAPE, episodes=40, long_share=0.05)
    long = [all(token >= case.middle for token in prompt) for prompt in case.prompts]
    assert sum(long) == 2
    assert all(max(prompt) < case.middle for prompt, one in zip(case.prompts, long, strict=True) if not one)
    embed_VD = case.steered(np.zeros((300, 32)))
    assert np.sign(embed_VD[case.middle - 1, 1]) == np.sign(embed_VD[STOP, 1]) == -np.sign(embed_VD[case.middle, 1])


def test_weights_stop_as_often_as_asked():
    rng = np.random.default_rng(0)
    embed_VD, hidden_ND = 0.02 * rng.normal(size=(300, 32)), rng.normal(size=(50, 32))
    hidden_ND[:, 0] = 3.0
    case = Case(SHAPE, mean_tokens=10.0).calibrated(hidden_ND, embed_VD)
    logits_NV = hidden_ND @ case.steered(embed_VD).T / case.temperature
    chances_NV = np.exp(logits_NV - np.logaddexp.reduce(logits_NV, axis=1)[:, None])
    assert chances_NV[:, STOP].mean() == pytest.approx(0.1, rel=1e-3)


def test_a_peers_times_are_taken_where_they_belong(monkeypatch):
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(bench_ppo_trl.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(bench_ppo_trl.time, "process_time", lambda: 2 * clock.now)
    gradients = types.SimpleNamespace(on=False)
    answers = [[5, STOP, PAD, PAD], [5, 5, 5, 5]]

    def works(seconds, given=None):
        clock.now += seconds
        return given

    module = types.SimpleNamespace(
        batch_generation=lambda model, queries: works(3, (np.array([[2, 2, *answer] for answer in answers]), None)),
        forward=lambda: works(1),
    )
    watch = bench_ppo_trl.Watch(module, types.SimpleNamespace(is_grad_enabled=lambda: gradients.on))
    for extra in (100, 0, 0):  # the first rollout is not timed
        gradients.on = False
        module.batch_generation(None, np.zeros((2, 2)))
        module.forward()
        works(extra)
        gradients.on = True
        for _ in range(4):
            module.forward()
    found = watch.measures(Case(SHAPE, episodes=2, warm=1, rollouts=2), clock.now)
    assert (found["generate_s"], found["score_s"], found["train_s"]) == (3, 1, 4)
    assert found["episodes_per_s"] == 2 / 8 and found["tokens_per_s"] == 6 / 8 and found["cores"] == 2
    assert (found["length"], found["stop_rate"]) == (3, 0.5)


def test_ratios_are_over_the_side_that_is_named(capsys):
    measures = [name for name, _ in bench_ppo.COLUMNS.values()]
    sides = {"hcxjax": (2.0, 6.0, 8.0), "trl": (1.0, 2.0, 9.0)}
    results = {
        side: [dict.fromkeys(measures, 0.5) | {"episodes_per_s": speed} for speed in speeds]
        for side, speeds in sides.items()
    }
    bench_ppo.show(results, against="trl")
    assert "| hcxjax | 6.0 | **3.00** |" in (said := capsys.readouterr().out) and "| trl | 2.0 | **1.00** |" in said


def test_pairs_take_turns(monkeypatch):
    calls = []
    found = bench_ppo_unlikelihood.pairs(lambda: calls.append("a"), lambda: calls.append("b"), 3)
    assert "".join(calls) == "ab" + "aaabbb" + "bbbaaa" + "aaabbb"
    assert len(found) == 3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    case = Case(SHAPE, episodes=4, prompt_tokens=8, new_tokens=8, mean_tokens=4.0, epochs=2, warm=0, rollouts=1)
    return bench_ppo.prepared(case, folder), folder


def test_a_tiny_run_gives_numbers(tiny):
    case, folder = tiny
    found = bench_ppo.side("hcxjax", folder)
    assert set(found) >= {name for name, _ in bench_ppo.COLUMNS.values()} | {"engine_cores", "other_cores"}
    assert 1 <= found["length"] <= case.new_tokens and found["episodes_per_s"] > 0 and Case.read(folder) == case


@pytest.mark.slow
def test_unlikelihood_costs_next_to_nothing(tiny, capsys, monkeypatch):
    monkeypatch.setattr(bench_ppo_unlikelihood, "PAIRS", 2)
    found = bench_ppo_unlikelihood.unlikelihood(*tiny)
    assert 0 < found["flops_share"] < 0.2
    assert f"{found['flops_share']:.3%}" in capsys.readouterr().out


def test_what_is_asked_becomes_a_case():
    options = parser().parse_args(["ppo", "--asynchronous", "--shape", "num_layers=2", "--episodes", "8"])
    case = bench_ppo.asked(options)
    assert case.shape["num_layers"] == 2 and case.episodes == 8 and (case.new_tokens, case.long_share) == (240, 0.05)
