import dataclasses

import jax
import pytest

from hcxjax.planning.compiled import _moved, _too_much
from hcxjax.planning.topology import PodLayout
from hcxjax.update import abstract_state


def test_what_an_update_is_given_is_what_its_shardings_say(compiled):
    memory = compiled.memory
    unread = 4 * 4  # source_B of four rows: the objective has no sources to tell apart
    assert compiled.compiled.arguments == memory.parameters + memory.optimizer + memory.batch - unread
    # Adam's two moments have the parameters' shapes and shardings; the rest are counters and statistics.
    assert 0 < memory.optimizer - 2 * memory.parameters < 100


def test_loops_over_layers_lay_down_inputs_and_gradients(compiled, cube, tiny):
    rows = cube.rows / 4 / 4  # over data and fsdp, in microbatches
    inputs = tiny.num_layers * rows * cube.length * tiny.embed_dim * 4
    assert inputs <= compiled.memory.activations < 4 * inputs
    blocks = compiled.memory.parameters - tiny.vocab_size * tiny.embed_dim * 4 / 2
    assert compiled.memory.gradients == pytest.approx(blocks, rel=0.3)
    assert compiled.memory.temporaries > 0


def test_every_axis_carries_what_it_should(compiled, tiny):
    found = {(one.kind, one.axes) for one in compiled.collectives}
    assert {("all-gather", ("fsdp",)), ("all-reduce", ("data",)), ("all-reduce", ("tensor",))} <= found
    turns = {one.times for one in compiled.collectives if "layers" in one.source}
    assert turns == {4.0 * tiny.num_layers}, "a layer of each of four microbatches"
    gathered = [one for one in compiled.collectives if one.kind == "all-gather" and "mlp/down" in one.source]
    assert {one.payload for one in gathered} == {tiny.mlp_dim * tiny.embed_dim * 4 / 2}


def test_nothing_is_left_uncounted_and_the_state_stays_where_it_is(compiled):
    assert compiled.compiled.uncounted == () and compiled.compiled.moved_leaves == ()
    assert compiled.compiled.versions["jax"] == jax.__version__


def test_leaves_that_move_are_named(cube):
    layout = PodLayout.over(cube.layout, jax.devices())
    state = abstract_state(cube.recipe, layout)
    kept = jax.tree.map(lambda leaf: leaf.sharding, state)
    assert _moved(state, kept) == ()
    elsewhere = dataclasses.replace(kept, params={**kept.params, "embed": layout.sharding("batch", None)})
    assert _moved(state, elsewhere) == ("params/embed",)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (45.58G) "
            "exceeds available HBM (15.75G).",
            "XLA would need 45.58G of the 15.75G of HBM",
        ),
        ("Ran out of memory in memory space hbm. Used 20.10G of 15.75G hbm.", "XLA would need 20.10G of the 15.75G"),
        ("RESOURCE_EXHAUSTED: something else", "something else"),
    ],
)
def test_what_does_not_fit_is_told_in_a_sentence(message, told):
    assert told in _too_much(message)
