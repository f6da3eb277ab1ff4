import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from hcxjax.mesh import AXES, Layout, axes_of, constrain, spec_of, unbox
from hcxjax.objectives.language_model import LanguageModel


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (Layout(), (1, 8, 1, 1, 1)),
        (Layout(data=2, fsdp=-1, tensor=2), (1, 2, 2, 1, 2)),
        (Layout(data=1, fsdp=1, tensor=-1), (1, 1, 1, 1, 8)),
        (Layout(data=2, fsdp=4, tensor=-1), (1, 2, 4, 1, 1)),
        (Layout(data=2, context=-1, pipe=2), (2, 2, 1, 2, 1)),
    ],
)
def test_sizes(layout, shape):
    assert layout.shape == shape
    assert dict(layout.mesh.shape) == dict(zip(AXES, shape, strict=True))
    assert layout.batch_shards == shape[1] * shape[2]


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout(data=2, fsdp=2, tensor=1), r"data=2 x fsdp=2 x context=1 x tensor=1 is 4 devices, but 8 are present"),
        (Layout(data=-1, fsdp=3), r"fsdp=3 x context=1 x tensor=1 is 6 devices, but 8 are present"),
        (Layout(data=-1, fsdp=16), r"is 16 devices, but 8 are present"),
        (Layout(data=-1, fsdp=-1), r"at most one axis may be -1"),
        (Layout(data=8, tensor=0), r"Layout\.tensor is 0; it must be a positive number of devices, or -1"),
        (Layout(data=-2), r"Layout\.data is -2"),
    ],
)
def test_sizes_that_cannot_be(layout, message):
    with pytest.raises(ValueError, match=message):
        _ = layout.mesh


CUBE = Layout(data=2, fsdp=2, tensor=2)


def test_batch_divides_over_shards_and_microbatches():
    CUBE.check_batch(4)
    CUBE.check_batch(24, accumulate=3)
    with pytest.raises(ValueError, match=r"BATCH is 6; it must be a positive multiple of 4"):
        CUBE.check_batch(6)
    with pytest.raises(
        ValueError, match=r"BATCH is 8; .* multiple of 12 \(microbatches 3 x mesh shards of the batch 4\)"
    ):
        CUBE.check_batch(8, accumulate=3)
    with pytest.raises(ValueError, match=r"BATCH is 0"):
        CUBE.check_batch(0)


def test_batch_that_the_rules_replicate_has_one_shard():
    assert Layout(data=2, fsdp=2, tensor=2, rules=(("batch", None),)).batch_shards == 1
    assert Layout(data=2, fsdp=2, tensor=2, rules=(("batch", "data"),)).batch_shards == 2


def test_shard_batch_builds_each_span_once_and_puts_rows_in_their_place():
    asked = []

    def rows(start, stop):
        asked.append((start, stop))
        tokens = np.arange(start * 3, stop * 3, dtype=np.int32).reshape(-1, 3)
        return {"tokens_BT": tokens, "source_B": np.arange(start, stop)}

    batch = CUBE.shard_batch(rows, 8)
    assert sorted(asked) == [(0, 2), (2, 4), (4, 6), (6, 8)]
    np.testing.assert_array_equal(batch["tokens_BT"], np.arange(24).reshape(8, 3))
    np.testing.assert_array_equal(batch["source_B"], np.arange(8))
    assert batch["tokens_BT"].sharding.is_equivalent_to(CUBE.sharding("batch", "length"), 2)
    assert {shard.data.shape for shard in batch["tokens_BT"].addressable_shards} == {(2, 3)}
    shapes = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in batch.items()}
    for name, leaf in CUBE.abstract_batch(shapes).items():
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (batch[name].shape, batch[name].dtype, batch[name].sharding)


@pytest.fixture(scope="module")
def boxed(tiny):
    return jax.eval_shape(LanguageModel(tiny).init, jax.random.key(0))


def test_parameters_lie_as_the_rules_say(boxed):
    specs = jax.tree.map(lambda sharding: sharding.spec, CUBE.param_shardings(boxed))
    layer = specs["layers"]
    assert layer["attention"]["query"]["weight"] == P(None, "fsdp", "tensor", None)
    assert layer["attention"]["key"]["weight"] == P(None, "fsdp", "tensor", None)
    assert layer["attention"]["output"]["weight"] == P(None, "tensor", None, "fsdp")
    assert layer["mlp"]["gate"]["weight"] == P(None, "fsdp", "tensor")
    assert layer["mlp"]["down"]["weight"] == P(None, "tensor", "fsdp")
    assert all(axes is None for axes in layer["input_norm"]["weight"])
    assert all(axes is None for axes in specs["norm"]["weight"])
    # 61 entries cannot be halved: the table is split over its width alone.
    assert specs["embed"] == P(None, "fsdp")


def test_rules_of_the_layout_come_first(boxed):
    layout = Layout(data=2, fsdp=2, tensor=2, rules=(("mlp", None), ("embed", "tensor")))
    specs = jax.tree.map(lambda sharding: sharding.spec, layout.param_shardings(boxed))
    assert specs["layers"]["mlp"]["gate"]["weight"] == P(None, "tensor", None)


def test_kv_heads_that_the_tensor_axis_does_not_divide_are_replicated(boxed):
    specs = jax.tree.map(lambda sharding: sharding.spec, Layout(data=1, fsdp=2, tensor=4).param_shardings(boxed))
    assert specs["layers"]["attention"]["query"]["weight"] == P(None, "fsdp", "tensor", None)
    assert specs["layers"]["attention"]["key"]["weight"] == P(None, "fsdp", None, None)


def test_constrain_pins_under_a_mesh_and_is_the_identity_without():
    x_BTD = jnp.zeros((8, 4, 6))
    assert constrain(x_BTD, "batch", "length", "mlp") is x_BTD
    pin = functools.partial(constrain, x_BTD)
    with CUBE.active():
        pinned = jax.jit(lambda: pin("batch", "length", "mlp"))()
        uneven = jax.jit(lambda: constrain(jnp.zeros((8, 4, 5)), "batch", "length", "mlp"))()
    assert pinned.sharding.shard_shape((8, 4, 6)) == (2, 4, 3)
    assert uneven.sharding.shard_shape((8, 4, 5)) == (2, 4, 5)
    assert jax.sharding.get_abstract_mesh().empty
    assert not nn.get_logical_axis_rules()


def test_as_many_axes_as_divide_a_dimension(boxed):
    """61 entries of the vocabulary cannot be divided over tensor and pipe, 62 over tensor alone, 64 over both."""
    layout = Layout(data=1, fsdp=2, tensor=2, pipe=2)
    with layout.active():
        found = [spec_of((entries, 32), "vocab", "embed") for entries in (61, 62, 64)]
        assert axes_of("vocab") == ("tensor", "pipe")
        assert axes_of("length") == axes_of("head_dim") == ()
    assert found == [P(None, "fsdp"), P("tensor", "fsdp"), P(("tensor", "pipe"), "fsdp")]
    assert axes_of("vocab") == ()
    specs = jax.tree.map(lambda sharding: sharding.spec, layout.param_shardings(boxed))
    assert specs["layers"]["mlp"]["gate"]["weight"] == P("pipe", "fsdp", "tensor")


def test_inside_a_shard_map_its_axes_divide_nothing_any_more():
    seen = []

    def local(x_BTF):
        seen.append((x_BTF.shape, spec_of(x_BTF.shape, "batch", "length", "mlp")))
        return constrain(x_BTF, "batch", "length", "mlp")

    with CUBE.active():
        axes = {"data", "fsdp"}
        inside = jax.shard_map(local, in_specs=P(("data", "fsdp")), out_specs=P(("data", "fsdp")), axis_names=axes)
        jax.eval_shape(jax.jit(inside), jnp.zeros((8, 4, 6)))
    assert set(seen) == {((2, 4, 6), P(None, None, "tensor"))}


def test_unbox_takes_arrays_and_shapes():
    box = nn.LogicallyPartitioned(jnp.ones(3), ("embed",))
    tree = unbox({"a": box, "b": {"c": 1}})
    assert tree["a"].shape == (3,)
    assert tree["b"] == {"c": 1}
    with CUBE.active():
        assert unbox(jax.eval_shape(lambda: {"a": box}))["a"].shape == (3,)


def test_a_mesh_over_some_of_the_devices():
    layout = Layout(data=-1, tensor=2, devices=(4, 8))
    assert layout.shape == (1, 2, 1, 1, 2)
    assert list(layout.mesh.devices.flat) == jax.devices()[4:8]
    for devices in ((0, 9), (3, 3), (-1, 2)):
        with pytest.raises(ValueError, match=r"Layout\.devices is .* within the 8 devices"):
            Layout(devices=devices).mesh  # noqa: B018
