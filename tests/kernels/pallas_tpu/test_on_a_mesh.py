"""The kernels where each device holds some heads and some places of a row, with queries turned inside."""

import jax
import numpy as np
import pytest

from hcxjax.kernels.backends import BACKENDS, Backend
from hcxjax.mesh import Layout
from tests.kernels.pallas_tpu.cases import interpreted
from tests.models.test_context import on


@pytest.mark.slow
@pytest.mark.parametrize(
    ("axes", "settings"),
    [
        ({"context": 4, "tensor": 2}, {"context": "ring"}),
        ({"fsdp": 2, "context": 2, "tensor": 2}, {"remat": "attention"}),
    ],
)
def test_rows_divided_over_devices_equal_rows_on_one(axes, settings, monkeypatch):
    """Forward and gradient of a model to 1e-5 of the largest value."""
    monkeypatch.setitem(BACKENDS, "interpreted", Backend(interpreted, rotates=True))
    alone = on(Layout(devices=(0, 1)))
    found = on(Layout(**{"data": 1, **axes}), attention="interpreted", attention_tile=(8, 4), **settings)
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5 * max(1, np.abs(one).max()))
