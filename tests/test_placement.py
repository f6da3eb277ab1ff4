import dataclasses

import numpy as np
import pytest

from hcxjax.mesh import Layout
from hcxjax.placement import across_slices, arranged
from hcxjax.planning.pods import Pod


def coordinates(grid):
    return np.array([place.coords for place in grid.flat]).reshape(*grid.shape, 3)


def test_an_axis_takes_a_whole_dimension_where_it_can():
    grid = coordinates(arranged({"data": 1, "fsdp": 16, "tensor": 4}, Pod.parse("v5p:4x4x4").places))
    for group in grid.reshape(16, 4, 3):
        assert np.ptp(group, axis=0).tolist().count(3) == 1 and np.ptp(group, axis=0).sum() == 3


def test_an_axis_takes_a_part_of_a_dimension_where_it_must():
    """`jax.make_mesh` refuses this one: 2 is no product of whole dimensions of a 4x4x4 torus."""
    grid = arranged({"data": 1, "fsdp": 32, "tensor": 2}, Pod.parse("v5p:4x4x4").places)
    assert grid.shape == (1, 32, 2) and len({place.id for place in grid.flat}) == 64
    pairs = coordinates(grid).reshape(32, 2, 3)
    assert (np.abs(np.diff(pairs, axis=1)).sum(axis=-1) == 1).all(), "the pairs are neighbours"


def test_outer_axes_reach_across_slices():
    grid = arranged({"data": 2, "fsdp": 4, "tensor": 4}, Pod.parse("v5e:4x4", slices=2).places)
    slices = np.vectorize(lambda place: place.slice_index)(grid)
    assert (slices[0] == 0).all() and (slices[1] == 1).all()


@pytest.mark.parametrize(
    ("sizes", "slices", "across"),
    [
        ({"data": 2, "fsdp": 8}, 2, [2, 1]),
        ({"data": 4, "fsdp": 8}, 2, [2, 1]),
        ({"data": 2, "fsdp": 8}, 4, [2, 2]),
        ({"data": 1, "fsdp": 8}, 2, [1, 2]),
        ({"data": 3, "fsdp": 8}, 1, [1, 1]),
    ],
)
def test_slices_are_divided_over_axes(sizes, slices, across):
    assert list(across_slices(sizes, slices).values()) == across


def test_slices_that_axes_do_not_divide():
    with pytest.raises(ValueError, match=r"data=3 x fsdp=8 cannot be laid over 6 slices .*|make Layout\.data"):
        across_slices({"data": 4, "fsdp": 2}, 3)


def test_places_that_are_in_no_slice_are_in_one():
    """CPU devices have no slice, and a mesh over them is in jax's own order."""
    bare = [dataclasses.make_dataclass("Bare", ["id", "device_kind", "platform"])(i, "cpu", "cpu") for i in range(4)]
    assert [device.id for device in arranged({"data": 2, "fsdp": 2}, bare).flat] == [0, 1, 2, 3]
    assert [device.id for device in Layout(data=2, fsdp=4).mesh.devices.flat] == list(range(8))
