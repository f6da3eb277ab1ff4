import dataclasses
import json
import re

import jax
import pytest

from hcxjax.planning.compiled import DoesNotFitError
from hcxjax.planning.plan import Site, estimate
from tests.runs import ROOT
from tools.plan import main, parser

RUN = [f"--gin_file={ROOT / 'gin/runs/pretrain_1b.gin'}", "--gin.CODE=files:src", "--gin.BATCH=64"]


@pytest.fixture(autouse=True)
def settings():
    """What the command changes of jax is put back."""
    names = ("jax_platforms", "jax_enable_compilation_cache", "jax_exec_time_optimization_effort")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_arithmetic_opens_no_data_and_writes_a_page(tmp_path, capsys):
    options = ["--topology=v5p:2x2x4", "--arithmetic", "--tokens=21e9", "--page", str(tmp_path / "page")]
    assert main([*RUN, *options]) == 0
    printed = capsys.readouterr().out
    assert "v5p:2x2x4 (16 chips)" in printed and "**Arithmetic**" in printed and "chip-hours" in printed
    page = (tmp_path / "page" / "plan.md").read_text()
    assert "# Plan of" in page and "(memory.svg)" in page and "--topology=v5p:2x2x4" in page
    assert json.loads((tmp_path / "page" / "plan.json").read_text())["step"]["Layout.fsdp"] == 4
    assert {file.name for file in (tmp_path / "page").iterdir()} == {"plan.md", "plan.json", "memory.svg", "time.svg"}


def test_a_search_says_how_to_train_so(capsys):
    assert main([*RUN, "--gin.BATCH=16", "--topology=v5e:4x4", "--topology=v5p:2x2x4", "--search", "--arithmetic"]) == 0
    printed = capsys.readouterr().out
    assert "Picked: v5p:2x2x4" in printed or "Picked: v5e:4x4" in printed
    [command] = re.findall(r"To train so: `(.*)`", printed)
    overrides = [f"--gin.{name}" for name in command.replace("--gin.", "").split()]
    pod = re.search(r"Picked: (\S+)", printed)[1]
    assert main([*RUN, "--gin.BATCH=16", *overrides, f"--topology={pod}", "--arithmetic"]) == 0


def test_what_compiles_and_fills_more_than_the_memory_is_passed_over(monkeypatch, capsys):
    left = fake_compiler(monkeypatch, 40e9, 0.0)
    assert main([*RUN, "--topology=v5e:4x4", "--search", "--compile=1"]) == 0
    told = capsys.readouterr().out.partition("Compiled, the best first")[2]
    assert not left and re.search(r"GB \(.* estimated\), more than the 16\.9 of a device\n- .*at least", told)


def fake_compiler(monkeypatch, *outcomes):
    """Compiles by arithmetic; of each variant in turn, an outcome: bytes of temporaries, or what is raised."""
    left = list(outcomes)

    def compiled(step, pod, devices):
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        plan = estimate(step, Site.of(step, pod))
        return dataclasses.replace(plan, memory=dataclasses.replace(plan.memory, temporaries=outcome))

    monkeypatch.setattr("tools.plan.compiled_plan", compiled)
    monkeypatch.setattr("tools.plan.compile_only_devices", lambda pod, config: [])
    return left


@pytest.mark.parametrize("refused", [ValueError("heads of no one"), DoesNotFitError("does not fit: 20 of 16")])
def test_what_does_not_compile_is_a_line_and_the_next_is_tried(refused, monkeypatch, capsys):
    left = fake_compiler(monkeypatch, refused, 0.0)
    assert main([*RUN, "--topology=v5e:4x4", "--search", "--compile=1"]) == 0
    told = capsys.readouterr().out.partition("Compiled, the best first")[2]
    assert not left and re.search(rf"- --gin.*remat=\w+: {refused}\n- .*at least", told)


def test_where_nothing_compiles_every_reason_is_told(monkeypatch, capsys):
    left = fake_compiler(monkeypatch, *(ValueError(f"reason {number}") for number in range(4)))
    assert main([*RUN, "--topology=v5e:4x4", "--search", "--compile=1"]) == 1
    told = capsys.readouterr().err
    assert len(left) == 1 and all(f"reason {number}" in told for number in range(3))
    assert "none of them compiles and fits" in told


def test_every_option_is_explained():
    page = (ROOT / "docs" / "planning.md").read_text()
    options = [name for action in parser()._actions for name in action.option_strings if name not in ("-h", "--help")]
    assert len(options) > 10 and [name for name in options if not re.search(rf"^\| .*`{name}[`=]", page, re.M)] == []


def test_the_second_phase_of_a_run_is_planned_too(capsys):
    long = [f"--gin_file={ROOT / 'gin/runs/pretrain_1b_long.gin'}", "--gin.CODE=files:src", "--gin.Layout.context=4"]
    assert main([*long, "--topology=v5p:2x2x4", "--arithmetic", "--phase=1"]) == 0
    assert "32 rows of 32,768 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--topology=v9:4x4"], "its chip must be one of v5e"),
        (["--topology=v5e:2x2", "--gin.Layout.fsdp=3", "--arithmetic"], r"is 12 devices, but 4 are present"),
        (["--topology=v5e:4x4", "--phase=1", "--arithmetic"], "--phase is 1; the run has 1, from 0"),
        (["--topology=v5e", "--arithmetic"], "several pods are only compared with --search"),
        (["--topology=v5e:4x4", "--arithmetic", "--gin.BATCH=6"], "BATCH is 6; it must be a positive multiple of 4"),
        (["--topology=H200:1x8"], "--target_config=FILE"),
    ],
)
def test_mistakes(options, message, capsys):
    assert main([*RUN, *options]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_runs_whose_batches_have_several_shapes_are_refused(capsys):
    run = [f"--gin_file={ROOT / 'gin/runs/quickstart_sft.gin'}"]
    assert main([*run, "--topology=v5e:4x4", "--arithmetic"]) == 1
    assert "the batches of Conversations have several shapes" in capsys.readouterr().err
