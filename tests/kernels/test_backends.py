import subprocess
import sys

import pytest

from hcxjax.kernels.backends import BACKENDS, chosen
from hcxjax.kernels.target import Target

V5E = Target("tpu", "TPU v5 lite")


@pytest.mark.parametrize(("head_dim", "name"), [(64, "pallas_tpu"), (128, "pallas_tpu"), (80, "xla")])
def test_choice_on_tpu(head_dim, name):
    chosen.cache_clear()
    assert chosen(V5E, head_dim) == name


def test_what_tpu_kernels_refuse():
    for name in ("pallas_tpu", "splash"):
        assert BACKENDS[name].refusal(V5E, 128) is None
        assert BACKENDS[name].refusal(V5E, 96) == "DecoderConfig.head_dim is 96; it can do 64, 128"
        assert BACKENDS[name].refusal(Target("cpu", "cpu"), 128) == "it runs on tpu, and this is cpu"
    assert BACKENDS["pallas_tpu"].parts
    assert not BACKENDS["splash"].parts


def test_pallas_is_imported_when_it_is_needed():
    program = "import sys, hcxjax.kernels.attention; print('jax.experimental.pallas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert done.stdout == "False\n", done.stderr
