import dataclasses
import functools
import re
from pathlib import Path

import jax
import pytest

from hcxjax import main as main_module
from hcxjax.mesh import Layout
from hcxjax.objectives.language_model import LanguageModel
from hcxjax.optim import AdamW, Cosine, SpikeGuard
from hcxjax.phases import Phase, Phases
from hcxjax.planning import guard
from hcxjax.planning.guard import check_phases, check_start
from hcxjax.planning.memory import Held, estimated_memory
from hcxjax.planning.step import Step
from hcxjax.planning.topology import PodLayout
from hcxjax.update import Recipe, abstract_state

SHAPES = {"tokens_BT": jax.ShapeDtypeStruct((8, 16), "int32")}


@pytest.fixture(scope="module")
def recipe(tiny):
    def of(**sizes):
        model = LanguageModel(dataclasses.replace(tiny, **sizes))
        return Recipe(model, AdamW(Cosine(1e-3, steps=10, warmup=1)), SpikeGuard(), 1, 0)

    return of


def test_what_fits_is_not_refused(recipe):
    check_start(recipe(), Layout(data=2, fsdp=2, tensor=2), SHAPES)
    check_start(recipe(num_heads=8, num_kv_heads=2), Layout(data=1, tensor=8), SHAPES)
    check_start(recipe(), Layout(data=2, context=4), SHAPES)


@pytest.mark.parametrize(
    ("sizes", "axes", "message"),
    [
        ({}, {"tensor": 8}, r"'heads' of layers/attention/.* is 4, which Layout\.tensor = 8 does not divide"),
        ({"mlp_dim": 42}, {"tensor": 4, "data": 2}, r"'mlp' of layers/mlp/.* is 42, which Layout\.tensor = 4 does not"),
        (
            {"num_heads": 12, "num_kv_heads": 3, "mlp_dim": 40},
            {"tensor": 4, "data": 2},
            r"'kv_heads' of layers/attention/.* is 3, which Layout\.tensor = 4 does not divide, .* no multiple of 3",
        ),
    ],
)
def test_work_that_the_mesh_does_not_divide(recipe, sizes, axes, message):
    with pytest.raises(ValueError, match=message):
        check_start(recipe(**sizes), Layout(**{"data": 1, **axes}), SHAPES)


def test_parameters_that_many_devices_hold_in_copies(recipe, monkeypatch):
    layout = Layout(data=1, fsdp=8)
    check_start(recipe(embed_dim=36), layout, SHAPES)  # of so few bytes nobody minds
    monkeypatch.setattr(guard, "GIB", 1000)
    with pytest.raises(
        ValueError, match=r"at most 5% may be\. The largest: 'embed' of .* is 36, which Layout\.fsdp = 8"
    ):
        check_start(recipe(embed_dim=36), layout, SHAPES)


def test_a_model_that_all_devices_hold_whole_is_warned_of(recipe, monkeypatch, caplog):
    monkeypatch.setattr(guard, "device_memory", lambda layout: None)

    def told(devices, **axes):
        caplog.clear()
        check_start(recipe(vocab_size=64, num_layers=1), PodLayout.over(Layout(**axes), range(devices)), None)
        return caplog.text

    assert not told(64, data=64), "few bytes nobody minds"
    monkeypatch.setattr(guard, "GIB", 1000)
    assert re.search(r"divided over Layout\.data = 16\. Layout\.fsdp \(1\)", told(16, data=16)), "15 of 16 are copies"
    assert re.search(r"copies of what others of 64 devices .* Layout\.data = 32\.", told(64, data=32, fsdp=2))
    assert not told(8, data=8), "7 of 8 are"
    assert not told(64, data=8, fsdp=4, tensor=2)


def test_rows_that_the_context_axis_does_not_divide(recipe):
    shapes = {"tokens_BT": jax.ShapeDtypeStruct((8, 12), "int32")}
    with pytest.raises(ValueError, match=r"LENGTH is 12; it must be a multiple of 8, .*Layout\.context is 4"):
        check_start(recipe(), Layout(data=2, context=4), shapes)


class Rows:
    """A source of packed rows, as far as a start looks at one."""

    def __init__(self, rows, length):
        self._whole = (rows, length)

    def shapes(self):
        names = ("tokens_BT", "targets_BT", "segment_ids_BT", "positions_BT", "weights_BT")
        shapes = {name: jax.ShapeDtypeStruct(self._whole, "int32") for name in names}
        return shapes | {"source_B": jax.ShapeDtypeStruct(self._whole[:1], "int32")}


def test_rows_that_microbatches_and_mesh_do_not_divide(recipe):
    with pytest.raises(ValueError, match=r"BATCH is 8; it must be a positive multiple of 12 \(microbatches 3"):
        check_start(dataclasses.replace(recipe(), accumulate=3), Layout(data=4, tensor=2), SHAPES)


@pytest.mark.parametrize(
    ("rows", "length", "accumulate", "message"),
    [
        (4, 36, 1, r"LENGTH is 36; it must be a multiple of 8, .*Layout\.context is 4"),
        (4, 32, 4, r"BATCH is 4; it must be a positive multiple of 8 \(microbatches 4"),
        (4, 64, 1, r"a row of 64 tokens is longer than .*max_length is 32"),
    ],
)
def test_later_phases_are_looked_at_before_the_first_begins(recipe, rows, length, accumulate, message):
    first, model = recipe(), recipe().objective
    phases = Phases((Phase(0.0, model, Rows(8, 16)), Phase(0.9, model, Rows(rows, length), (), accumulate)), 1000)
    with pytest.raises(ValueError, match=rf"phase 1 of the run .*, from update 901 on: {message}.*LONG_LENGTH"):
        check_phases(
            phases,
            lambda phase: dataclasses.replace(first, accumulate=phase.accumulate),
            Layout(data=2, context=4),
        )


def test_memory(recipe, tiny, monkeypatch, caplog):
    layout, state = Layout(data=1, fsdp=4, tensor=2), 16 * tiny.parameters / 8  # weights, moments, gradient: float32
    check = functools.partial(check_start, recipe(), layout, SHAPES)
    monkeypatch.setattr(guard, "device_memory", lambda layout: 0.5 * state)
    with pytest.raises(ValueError, match=r"alone take .*Layout\.fsdp is 4, Layout\.tensor 2"):
        check()
    held = Held.of(abstract_state(recipe(), layout), layout.abstract_batch(SHAPES))
    step = Step(recipe(), layout, SHAPES)
    total = estimated_memory(step, PodLayout.over(layout, layout.chosen), held).total
    monkeypatch.setattr(guard, "device_memory", lambda layout: 0.99 * total)
    check()
    assert "phase 0: by arithmetic a device needs" in caplog.text
    caplog.clear()
    monkeypatch.setattr(guard, "device_memory", lambda layout: 1.01 * total)
    check()
    assert not caplog.text


@pytest.mark.parametrize(("processes", "limit"), [(1, 60e9), (2, 80e9)])
def test_processes_judge_memory_alike(monkeypatch, processes, limit):
    """Alone by what the device says; several by the table, whether or not the device is one's own."""

    class Device:
        platform, device_kind, process_index = "gpu", "NVIDIA H100 80GB HBM3", 0

        def memory_stats(self):
            return {"bytes_limit": 60e9}

    monkeypatch.setattr(Layout, "chosen", [Device()])
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    for process in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert guard.device_memory(Layout()) == limit


LATER = (
    "--gin_file=gin/stages/long_context.gin",
    "--gin.LONG_LENGTH=72",
    "--gin.LONG_BATCH=8",
    "--gin.LONG_ACCUMULATE=1",
    "--gin.LONG_ROPE_THETA=4000.0",
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gin.Layout.tensor=8"], "Layout.tensor = 8 does not divide"),
        ([*LATER, "--gin.Layout.context=8"], "phase 1 of the run (Experiment.phases), from update 15 on: LENGTH is 72"),
    ],
)
def test_a_run_that_cannot_be_ends_before_its_folder_is_made(tmp_path, capsys, arguments, message):
    tiny_run = Path(__file__).parents[1] / "tiny.gin"
    common = [f"--gin_file={tiny_run}", f"--gin.RUN_DIR={tmp_path / 'run'}", "--gin.Layout.data=1"]
    assert main_module.main([*common, *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
