"""A part of the parameters trains: which, what a checkpoint holds of it, and where the others come from later."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.checkpoint import stored_leaves
from hcxjax.mesh import Layout
from hcxjax.partition import by_path, fingerprint, joined, nested, part_fingerprint, split
from hcxjax.train import train
from tests.test_train import experiment, told
from tests.test_warm_start import Parts, parts

TREE = {"a": {"b": 1, "c": {"d": 2, "e": 3}}, "ab": 4, "f": {"g": 5}}


@pytest.mark.parametrize(
    ("prefixes", "trained"),
    [
        (("a",), {"a": {"b": 1, "c": {"d": 2, "e": 3}}}),
        (("a/c/e", "f"), {"a": {"c": {"e": 3}}, "f": {"g": 5}}),
        (("ab", "a/c", "a/c/d"), {"a": {"c": {"d": 2, "e": 3}}, "ab": 4}),
        (("a", "ab", "f"), TREE),
        ((), {}),
        (None, TREE),
    ],
)
def test_a_tree_is_split_by_whole_steps_of_its_paths_and_joined_again(prefixes, trained):
    ours, others = split(TREE, prefixes)
    assert ours == trained
    assert not by_path(ours).keys() & by_path(others).keys()
    assert joined(ours, others) == TREE
    assert nested(by_path(TREE)) == TREE


@pytest.mark.parametrize("prefix", ["b", "a/d", "a/b/x", "ab/"])
def test_a_prefix_that_names_nothing_is_named(prefix):
    with pytest.raises(ValueError, match=rf"Experiment\.trainable names '{prefix}', but the parameters are a, ab, f"):
        split(TREE, (prefix,))


def test_a_fingerprint_is_of_values_places_and_paths_and_of_no_mesh():
    rng = np.random.default_rng(0)
    tree = {"w": rng.normal(size=(8, 16)).astype(np.float32), "n": {"i": np.arange(6, dtype=np.int32)}}
    tree["h"] = np.asarray(jnp.asarray(rng.normal(size=(4, 6)), jnp.bfloat16))
    known = fingerprint(tree)
    assert known == fingerprint(jax.tree.map(np.copy, tree))
    with Layout(data=2, fsdp=2, tensor=2).active() as mesh:
        sharding = jax.NamedSharding(mesh, jax.P("fsdp", "tensor"))
        assert fingerprint({**tree, "w": jax.device_put(tree["w"], sharding)}) == known
    by_rows = [part_fingerprint("w", tree["w"][start : start + 3], start) for start in (6, 0, 3)]
    rest = sum(part_fingerprint(name, leaf) for name, leaf in (("n/i", tree["n"]["i"]), ("h", tree["h"])))
    assert (sum(by_rows) + rest) % 2**32 == known

    def other(change):
        copy = jax.tree.map(np.copy, tree)
        change(copy)
        return fingerprint(copy)

    def swap(copy):
        copy["w"][[0, 1]] = copy["w"][[1, 0]]

    def nudge(copy):
        copy["w"][7, 15] = np.nextafter(copy["w"][7, 15], np.float32(9))

    changes = [
        swap,
        nudge,
        lambda copy: copy["w"].__setitem__((0, 0), -copy["w"][0, 0]),
        lambda copy: copy["n"]["i"].__setitem__(0, 1),
        lambda copy: copy["h"].__imul__(2),
        lambda copy: copy.update(v=copy.pop("w")),
        lambda copy: copy.pop("n"),
    ]
    assert len({known, *map(other, changes)}) == 1 + len(changes)


@dataclasses.dataclass(frozen=True)
class Deep(Parts):
    """Parts that are meant to train their head alone."""

    @property
    def trainable(self):
        return ("head",)


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A run of Parts, checkpoints of steps 4 and 8."""
    folder = tmp_path_factory.mktemp("origin")
    train(parts(folder))
    return folder


def partial(folder, origin, **changes):
    given = {"init_from": str(origin), "trainable": ("head",), "save_every": 2, "steps": 4, "seed": 5}
    return parts(folder, **given | {"trackers": experiment(folder).trackers} | changes)


def stored(folder, step):
    """Everything that a checkpoint holds, by path."""
    _, leaves = stored_leaves(folder / "checkpoints", step)
    return {name: leaf.read(()) for name, leaf in leaves.items()}


class Eyes:
    """Keeps what an evaluator is shown."""

    every = 1

    def start(self, layout, run_dir):
        self.seen = []

    def evaluate(self, params, step):
        self.seen.append({name: np.asarray(leaf) for name, leaf in by_path(params).items()})
        return {}


@pytest.fixture(scope="module")
def tuned(origin, tmp_path_factory):
    """(folder, what its evaluator saw) of a whole run of four updates whose head alone trains."""
    folder, eyes = tmp_path_factory.mktemp("tuned"), Eyes()
    train(partial(folder, origin, evaluators=(eyes,)))
    return folder, eyes.seen


def test_what_does_not_train_stays_and_everybody_sees_the_whole(origin, tuned):
    _, seen = tuned
    begun = stored(origin, 8)
    assert len(seen) == 5
    for number, params in enumerate(seen):
        np.testing.assert_array_equal(params["body/inner"], begun["state/params/body/inner"])
        assert (params["head"] == begun["state/params/head"]).all() == (number == 0)
        assert params.keys() == {"body/inner", "head"}


def test_a_checkpoint_holds_what_trains_its_optimizer_and_a_fingerprint(origin, tuned):
    folder, seen = tuned
    leaves = stored(folder, 4)
    assert [name for name in leaves if "body" in name or "frozen" in name] == ["progress/frozen"]
    moments = {name for name in leaves if name.startswith("state/optimizer/") and name.endswith("/head")}
    assert len(moments) == 2
    np.testing.assert_array_equal(leaves["state/params/head"], seen[-1]["head"])
    assert "progress/frozen" not in stored(origin, 8)


def test_a_resumed_run_repeats_a_whole_one_on_another_mesh_too(origin, tuned, tmp_path):
    folder, seen = tuned
    eyes = Eyes()
    train(partial(tmp_path / "parts", origin, steps=2))
    train(partial(tmp_path / "parts", origin, evaluators=(eyes,)))
    assert told(tmp_path / "parts", "train/loss") == told(folder, "train/loss")
    ours, theirs = stored(tmp_path / "parts", 4), stored(folder, 4)
    assert ours.keys() == theirs.keys()
    for name, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[name], err_msg=name)
    for params, other in zip(eyes.seen, seen[-2:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, params, other)
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "4")
    train(partial(tmp_path / "parts", origin, layout=Layout(data=2, fsdp=2, tensor=2), trackers=()))


def test_a_run_does_not_go_on_over_another_base(origin, tuned, tmp_path):
    copy, run = tmp_path / "base", tmp_path / "run"
    shutil.copytree(origin, copy)
    train(partial(run, copy, steps=2))
    train(parts(copy, steps=10))
    with pytest.raises(
        ValueError, match=r"weights in .*base \(Experiment\.init_from, INIT_FROM\) are not .* FOLDER@STEP"
    ):
        train(partial(run, copy))
    train(partial(run, f"{copy}@8"))
    assert told(run, "train/loss") == told(tuned[0], "train/loss")
    shutil.rmtree(copy)
    with pytest.raises(ValueError, match=r"base has no checkpoint.*Experiment\.init_from \(INIT_FROM\)"):
        train(partial(run, copy, steps=5))


def test_another_run_does_not_begin_from_a_part(tuned, tmp_path):
    with pytest.raises(ValueError, match=r"holds only what its run has trained.*tools\.merge_adapter .* FOLDER"):
        train(parts(tmp_path, init_from=str(tuned[0])))


def test_an_objective_may_say_what_trains_and_the_run_has_the_last_word(origin, tmp_path):
    assert partial(tmp_path, origin, objective=Deep(), trainable=None).trains == ("head",)
    assert partial(tmp_path, origin, objective=Deep(), trainable=("/body/",)).trains == ("body",)
    assert partial(tmp_path, origin, trainable=None).trains is None
    with pytest.raises(ValueError, match=r"only head of .* train .*INIT_FROM\) is None"):
        parts(tmp_path, objective=Deep())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainable": "head"}, r"Experiment\.trainable is 'head'; it must be a tuple of prefixes"),
        ({"trainable": ("head", "")}, r"Experiment\.trainable is \('head', ''\)"),
        ({"init_from": None}, r"only head of the parameters train \(Experiment\.trainable"),
        ({"trainable": ("haed",)}, r"Experiment\.trainable names 'haed', but the parameters are body, head"),
        ({"fresh": ("body",)}, r"Experiment\.fresh draws body/inner, which Experiment\.trainable leaves as drawn"),
    ],
)
def test_fields_that_cannot_be_are_named(origin, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(partial(tmp_path, origin, **changes))
    assert not list(tmp_path.glob("checkpoints/*"))


def test_a_fresh_part_trains(origin, tmp_path):
    eyes = Eyes()
    train(partial(tmp_path, origin, fresh=("head",), steps=1, evaluators=(eyes,)))
    assert (eyes.seen[0]["head"] != stored(origin, 8)["state/params/head"]).all()
    assert (eyes.seen[1]["head"] != eyes.seen[0]["head"]).all()
