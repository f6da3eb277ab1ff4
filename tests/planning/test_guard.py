import dataclasses
import functools
import math
import re
from pathlib import Path

import jax
import pytest

from hcxjax import main as main_module
from hcxjax.mesh import Layout
from hcxjax.objectives.language_model import LanguageModel
from hcxjax.optim import AdamW, Cosine, SpikeGuard
from hcxjax.planning import guard
from hcxjax.planning.guard import check_start
from hcxjax.planning.topology import PodLayout
from hcxjax.update import Recipe

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


def test_memory(recipe, tiny, monkeypatch, caplog):
    layout, state = Layout(data=1, fsdp=4, tensor=2), 16 * tiny.parameters / 8  # weights, moments, gradient: float32
    check = functools.partial(check_start, recipe(), layout, SHAPES)
    monkeypatch.setattr(guard, "device_memory", lambda layout: 0.5 * state)
    with pytest.raises(ValueError, match=r"alone take .*Layout\.fsdp is 4, Layout\.tensor 2"):
        check()
    monkeypatch.setattr(guard, "device_memory", lambda layout: 1.5 * state)
    check()
    assert "by arithmetic a device needs" in caplog.text
    caplog.clear()
    monkeypatch.setattr(guard, "device_memory", lambda layout: math.inf)
    check()
    assert not caplog.text


def test_a_run_that_cannot_be_ends_before_its_folder_is_made(tmp_path, capsys):
    tiny_run = Path(__file__).parents[1] / "tiny.gin"
    arguments = [f"--gin_file={tiny_run}", f"--gin.RUN_DIR={tmp_path / 'run'}", "--gin.Layout.data=1"]
    assert main_module.main([*arguments, "--gin.Layout.tensor=8"]) == 1
    assert "Layout.tensor = 8 does not divide" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
