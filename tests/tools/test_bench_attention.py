"""The bench of attention: what counts as useful, that ratios are of times, and a tiny run on a CPU."""

import json

import pytest

from tools import bench_attention
from tools.bench import main, parser
from tools.bench_attention import CUDNN, SDPA, Case


def test_useful_flops_are_those_of_the_documents_causal_pairs():
    whole, packed = Case(6, 4, 0, tokens=12, width=8), Case(64, 4, 10, tokens=128, width=8)
    assert whole.shape == (2, 6, 2, 4)
    assert whole.flops("forward") == 2 * (2 * 2 * 4 * 2) * 21 and whole.flops("backward") == 2.5 * whole.flops(
        "forward"
    )
    sizes = [int((row == number).sum()) for row in packed.segments for number in set(row.tolist())]
    assert sum(sizes) == 128 and len(sizes) > 4
    assert packed.flops("forward") == 4 * 8 * sum(size * (size + 1) / 2 for size in sizes)


@pytest.mark.parametrize("mean", [600, 1500, 4000])
def test_documents_have_the_mean_asked_for(mean):
    case = Case(2**20, 64, mean, tokens=2**20, width=64)
    assert case.segments.max() == pytest.approx(2**20 / mean, rel=0.1)
    assert case.segments[0, 0] == 1 and set(map(int, set(case.segments[0, 1:] - case.segments[0, :-1]))) == {0, 1}


def test_ratios_are_of_times_and_what_failed_is_said(capsys):
    case = Case(64, 16, 0, tokens=128, width=32)
    turns = [{"xla": {"forward": x, "backward": 4.0}, CUDNN: {"error": "no room"}} for x in (1.0, 2.0, 9.0)]
    turns += [{SDPA: {"forward": 6.0, "backward": 4.0}}]
    found = [{"versions": {"jax": "1"}, "cases": {case.name: sides}} for sides in turns]
    bench_attention.show(bench_attention.gathered([case], found))
    said = capsys.readouterr().out
    assert f"| {case.name} | forward | xla | 2000.000 |" in said and "| | 3.00 |" in said
    assert f"| {case.name} | backward | {CUDNN} | no room |" in said


def test_a_tiny_run_gives_numbers(capsys):
    asked = ["attention", "--size", "tiny", "--mean", "20", "--length", "64", "--seconds", "0"]
    (case,) = bench_attention.cases(parser().parse_args(asked))
    assert (case.length, case.head_dim, case.mean) == (64, 16, 20)
    assert main([*asked, "--side", "jax"]) == 0
    found = bench_attention.gathered([case], [json.loads(capsys.readouterr().out)])
    assert found["versions"]["jax platform"] == "cpu"
    measured = found["cases"][case.name]
    assert measured["documents"] == sum(row.max() for row in case.segments)
    assert set(measured["seconds"]) >= {"reference", "xla"}
    assert all(seconds > 0 for passes in measured["seconds"].values() for (seconds,) in passes.values())
