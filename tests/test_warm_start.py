"""First parameters from other checkpoints: what is taken, what starts anew, what is refused, and when it is read."""

import dataclasses
import logging
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.checkpoint import CheckpointError, CheckpointFolder, KeepPolicy
from hcxjax.data import kept_tokenizer
from hcxjax.mesh import Layout
from hcxjax.train import train
from hcxjax.update import abstract_state, initial_state
from hcxjax.warm_start import Origin, by_path
from tests.test_train import Fit, Numbers, experiment, steps_of, told


@dataclasses.dataclass(frozen=True)
class Parts(Fit):
    """Fit, with a matrix of a body and a head that add to the guess; drawn at random, so that what is taken shows."""

    width: int = 8
    dtype: str = "float32"
    heads: tuple[str, ...] = ("head",)

    def init(self, rng):
        def drawn(number, *shape):
            values = jax.random.normal(jax.random.fold_in(rng, number), shape, self.dtype)
            return nn.LogicallyPartitioned(values, ("embed", "mlp")[: len(shape)])

        heads = {name: drawn(1 + number, self.width) for number, name in enumerate(self.heads)}
        return {"body": {"inner": drawn(0, self.width, 8)}, **heads}

    def loss(self, params, batch, rng):
        guess = sum(jnp.mean(leaf) for leaf in jax.tree.leaves(params))
        return super().loss({"guess": guess[None]}, batch, rng)


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A run of Parts that has checkpoints of steps 4 and 8."""
    folder = tmp_path_factory.mktemp("origin")
    train(parts(folder))
    return folder


def parts(folder, **changes):
    return experiment(folder, **{"objective": Parts(), "trackers": ()} | changes)


def stored(folder, step):
    """Parameters of a checkpoint by path, whole and on the host."""
    template = jax.eval_shape(lambda: nn.unbox(Parts().init(jax.random.key(0))))
    template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=ONE), template)
    reader = CheckpointFolder(folder / "checkpoints", KeepPolicy(), read_only=True)
    tree = reader.restore(step, {"state": {"params": template}}, partial=True)
    return {name: np.asarray(leaf) for name, leaf in by_path(tree["state"]["params"]).items()}


ONE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def first(folder, **changes):
    """Parameters before the first update of a run, and after one of learning rate next to nothing."""
    kept = {}

    class Eyes:
        every = 100

        def start(self, layout, run_dir):
            pass

        def evaluate(self, params, step):
            kept.setdefault("params", {name: np.asarray(leaf) for name, leaf in by_path(params).items()})
            return {}

    train(parts(folder, **{"steps": 1, "evaluators": (Eyes(),)} | changes))
    return kept["params"]


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[name], err_msg=name)


def test_a_run_starts_from_the_newest_checkpoint_of_another_or_from_the_one_that_is_named(origin, tmp_path):
    newest, older = stored(origin, 8), stored(origin, 4)
    assert any((newest[name] != older[name]).any() for name in newest)
    assert_equal(first(tmp_path / "newest", init_from=str(origin), seed=5), newest)
    assert_equal(first(tmp_path / "older", init_from=f"{origin}@4", seed=5), older)


def test_only_parameters_are_taken(origin, tmp_path):
    """The optimizer, its schedule and the source begin at 0."""
    source = Numbers()
    train(parts(tmp_path, init_from=str(origin), source=source, steps=2, trackers=experiment(tmp_path).trackers))
    assert source.asked == [0, 1]
    rates = told(tmp_path, "train/learning_rate")
    assert list(rates) == [1, 2]
    assert rates[1] == pytest.approx(0.1)


def test_parameters_land_on_another_mesh(origin, tmp_path):
    layout = Layout(data=2, fsdp=2, tensor=2)
    seen = {}

    class Eyes(Numbers):
        def next(self, params, step):
            seen.setdefault("inner", params["body"]["inner"].sharding.spec)
            return super().next(params, step)

    assert_equal(first(tmp_path, init_from=str(origin), layout=layout, source=Eyes()), stored(origin, 8))
    assert seen["inner"] == jax.sharding.PartitionSpec("fsdp", "tensor")


def test_fresh_leaves_are_drawn_as_without_a_warm_start(origin, tmp_path):
    drawn = first(tmp_path / "drawn", seed=5)
    mixed = first(tmp_path / "mixed", seed=5, init_from=str(origin), fresh=("head",))
    np.testing.assert_array_equal(mixed["head"], drawn["head"])
    np.testing.assert_array_equal(mixed["body/inner"], stored(origin, 8)["body/inner"])


def test_each_prefix_has_its_folder(origin, tmp_path):
    """What follows the prefix is the path there."""
    train(parts(tmp_path / "other", seed=3))

    @dataclasses.dataclass(frozen=True)
    class Twice(Parts):
        def init(self, rng):
            return {"one": super().init(rng), "two": super().init(rng)}

    init_from = {"one": str(origin), "two/": f"{tmp_path / 'other'}@4"}
    both = first(tmp_path / "both", objective=Twice(), init_from=init_from)
    assert_equal({n.removeprefix("one/"): leaf for n, leaf in both.items() if "one" in n}, stored(origin, 8))
    assert_equal(
        {n.removeprefix("two/"): leaf for n, leaf in both.items() if "two" in n}, stored(tmp_path / "other", 4)
    )


def test_a_killed_and_resumed_run_reads_its_origin_once(origin, tmp_path):
    trackers = experiment(tmp_path).trackers
    copy = tmp_path / "copy"
    shutil.copytree(origin, copy)
    train(parts(tmp_path / "whole", init_from=str(copy), steps=8, trackers=trackers))
    train(parts(tmp_path / "parts", init_from=str(copy), steps=4, trackers=trackers))
    shutil.rmtree(copy)
    train(parts(tmp_path / "parts", init_from=str(copy), steps=8, trackers=trackers))
    losses = told(tmp_path / "whole", "train/loss")
    assert told(tmp_path / "parts", "train/loss") == losses
    train(parts(tmp_path / "cold", steps=8, trackers=trackers))
    assert told(tmp_path / "cold", "train/loss")[1] != losses[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": Parts(width=4)}, r"body/inner has shape \(8, 8\) in checkpoint 8 of .*, \(4, 8\) here"),
        ({"objective": Parts(dtype="bfloat16")}, r"body/inner is float32 in checkpoint 8 of .*, bfloat16 here"),
        ({"objective": Parts(heads=("head", "more"))}, r"more is missing in .* Experiment\.fresh"),
        ({"objective": Parts(heads=())}, r"head of checkpoint 8 .* is not in this run's model"),
        ({"fresh": ("haed",)}, r"Experiment\.fresh names 'haed', but the parameters are body, head"),
        ({"init_from": "ORIGIN@5"}, r"no checkpoint of step 5 .* steps \[4, 8\]"),
        ({"init_from": "ORIGIN/nothing"}, r"nothing has no checkpoint to start from.*INIT_FROM"),
        ({"init_from": {"body": "ORIGIN"}}, "head comes from nowhere"),
        ({"init_from": {"bdoy": "ORIGIN"}}, "init_from names 'bdoy'"),
    ],
)
def test_what_does_not_fit_is_named(origin, tmp_path, changes, message):
    changes = {"init_from": "ORIGIN"} | changes
    named = changes["init_from"]
    if isinstance(named, str):
        changes["init_from"] = named.replace("ORIGIN", str(origin))
    else:
        changes["init_from"] = {prefix: str(origin) for prefix in named}
    with pytest.raises(ValueError, match=message):
        train(parts(tmp_path, **changes))
    assert steps_of(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": ""}, "Experiment.init_from is ''; it must name a folder .*model.gin"),
        ({"init_from": {}}, "Experiment.init_from is {}"),
        ({"init_from": 3}, "Experiment.init_from is 3"),
        ({"init_from": "x", "fresh": "head"}, "Experiment.fresh is 'head'; it must be a tuple"),
        ({"fresh": ("head",)}, r"Experiment.fresh is \('head',\), but all parameters start anew"),
    ],
)
def test_fields_that_cannot_be_are_refused_at_once(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        parts(tmp_path, **changes)


@pytest.mark.parametrize(("file", "message"), [("tree/_sharding", "cannot be read"), ("tree/_METADATA", "is damaged")])
def test_a_damaged_origin_is_refused(origin, tmp_path, file, message):
    copy = tmp_path / "copy"
    shutil.copytree(origin, copy)
    damaged = sorted((copy / "checkpoints" / "8").glob(file))[0]
    damaged.write_bytes(b" " + damaged.read_bytes() if "damaged" in message else b"{")
    with pytest.raises(CheckpointError, match=f"checkpoint 8 .*{message}"):
        train(parts(tmp_path / "run", init_from=str(copy)))


def test_a_folder_may_be_called_what_looks_like_a_step(tmp_path):
    (tmp_path / "run@3").mkdir()
    assert Origin.parse(f"{tmp_path}/run@3") == Origin(f"{tmp_path}/run@3")
    assert Origin.parse(f"{tmp_path}/run@3@4") == Origin(f"{tmp_path}/run@3", 4)


class Words:
    """As much of a vocabulary as a comparison needs."""

    def __init__(self, path):
        self.path, self.fingerprint = str(path), kept_tokenizer.measured(str(path))["sha256"]


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_weights_of_another_tokenizer_are_refused(tmp_path, caplog, name):
    ours, folder = tmp_path / "ours", tmp_path / "model"
    ours.write_bytes(b"{} ours")
    (folder / "tokenizer").mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        kept_tokenizer.check_same(Words(ours), str(folder))
    assert "has no tokenizer" in caplog.text
    shutil.copy(ours, folder / "tokenizer" / name)
    kept_tokenizer.check_same(Words(ours), str(folder))
    (folder / "tokenizer" / name).write_bytes(b"{} another")
    with pytest.raises(ValueError, match=rf"another tokenizer than .*ours; set Tokenizer.path to .*{name}"):
        kept_tokenizer.check_same(Words(ours), str(folder))


def test_the_trainer_asks_its_source_before_it_reads(origin, tmp_path):
    asked = []

    class Particular(Numbers):
        def begin_from(self, folder):
            asked.append(folder)
            raise ValueError("not with me")

    with pytest.raises(ValueError, match="not with me"):
        train(parts(tmp_path, init_from=str(origin), source=Particular()))
    assert asked == [str(origin)]


def test_what_is_read_is_not_copied(tmp_path):
    """The state takes over the memory of what was read: two copies of a large model would not fit."""
    ours = parts(tmp_path, layout=Layout(data=1, fsdp=8))
    with ours.layout.active():
        recipe = ours.recipe(ours.timeline.at(0))
        abstract = abstract_state(recipe, ours.layout)
        shapes = by_path(abstract.params)
        given = {name: jax.device_put(jnp.ones(leaf.shape), leaf.sharding) for name, leaf in shapes.items()}
        state = initial_state(recipe, abstract, lambda: given)
    assert all(leaf.is_deleted() for leaf in given.values())
    assert all(np.asarray(leaf).min() == 1 for leaf in jax.tree.leaves(state.params))
