"""The loop, on an objective small enough to see through: fit one number to the mean of a stream of others."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.mesh import Layout
from hcxjax.optim import AdamW, Cosine, SpikeGuard
from hcxjax.protocols import Maximum, Mean
from hcxjax.tracking import JsonLines
from hcxjax.train import Experiment, TrainingError, Watch, train

ROWS = 8


@dataclasses.dataclass(frozen=True)
class Fit:
    """(guess − x)², with a maximum beside it and a way to ask for a skip."""

    def init(self, rng):
        return {"guess": nn.LogicallyPartitioned(jnp.zeros(1), ("embed",))}

    def loss(self, params, batch, rng):
        error_B = params["guess"][0] - batch["x_B"]
        metrics = {"largest": Maximum(jnp.max(batch["x_B"])), "skip/most_x": Maximum(jnp.max(batch["skip_B"]))}
        metrics["loss"] = Mean(jnp.sum(error_B**2), jnp.float32(len(error_B)))
        return jnp.sum(error_B**2), jnp.float32(len(error_B)), metrics

    def flops(self, batch):
        return 1.0


class Numbers:
    """Row r of step s is a function of s and r; some steps are planted."""

    def __init__(self, planted=None, skips=()):
        self.planted, self.skips, self.closed, self.asked, self.restored = planted or {}, skips, False, [], None
        self.followed = []

    def follow(self, before, updates):
        self.followed.append((before, updates))

    def start(self, layout, params):
        self.layout, self.position = layout, 0

    def begin_from(self, folder):
        self.begun_from = folder

    def next(self, params, step):
        self.asked.append(step)
        self.position = step + 1
        x_B = np.float32(3 + np.sin(np.arange(ROWS) + step))
        x_B = np.full(ROWS, self.planted.get(step), np.float32) if step in self.planted else x_B
        rows = {"x_B": x_B, "skip_B": np.full(ROWS, float(step in self.skips), np.float32)}
        return self.layout.shard_batch(lambda a, b: {name: value[a:b] for name, value in rows.items()}, ROWS)

    def measures(self):
        return {"source/asked": float(len(self.asked))}

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = self.restored = int(state["position"])

    def close(self):
        self.closed = True


@dataclasses.dataclass
class Told:
    """An evaluator that says what it was given to say."""

    values: dict[int, float]
    every: int = 2

    def start(self, layout, run_dir):
        self.steps = []

    def evaluate(self, params, step):
        self.steps.append(step)
        return {"eval/x": self.values.get(step, 9.0)}


def experiment(run_dir, **changes) -> Experiment:
    defaults = {
        "run_dir": str(run_dir),
        "steps": 8,
        "seed": 0,
        "objective": Fit(),
        "source": Numbers(),
        "optimizer": AdamW(Cosine(0.1, 100), weight_decay=0.0),
        "layout": Layout(),
        "save_every": 4,
        "trackers": (JsonLines(),),
    }
    return Experiment(**defaults | changes)


def lines(run_dir) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def told(run_dir, name) -> dict[int, float]:
    return {line["step"]: line[name] for line in lines(run_dir) if name in line}


def steps_of(run_dir) -> list[int]:
    return sorted(int(path.name) for path in (run_dir / "checkpoints").iterdir())


def test_it_learns_and_tells_every_step_once(tmp_path):
    source = Numbers()
    assert train(experiment(tmp_path, source=source)) is True
    losses = told(tmp_path, "train/loss")
    assert list(losses) == list(range(1, 9))
    assert losses[8] < losses[1]
    assert source.asked == list(range(8))
    assert source.closed
    assert told(tmp_path, "train/largest")[1] == pytest.approx(3 + np.sin(np.arange(ROWS)).max(), rel=1e-6)


def test_a_finished_run_goes_no_further(tmp_path):
    train(experiment(tmp_path))
    again = Numbers()
    assert train(experiment(tmp_path, source=again)) is True
    assert again.asked == []


def test_a_resumed_run_repeats_a_whole_one(tmp_path):
    train(experiment(tmp_path / "whole", steps=12))
    train(experiment(tmp_path / "parts", steps=4))
    resumed = Numbers()
    train(experiment(tmp_path / "parts", steps=12, source=resumed))
    assert resumed.restored == 4
    assert resumed.asked == list(range(4, 12))
    assert told(tmp_path / "parts", "train/loss") == told(tmp_path / "whole", "train/loss")


def test_evaluators_are_called_before_the_first_update_when_due_and_at_the_end(tmp_path):
    thirds, fourths = Told({}, every=3), Told({}, every=4)
    train(experiment(tmp_path, evaluators=(thirds, fourths)))
    assert thirds.steps == [0, 3, 6, 8]
    assert fourths.steps == [0, 4, 8]
    assert list(told(tmp_path, "eval/x")) == [0, 3, 4, 6, 8]


def test_the_best_checkpoint_stays(tmp_path):
    scores = Told({2: 5.0, 4: 1.0, 6: 3.0, 8: 4.0, 10: 4.0})
    train(experiment(tmp_path, steps=10, save_every=2, evaluators=(scores,), watch=Watch("eval/x")))
    assert steps_of(tmp_path) == [4, 8, 10]


def test_a_new_best_is_saved_when_it_is_measured(tmp_path):
    scores = Told({2: 5.0, 4: 1.0, 6: 3.0, 8: 4.0})
    train(experiment(tmp_path, save_every=100, evaluators=(scores,), watch=Watch("eval/x")))
    assert steps_of(tmp_path) == [4, 8]


def test_patience_ends_the_run_early_and_survives_a_resume(tmp_path):
    values = {2: 5.0, 4: 1.0, 6: 3.0, 8: 4.0, 10: 4.0}
    watch = Watch("eval/x", patience=2)
    options = {"save_every": 2, "evaluators": (Told(values),), "watch": watch}
    train(experiment(tmp_path / "whole", steps=10, **options))
    assert max(told(tmp_path / "whole", "train/loss")) == 8
    train(experiment(tmp_path / "parts", steps=6, **options))
    train(experiment(tmp_path / "parts", steps=10, **options))
    assert max(told(tmp_path / "parts", "train/loss")) == 8
    stopped = Numbers()
    assert train(experiment(tmp_path / "parts", steps=10, source=stopped, **options)) is True
    assert stopped.asked == [], "a run that stopped early stays stopped"


def test_a_watch_that_no_evaluator_feeds_is_named(tmp_path):
    with pytest.raises(ValueError, match="'eval/y'; the evaluators give eval/x"):
        train(experiment(tmp_path, evaluators=(Told({}),), watch=Watch("eval/y")))


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_state(tmp_path):
    with pytest.raises(TrainingError, match=r"step 6: the loss is (nan|inf).*not applied.*LEARNING_RATE"):
        train(experiment(tmp_path, source=Numbers({5: np.inf})))
    assert steps_of(tmp_path) == [4]
    assert train(experiment(tmp_path)) is True, "with the cause gone, the same folder goes on"


def test_spikes_are_skipped_counted_and_in_the_end_too_many(tmp_path):
    guard = SpikeGuard(warmup=3, patience=3)
    train(experiment(tmp_path / "one", spikes=guard, source=Numbers({5: 1e4})))
    assert [told(tmp_path / "one", "train/skipped")[step] for step in (5, 6, 7)] == [0, 1, 1]
    with pytest.raises(TrainingError, match=r"step 8: 3 updates in a row.*patience is 3"):
        train(experiment(tmp_path / "many", spikes=guard, source=Numbers(dict.fromkeys((5, 6, 7), 1e4))))


def test_an_objective_may_ask_to_skip_a_batch_and_what_it_told_is_said(tmp_path, caplog):
    train(experiment(tmp_path, source=Numbers(skips=(2,))))
    (said,) = [record.message for record in caplog.records if "skipped" in record.message]
    assert said.startswith("step 3: the batch was beyond the objective's most_x") and "largest 3" in said
    assert told(tmp_path, "train/skipped")[3] == 1
    assert told(tmp_path, "train/skipped")[8] == 1
    with pytest.raises(TrainingError, match=r"2 updates in a row were skipped, the last was beyond .* most_x"):
        train(experiment(tmp_path / "many", source=Numbers(skips=(2, 3)), spikes=SpikeGuard(patience=2)))


@pytest.mark.parametrize("last", [3, 8])
def test_a_profile_is_written_where_it_is_asked_for(tmp_path, last):
    train(experiment(tmp_path, profile=(2, last)))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    with pytest.raises(ValueError, match=r"profile is \(3, 2\)"):
        experiment(tmp_path, profile=(3, 2))


@pytest.mark.parametrize("field", ["steps", "save_every", "accumulate"])
def test_numbers_that_cannot_be_are_named(tmp_path, field):
    with pytest.raises(ValueError, match=f"Experiment.{field} is 0"):
        experiment(tmp_path, **{field: 0})
    with pytest.raises(ValueError, match=r"Told\.every is 0; it must be a whole number of at least 1"):
        experiment(tmp_path, evaluators=(Told({}, every=0),))


def test_state_lies_on_the_mesh(tmp_path):
    layout = Layout(data=2, fsdp=2, tensor=2)
    train(experiment(tmp_path, layout=layout))
    assert jax.device_count() == 8
    assert list(told(tmp_path, "train/loss")) == list(range(1, 9))


def test_what_the_source_measures_is_told_with_the_update_of_its_batch(tmp_path):
    experiment(tmp_path).run()
    assert told(tmp_path, "source/asked") == {step: float(step) for step in range(1, 9)}
