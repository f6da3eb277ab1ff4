import jax
import jax.numpy as jnp
import pytest

from hcxjax.planning.hlo import Program
from hcxjax.planning.matmuls import matmul_flops, unknown_kernels

ONE = """\
HloModule one

ENTRY %main (a: f32[{a}], b: f32[{b}]) -> f32[{out}] {{
  %a = f32[{a}] parameter(0)
  %b = f32[{b}] parameter(1)
  ROOT %c = f32[{out}] convolution(%a, %b), {attributes}
}}
"""


def flops_of(a, b, out, attributes):
    return matmul_flops(Program.parse(ONE.format(a=a, b=b, out=out, attributes=attributes)).executed())


@pytest.mark.parametrize(
    ("a", "b", "out", "attributes", "flops"),
    [
        # A matmul, and one whose spatial dimension is one of the rows.
        ("32,64", "64,16", "32,16", "dim_labels=bf_io->bf", 2 * 32 * 64 * 16),
        ("4,8,64", "64,16,1", "4,8,16", "window={size=1}, dim_labels=0bf_io0->0bf", 2 * 4 * 8 * 64 * 16),
        # A batched matmul as TPUs write it: of a window as long as the batch, one element meets each output.
        (
            "8,32,64",
            "8,64,16",
            "8,32,16",
            "window={size=8 stride=7 pad=0_0 lhs_dilate=8}, dim_labels=0bf_0io->0bf",
            2 * 8 * 32 * 64 * 16,
        ),
        # An image: 3x3 over 6x6, padded by one on each side, loses the corners' and edges' pairs.
        (
            "2,6,6,3",
            "3,3,3,5",
            "2,6,6,5",
            "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f",
            2 * 2 * 3 * 5 * (3 * 6 - 2) ** 2,
        ),
        ("2,7,3", "3,3,5", "2,3,5", "window={size=3 stride=2}, dim_labels=b0f_0io->b0f", 2 * 2 * 3 * 5 * 9),
    ],
)
def test_convolutions(a, b, out, attributes, flops):
    assert flops_of(a, b, out, attributes) == flops


def test_matmuls_of_a_compiled_program_are_those_that_it_was_written_with():
    def steps(x_BD, w_LDD):
        return jax.lax.scan(lambda x_BD, w_DD: (jnp.tanh(x_BD @ w_DD), None), x_BD, w_LDD)[0]

    program = jax.jit(steps).lower(jnp.ones((16, 32)), jnp.ones((7, 32, 32))).compile()
    assert matmul_flops(Program.parse(program.as_text()).executed()) == 2 * 7 * 16 * 32 * 32


KERNEL = """\
HloModule kernel

ENTRY %main (a: f32[8]) -> f32[8] {{
  %a = f32[8] parameter(0)
  ROOT %k = f32[8] custom-call(%a), custom_call_target="tpu_custom_call", backend_config={config}
}}
"""


def test_kernels_count_by_their_cost_estimate_and_are_named_without_one():
    told = Program.parse(KERNEL.format(config='{"custom_call_config":{"cost_estimate":{"flops":"4096"}}}')).executed()
    assert (matmul_flops(told), unknown_kernels(told)) == (4096, ())
    silent = Program.parse(KERNEL.format(config="{}")).executed()
    assert (matmul_flops(silent), unknown_kernels(silent)) == (0, ("tpu_custom_call",))
