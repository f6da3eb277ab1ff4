"""Layers in stages: the schedule by arithmetic, whole updates against one device, and what moves between devices."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.mesh import Layout, unbox
from hcxjax.models.config import DecoderConfig
from hcxjax.models.decoder import Decoder, apply
from hcxjax.models.pipeline import Schedule
from hcxjax.objectives.language_model import LanguageModel
from hcxjax.objectives.lora import LoRA
from hcxjax.optim import SpikeGuard
from hcxjax.partition import by_path
from hcxjax.update import Recipe, abstract_state, update
from tests.test_update import KeepsGradient

ROWS, LENGTH = 8, 16
SIZES = {
    "vocab_size": 32,
    "num_layers": 4,
    "embed_dim": 16,
    "mlp_dim": 24,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "max_length": LENGTH,
    "dtype": "float32",
}
EVERYTHING = ("embed", "layers", "norm")

SCHEDULES = [(2, 1, 5), (4, 1, 2), (2, 2, 4), (4, 2, 8), (2, 3, 5), (3, 2, 7), (4, 6, 2), (1, 2, 3)]


@pytest.mark.parametrize(("stages", "repeats", "microbatches"), SCHEDULES)
def test_every_microbatch_meets_all_groups_in_order(stages, repeats, microbatches):
    schedule = Schedule(stages, repeats, microbatches)
    steps, each = np.arange(schedule.steps)[:, None], np.arange(stages)
    repeat, microbatch = (np.asarray(table) for table in schedule.at(steps, each))
    last = 0
    for number in range(microbatches):
        entered = np.flatnonzero((repeat[:, 0] == 0) & (microbatch[:, 0] == number))[0]
        for group in range(stages * repeats):
            here = entered + group, group % stages
            assert (repeat[here], microbatch[here]) == (group // stages, number)
        # Steps for nothing write nothing over what the last stage has made of it.
        last = entered + stages * repeats - 1
        assert np.flatnonzero(microbatch[:, -1] == number)[-1] == last
    assert schedule.steps == last + 1


def test_bubble():
    for stages, repeats, microbatches in [(2, 1, 5), (4, 1, 2), (2, 2, 4), (4, 2, 8), (1, 2, 3)]:
        expected = (stages - 1) / (repeats * microbatches + stages - 1)
        assert Schedule(stages, repeats, microbatches).bubble == pytest.approx(expected)
    assert Schedule(4, 2, 5).bubble == pytest.approx(1 - 10 / 16)  # of 16 steps 13 would do, were the ring full


@pytest.mark.parametrize(("stages", "repeats", "_"), SCHEDULES)
def test_transfers_bring_every_group_to_its_stage(stages, repeats, _):
    rounds = Schedule(stages, repeats, 1).transfers
    assert sorted(np.concatenate(rounds)) == list(range(stages * repeats))
    for sent in rounds:
        assert list(sent // repeats) == list(range(stages))
        assert sorted(sent % stages) == list(range(stages))


def batch(rows=ROWS):
    """Documents of mixed lengths, a padding tail in all rows but the first, uneven weights."""
    rng = np.random.default_rng(0)
    segments, positions = np.zeros((2, rows, LENGTH), np.int32)
    for row in range(rows):
        at = number = 0
        while at < LENGTH - row % 5:
            size, number = min(LENGTH - row % 5 - at, int(rng.exponential(2 + row)) + 1), number + 1
            segments[row, at : at + size], positions[row, at : at + size] = number, np.arange(size)
            at += size
    tokens, targets = rng.integers(0, 32, (2, rows, LENGTH)).astype(np.int32)
    names = ("tokens_BT", "targets_BT", "segment_ids_BT", "positions_BT")
    weights = rng.integers(0, 3, (rows, LENGTH)).astype(np.float32) * (segments > 0)
    return dict(zip(names, (tokens, targets, segments, positions), strict=True)) | {"weights_BT": weights}


def drawn(abstract):
    """A state whose parameters do not depend on the mesh; LoRA's b is not 0."""
    rng = np.random.default_rng(0)
    noise = {path: rng.normal(size=leaf.shape) for path, leaf in sorted(by_path(abstract.whole).items())}

    def params(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        value = 1 + 0.3 * noise[name] if "norm" in name else 0.25 * noise[name]
        return jax.device_put(value.astype(np.float32), leaf.sharding)

    blank = jax.tree.map(lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), abstract)
    trained, frozen = (jax.tree_util.tree_map_with_path(params, tree) for tree in (abstract.params, abstract.frozen))
    return dataclasses.replace(blank, params=trained, frozen=frozen)


@functools.cache
def compiled(layout, accumulate=1, also=EVERYTHING, **settings):
    """(abstract state, compiled update) of an adapted model, of which what `also` names trains too."""
    objective = LoRA(LanguageModel(DecoderConfig(**SIZES | settings), z_loss=0.01), 2, alpha=4.0, also=also)
    recipe = Recipe(objective, KeepsGradient(), SpikeGuard(), accumulate, 0, objective.trainable)
    with layout.active():
        abstract = abstract_state(recipe, layout)
        rows = {
            name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=layout.sharding("batch"))
            for name, value in batch().items()
        }
        return abstract, jax.jit(functools.partial(update, recipe)).lower(abstract, rows).compile()


def gradients(layout, **settings):
    """{path: gradient}, and the sum of the loss under ''."""
    abstract, run = compiled(layout, **settings)
    rows = layout.shard_batch(lambda start, stop: {k: v[start:stop] for k, v in batch().items()}, ROWS)
    after, metrics = run(drawn(abstract), rows)
    return jax.device_get(by_path(after.optimizer[0].trace) | {"": metrics["objective"].sum})


@pytest.fixture(scope="module")
def alone():
    return gradients(Layout(devices=(0, 1)))


INTERLEAVED = {"pipe": 2, "context": 2, "tensor": 2}, {"pipe_repeats": 2, "pipe_rows": 2}


@pytest.mark.parametrize(
    ("axes", "settings"),
    [
        ({"pipe": 4, "data": 2}, {"remat": "full"}),
        INTERLEAVED,
        *(
            pytest.param(axes, settings, marks=pytest.mark.slow)
            for axes, settings in [
                # The base does not train.
                ({"pipe": 2, "fsdp": 2, "tensor": 2}, {"pipe_repeats": 2, "accumulate": 2, "also": ()}),
                ({"pipe": 2, "data": 4}, {"num_layers": 8, "pipe_repeats": 4, "remat": ("query", "attention")}),
                ({"pipe": 4, "fsdp": 2}, {"num_layers": 8, "pipe_repeats": 2, "pipe_rows": 2, "remat": "dots"}),
                ({"pipe": 2, "context": 4}, {"context": "ring", "attention_tile": (2, 2), "remat": "attention"}),
                ({"pipe": 2, "fsdp": 2, "context": 2}, {"accumulate": 4, "scan_unroll": 2, "post_norms": True}),
                ({"pipe": 8}, {"num_layers": 8, "tie_embeddings": False, "also": ("head", *EVERYTHING)}),
            ]
        ),
    ],
)
def test_stages_equal_one_device(alone, axes, settings):
    """Loss and gradients to 1e-5 of the largest value, of packed rows under a low-rank adapter."""
    sizes = {name: value for name, value in settings.items() if name in ("num_layers", "post_norms", "tie_embeddings")}
    if sizes:
        alone = gradients(Layout(devices=(0, 1)), also=settings.get("also", EVERYTHING), **sizes)
    found = gradients(Layout(**{"data": 1, **axes}), **settings)
    assert {path for path in found if "adapter" in path} == {path for path in alone if "adapter" in path}
    for path, value in found.items():
        np.testing.assert_allclose(value, alone[path], atol=1e-5 * max(1, np.abs(alone[path]).max()), err_msg=path)


def loops_with_permutes(text):
    """The collectives (kind, shape of the result) of each loop that passes rows on, loops inside included."""
    computations, name = {}, None
    for line in text.splitlines():
        if start := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            name = start[1]
        computations.setdefault(name, []).append(line)

    def lines_of(name):
        for line in computations[name]:
            yield line
            for called in re.findall(r"(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)", line):
                yield from lines_of(called)

    def collectives(lines):
        kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
        found = (re.search(rf"= \(?(?:\w+\[([\d,]*)\].*?) ({kinds})(?:-start)?\(", line) for line in lines)
        return [(match[2], tuple(map(int, match[1].split(",")))) for match in found if match]

    bodies = {
        body for lines in computations.values() for line in lines for body in re.findall(r"body=%?([\w.\-]+)", line)
    }
    direct = [
        body for body in bodies if any(kind == "collective-permute" for kind, _ in collectives(computations[body]))
    ]
    return [collectives(lines_of(body)) for body in direct]


def test_only_rows_move_in_the_loop():
    """One permute a step, forwards and backwards; weights and their gradients cross the mesh before and after."""
    axes, settings = INTERLEAVED
    _, run = compiled(Layout(**{"data": 1, **axes}), **settings)
    loops = loops_with_permutes(run.as_text())
    assert len(loops) == 2
    for found in loops:
        assert [shape for kind, shape in found if kind == "collective-permute"] == [(2, LENGTH // 2, 16)]
        # Two rows at a time: no weight has a dimension of 2 in front.
        assert {shape[0] for _, shape in found} == {2}


def test_parameters_and_optimizer_are_divided_over_stages():
    (axes, settings) = INTERLEAVED
    abstract, _ = compiled(Layout(**{"data": 1, **axes}), **settings)
    for tree in (abstract.params, abstract.optimizer[0].trace):
        for path, leaf in by_path(tree).items():
            expected = leaf.shape[0] // (2 if "layers" in path else 4 if "embed" in path else 1)
            assert leaf.sharding.shard_shape(leaf.shape)[0] == expected, path


def abstract_params(config):
    return unbox(jax.eval_shape(LanguageModel(config).init, jax.random.key(0)))


def scan_outputs(jaxpr):
    """Shapes of all that loops stack up, each with the steps in front."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield from (value.aval.shape for value in equation.outvars[equation.params["num_carry"] :])
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from scan_outputs(inner)


@pytest.mark.parametrize("settings", [{"remat": "none"}, {"remat": "full"}, {"remat": "none", "dtype": "bfloat16"}])
def test_no_weights_are_kept_for_each_microbatch(settings):
    config = DecoderConfig(**SIZES | {"pipe_repeats": 2} | settings)
    given = [batch()[name] for name in ("tokens_BT", "segment_ids_BT", "positions_BT")]
    with Layout(data=4, pipe=2).active():
        params = abstract_params(config)
        gradient = jax.grad(lambda params: jnp.sum(apply(config, params, Decoder.hidden, *given).astype(jnp.float32)))
        kept = set(scan_outputs(jax.make_jaxpr(gradient)(params).jaxpr))
    steps = Schedule(2, 2, ROWS // 4).steps
    assert any(shape[0] == steps for shape in kept)
    for leaf in jax.tree.leaves(params["layers"]):
        if leaf.ndim > 2:
            assert not {(steps, *leaf.shape[1:]), (steps, 1, *leaf.shape[1:])} & kept


def refused(layout, rows=ROWS, **settings):
    config = DecoderConfig(**SIZES | settings)
    with layout.active():
        given = [batch(rows)[name] for name in ("tokens_BT", "segment_ids_BT", "positions_BT")]
        jax.eval_shape(lambda params: apply(config, params, Decoder.hidden, *given), abstract_params(config))


def test_sizes_that_cannot_be_divided():
    message = r"num_layers is 4; it must be a multiple of 16 \(Layout\.pipe 8 x DecoderConfig\.pipe_repeats 2\)"
    with pytest.raises(ValueError, match=message):
        refused(Layout(data=1, pipe=8), pipe_repeats=2)
    message = r"has 3 rows at a time \(of BATCH / ACCUMULATE.*multiple of DecoderConfig\.pipe_rows, 2"
    with pytest.raises(ValueError, match=message):
        refused(Layout(data=4, pipe=2), rows=12, pipe_rows=2)
    refused(Layout(data=4, pipe=2), rows=12)
    refused(Layout(data=8), rows=8, pipe_rows=7, pipe_repeats=7)  # without stages neither matters
