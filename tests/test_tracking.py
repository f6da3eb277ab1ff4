"""Numbers of a run reach their files, and a resumed run does not tell a step twice."""

import json

import pytest

from hcxjax.tracking import Clock, JsonLines, MLflow, TensorBoard, Trace, peak_memory


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_json_lines_drop_what_a_resumed_run_will_tell_again(tmp_path):
    first = JsonLines()
    first.start(tmp_path, 0, 10)
    for step in range(1, 6):
        first.log(step, {"train/loss": 1.0 / step})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "train/lo')
    again = JsonLines()
    again.start(tmp_path, 3, 10)
    again.log(4, {"train/loss": 9.0})
    again.close()
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    assert lines(tmp_path / "metrics.jsonl")[-1]["train/loss"] == 9.0


def test_a_run_that_starts_anew_starts_an_empty_file(tmp_path):
    for _ in range(2):
        tracker = JsonLines()
        tracker.start(tmp_path, 0, 10)
        tracker.log(0, {"eval/x": 1.0})
        tracker.close()
    assert len(lines(tmp_path / "metrics.jsonl")) == 1


def test_what_is_no_number_is_null_because_json_has_no_nan(tmp_path):
    tracker = JsonLines()
    tracker.start(tmp_path, 0, 10)
    tracker.log(1, {"train/loss": float("nan"), "train/grad_norm": float("inf"), "train/weight": 2.0})
    tracker.close()
    (text,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    expected = {"step": 1, "train/loss": None, "train/grad_norm": None, "train/weight": 2.0}
    assert json.loads(text, parse_constant=pytest.fail) == expected


def test_tensorboard_events_can_be_read(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    tracker = TensorBoard()
    tracker.start(tmp_path, 0, 10)
    tracker.log(3, {"train/loss": 2.5})
    tracker.close()
    (path,) = (tmp_path / "tensorboard").glob("events.*")
    content, found = path.read_bytes(), []
    while content:
        size = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + size])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        content = content[16 + size :]
    assert found == [(3, "train/loss", 2.5)]


def test_mlflow_keeps_the_run_and_goes_on_with_it(tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.gin").write_text("STEPS = 10\n")
    for first, step in ((0, 1), (1, 2)):
        tracker = MLflow()
        tracker.start(run_dir, first, 10)
        tracker.log(step, {"train/loss": float(step)})
        tracker.close()
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    history = client.get_metric_history((run_dir / "mlflow_run_id").read_text(), "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 2.0)]


def test_clock_counts_only_updates(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("hcxjax.tracking.time.monotonic", lambda: now[0])
    clock = Clock()
    now[0] = 110.0
    clock.rest()
    now[0] += 30.0
    clock.update_done(tokens=500.0)
    assert clock.metrics(flops=1e9)["speed/goodput"] == 0, "the first update is compilation"
    for _ in range(3):
        now[0] += 2.0
        clock.update_done(tokens=500.0)
    now[0] += 4.0
    metrics = clock.metrics(flops=1e9)
    assert metrics["speed/tokens_per_s"] == 250.0
    assert metrics["speed/step_s"] == 2.0
    assert metrics["speed/goodput"] == pytest.approx(6 / 50)


def test_model_flops_utilisation_is_told_where_the_peak_is_known(monkeypatch):
    monkeypatch.setattr("hcxjax.tracking.peak_flops", lambda: 1e12)
    monkeypatch.setattr("hcxjax.tracking.jax.device_count", lambda: 4)
    now = [0.0]
    monkeypatch.setattr("hcxjax.tracking.time.monotonic", lambda: now[0])
    clock = Clock()
    now[0] = 0.5
    clock.update_done(tokens=1.0)
    assert clock.metrics(flops=1e12)["speed/mfu"] == pytest.approx(0.5)


def test_a_trace_covers_the_updates_it_is_asked_for(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr("hcxjax.tracking.jax.profiler.start_trace", lambda folder: done.append(folder))
    monkeypatch.setattr("hcxjax.tracking.jax.profiler.stop_trace", lambda: done.append("stopped"))
    trace = Trace(tmp_path, (2, 3))
    for step in (1, 2):
        trace.before(step)
        assert not trace.due(step)
    trace.before(3)
    assert trace.due(3)
    trace.stop()
    trace.stop()
    assert done == [str(tmp_path / "profile"), "stopped"]
    resumed = Trace(tmp_path, (2, 3))
    resumed.before(3)
    assert not resumed.due(3), "a run that goes on inside the span traces nothing"


def test_peak_memory_grows_with_what_is_held():
    before = peak_memory()
    held = bytearray(64 << 20)
    held[::4096] = b"x" * len(held[::4096])
    assert peak_memory() >= before
    assert peak_memory() > 64 << 20
