"""The plans of docs/planning.md: four sizes at two lengths, each compiled once for the pod that the search picks.

HCXJAX_UPDATE_GOLDEN=1 writes them anew, where that is meant. A compile takes minutes.
"""

import json
import os

import pytest

from hcxjax.main import configure
from hcxjax.planning.plan import Site, estimate
from hcxjax.planning.pods import Pod
from tests.planning.ahead import needs_libtpu, plan
from tests.runs import ROOT
from tools.plan import step_of

GOLDEN = ROOT / "tests" / "golden" / "plans"
TOKENS = {"seed_0.5b": 11.3e9, "seed_1.5b": 31.7e9, "seed_think_14b": 295e9, "hcx_l_70b": 1.4e12}
"""20 a parameter (Hoffmann et al. 2022, arXiv:2203.15556)."""

PLANS = [(model, length) for length in (4096, 32768) for model in TOKENS]
IDS = [f"{model}-{length}" for model, length in PLANS]


def files(model):
    return [str(ROOT / "gin" / "runs" / "pretrain_pod_long.gin"), str(ROOT / "gin" / "models" / f"{model}.gin")]


def held(model, length):
    return json.loads((GOLDEN / f"{model}_{length}.json").read_text())


def row_of(model, length):
    """Of the table in docs/planning.md."""
    known = held(model, length)
    step, days = known["step"], TOKENS[model] / known["tokens_per_day_bound"]
    mesh = " x ".join(str(step[f"Layout.{axis}"]) for axis in ("pipe", "data", "fsdp", "context", "tensor"))
    memory = f"{known['memory_bytes']['total'] / 1e9:.1f} of {known['memory_limit_bytes'] / 1e9:.1f}"
    return (
        f"| {model} | {length:,} | {known['pod']} | {mesh} | {step['ACCUMULATE']} | {step['DecoderConfig.remat']} "
        f"| {memory} | {known['step_seconds_bound']:.1f} | {known['mfu_bound']:.0%} | {days:.1f} "
        f"| {24 * days * known['chips']:,.0f} |"
    )


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(("model", "length"), PLANS, ids=IDS)
def test_a_shipped_plan_compiles_as_it_is_held(tmp_path, model, length):
    options = [f"--gin_file={file}" for file in files(model)] + [
        "--gin.CODE=files:src",
        f"--phase={int(length > 4096)}",
    ]
    options += ["--topology=v5e", "--topology=v5p", "--topology=v6e", "--search", "--compile=1"]
    plan(tmp_path, *options, f"--tokens={TOKENS[model]}", "--days=30", timeout=3600)
    told = json.loads((tmp_path / "plan.json").read_text())
    golden = GOLDEN / f"{model}_{length}.json"
    if os.environ.get("HCXJAX_UPDATE_GOLDEN"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(json.dumps(told, indent=2) + "\n")
    known = held(model, length)
    assert told["pod"] == known["pod"] and told["step"] == known["step"]
    assert told["uncounted"] == known["uncounted"] and told["moved_leaves"] == []
    assert told["memory_bytes"]["total"] == pytest.approx(known["memory_bytes"]["total"], rel=0.1)
    assert told["device_flops"] == pytest.approx(known["device_flops"], rel=0.01)
    assert told["step_seconds_bound"] == pytest.approx(known["step_seconds_bound"], rel=0.02)
    for axes, kinds in known["collective_bytes"].items():
        assert sum(told["collective_bytes"][axes].values()) == pytest.approx(sum(kinds.values()), rel=0.1, abs=1e7)


@pytest.mark.parametrize(("model", "length"), PLANS, ids=IDS)
def test_the_page_says_what_was_compiled(model, length):
    assert row_of(model, length) in (ROOT / "docs" / "planning.md").read_text()


@pytest.mark.parametrize(("model", "length"), PLANS, ids=IDS)
def test_arithmetic_is_near_what_was_compiled(model, length):
    """Within the margins that docs/planning.md gives."""
    known = held(model, length)
    sizes = [f"{name}={value}" for name, value in known["step"].items() if name not in ("rows", "length")]
    experiment, _ = configure(
        files(model), [*sizes, "CODE=files:src", f"LONG_ACCUMULATE={known['step']['ACCUMULATE']}"]
    )
    step = step_of(experiment, int(length > 4096))
    found = estimate(step, Site.of(step, Pod.parse(known["pod"]))).summary()
    for kind in ("parameters", "optimizer", "batch"):
        assert found["memory_bytes"][kind] == known["memory_bytes"][kind]
    assert found["memory_bytes"]["total"] == pytest.approx(known["memory_bytes"]["total"], rel=0.2)
    assert found["device_flops"] == pytest.approx(known["device_flops"], rel=0.1)
    sent = {
        name: sum(sum(kinds.values()) for kinds in one["collective_bytes"].values())
        for name, one in (("found", found), ("known", known))
    }
    assert sent["found"] == pytest.approx(sent["known"], rel=0.3)
    assert known["memory_bytes"]["total"] < known["memory_limit_bytes"]


@pytest.mark.parametrize("length", [4096, 32768])
def test_14b_fits_on_64_chips(length):
    """The pages of docs/plans, long rows with context parallelism."""
    told = json.loads((ROOT / "docs" / "plans" / f"seed_think_14b_{length}" / "plan.json").read_text())
    assert (told["pod"], told["origin"], told["step"]["length"]) == ("v5p:4x4x4", "compiled", length)
    assert told["memory_bytes"]["total"] < told["memory_limit_bytes"] and told["moved_leaves"] == []
    assert told["step"]["Layout.context"] == (1 if length == 4096 else 2)
