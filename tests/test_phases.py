"""Runs whose batches change on the way."""

import re

import numpy as np
import pytest

from hcxjax.mesh import Layout
from hcxjax.phases import Phase
from hcxjax.tracking import JsonLines
from tests.runs import ROOT, checkpoints, finish, losses, reached, start, wait_for
from tests.test_train import Fit, Numbers, Told, experiment, told

LONG = (
    f"--gin_file={ROOT / 'gin/stages/long_context.gin'}",
    "--gin.LONG_LENGTH=128",
    "--gin.LONG_BATCH=4",
    "--gin.LONG_ACCUMULATE=2",
    "--gin.LONG_ROPE_THETA=4000.0",
    "--gin.LONG_START=0.75",
    "--gin.LONG_RATES={'ko': 2, 'en': 1, 'code': 1}",
    "--gin.long/Phase.evaluators=()",
)


def second(start=0.5, **changes):
    return Phase(**({"start": start, "objective": Fit(), "source": Numbers()} | changes))


def test_each_phase_takes_its_updates_from_its_own_source(tmp_path):
    sources = [Numbers(), Numbers(), Numbers()]
    phases = (second(0.5, source=sources[1]), second(0.75, source=sources[2]))
    assert experiment(tmp_path, source=sources[0], phases=phases).run()
    assert [source.asked for source in sources] == [[0, 1, 2, 3], [0, 1], [0, 1]]
    assert all(source.closed for source in sources)


def test_evaluators_are_the_phase_s(tmp_path):
    early, late = Told({}, every=2), Told({}, every=3)
    experiment(tmp_path, evaluators=(early,), phases=(second(evaluators=(late,)),)).run()
    assert early.steps == [0, 2, 4]
    assert late.steps == [6, 8]  # 8 is the end


def test_microbatches_are_the_phase_s_and_change_no_number(tmp_path):
    layout = Layout(data=1, tensor=8)
    experiment(tmp_path / "one", layout=layout, phases=(second(),)).run()
    experiment(tmp_path / "two", layout=layout, phases=(second(accumulate=2),)).run()
    np.testing.assert_allclose(
        list(told(tmp_path / "one", "train/loss").values()), list(told(tmp_path / "two", "train/loss").values()), 1e-5
    )


@pytest.mark.parametrize("killed", [3, 4, 6])
def test_a_resume_goes_on_in_its_phase(tmp_path, killed):
    def run(folder, *more):
        source, other = Numbers(), Numbers()
        trackers = (JsonLines(), *more)
        experiment(folder, source=source, save_every=1, trackers=trackers, phases=(second(source=other),)).run()
        return source, other

    run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="cut"):
        run(tmp_path / "cut", Stops(killed))
    source, other = run(tmp_path / "cut")
    assert (source.restored, other.restored) == (min(killed, 4), max(0, killed - 4))
    assert (source.asked, other.asked) == ([*range(killed, 4)], [*range(max(0, killed - 4), 4)])
    assert told(tmp_path / "cut", "train/loss") == told(tmp_path / "whole", "train/loss")


class Stops:
    """A tracker that ends the process's run once update `step` is saved."""

    def __init__(self, step):
        self.step = step

    def start(self, run_dir, first, last):
        pass

    def log(self, step, metrics):
        if step == self.step + 1:
            raise RuntimeError("cut")

    def close(self):
        pass


def test_later_sources_hear_what_the_phases_before_take(tmp_path):
    sources = [Numbers(), Numbers(), Numbers()]
    phases = (second(0.5, source=sources[1]), second(0.75, source=sources[2]))
    experiment(tmp_path, source=sources[0], phases=phases).run()
    assert [source.followed for source in sources] == [[], [(sources[0], 4)], [(sources[0], 4), (sources[1], 2)]]


def test_steps_may_not_move_a_phase_that_has_begun(tmp_path):
    def run(steps, *more):
        experiment(tmp_path, steps=steps, save_every=1, trackers=(JsonLines(), *more), phases=(second(),)).run()

    with pytest.raises(RuntimeError, match="cut"):
        run(8, Stops(2))
    with pytest.raises(RuntimeError, match="cut"):
        run(10, Stops(6))  # at 2 no phase had begun: the second one begins after 5 now
    with pytest.raises(
        ValueError, match=r"phase 1 of the run began after update 5, and would now after 8, but .* at 6"
    ):
        run(16)
    run(10)


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        ((0.0,), "above 0 and below 1"),
        ((1.0,), "above 0 and below 1"),
        ((0.5, 0.5), "must rise"),
        ((0.6, 0.4), r"\[0.6, 0.4\]; Phase.start must rise"),
        ((0.01,), "leaves a phase none; set STEPS higher"),
        ((0.99,), "leaves a phase none"),
    ],
)
def test_impossible_phases_are_named(tmp_path, starts, message):
    with pytest.raises(ValueError, match=message):
        experiment(tmp_path, phases=tuple(second(start) for start in starts))
    with pytest.raises(ValueError, match=r"Phase.accumulate is 0"):
        second(accumulate=0)


def test_the_cpu_twin_of_the_long_run_resumes_across_the_change(whole, compiled, tmp_path):
    """Rows of 64 tokens for 12 updates, of 128 for 4; other batch, rates, rotary base and microbatches."""
    finish(start(tmp_path / "through", whole, compiled, arguments=LONG))
    expected = losses(tmp_path / "through")
    assert [expected[step] for step in range(1, 13)] == [losses(whole)[step] for step in range(1, 13)]
    assert all(expected[step] != losses(whole)[step] for step in range(13, 17))
    run = tmp_path / "cut"
    process = start(run, whole, compiled, arguments=LONG)
    wait_for(reached(run, 10), process)
    process.kill()
    process.wait()
    assert checkpoints(run)[-1] < 12, "to go on before the change"
    finish(start(run, whole, compiled, arguments=LONG))
    assert losses(run) == expected


def test_the_shipped_runs_keep_the_report_s_schedule():
    from hcxjax.main import configure

    holes = {"quickstart_long": [], "pretrain_1b_long": ["CODE=files:src"]}
    for name, bindings in holes.items():
        run, _ = configure([f"gin/runs/{name}.gin"], bindings)
        short, long = run.timeline.phases
        assert long.start == 0.9
        assert long.source.length == 8 * short.source.length
        assert long.source.length * long.source.batch == short.source.length * short.source.batch
        assert long.objective.model.max_length >= long.source.length
        assert long.objective.model.rope_theta > short.objective.model.rope_theta
        assert long.evaluators[0].held_out.length == long.source.length
        assert long.evaluators[0].objective == long.objective
        text = (ROOT / "gin" / "runs" / f"{name}.gin").read_text()
        assert re.search(r"2404.01954", text)
    assert (short.source.length, long.source.length) == (4096, 32768)
