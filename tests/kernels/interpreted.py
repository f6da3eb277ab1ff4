"""Pallas' interpreter of kernels for Hopper GPUs, and stand-ins for what the release of jax at hand does not interpret.

Copies, their barriers, shared memory, the pipeline and its three warpgroups are interpreted. wgmma is a product of
matrices where jax cannot interpret it: in 0.10 always, in 0.11 with an operand in registers.
"""

import contextlib
import threading
import types

import jax
import jax.numpy as jnp
from jax._src import callback
from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams, force_gpu_interpret_mode

from hcxjax.kernels import pallas_gpu, pallas_gpu_backward, pallas_gpu_blocks


class Transposed:
    def __init__(self, ref):
        self.ref, self.shape = ref, ref.shape[::-1]

    def __getitem__(self, index):
        return self.ref[index].T


def product(left, right):
    return jnp.dot(left[...], right[...], preferred_element_type=jnp.float32)


def add_product(sums, left, right):
    return sums + product(left.astype(right.dtype), right)


STAND_INS = {"add_product": add_product}
if jax.__version_info__ < (0, 11):
    STAND_INS |= {
        "zeros": lambda *shape: jnp.zeros(shape, jnp.float32),
        "rows": lambda ref: ref[...],
        "columns": lambda ref: ref[...],
        "along": lambda numbers, shape, axis: jax.lax.broadcast_in_dim(numbers, shape, [axis]),
        "offsets": lambda shape, axis: jax.lax.broadcasted_iota(jnp.int32, shape, axis),
        "transposed": Transposed,
        "product": product,
    }


class Compiled:
    """Runs the threads' program, compiled once; jax 0.10 compiles it anew for every thread of every thread block."""

    def __init__(self):
        self.lock, self.programs = threading.Lock(), {}

    def __call__(self, jaxpr, consts, *inputs):
        with self.lock:
            if id(jaxpr) not in self.programs:
                run = jax.jit(lambda consts, *inputs: (jax.core.eval_jaxpr(jaxpr, consts, *inputs), None)[1])
                self.programs[id(jaxpr)] = jaxpr, run.lower(consts, *inputs).compile()
        self.programs[id(jaxpr)][1](consts, *inputs)


RUN = Compiled()


@contextlib.contextmanager
def interpreted(monkeypatch):
    for module in (pallas_gpu, pallas_gpu_backward, pallas_gpu_blocks):
        for name in STAND_INS.keys() & vars(module).keys():
            monkeypatch.setattr(module, name, STAND_INS[name])
    if jax.__version_info__ < (0, 11):
        from jax._src.pallas.mosaic.interpret import thread_map

        monkeypatch.setattr(thread_map, "_run_jaxpr", RUN)
        # The interpreter asks for integers, of which jax would make arrays on a device first: most of all its time.
        monkeypatch.setattr(callback, "api", types.SimpleNamespace(device_put=lambda inputs, device: inputs))
    try:
        with force_gpu_interpret_mode(InterpretGPUParams()):
            yield
    finally:
        # Else one failure would make all that follow fail.
        interpret_pallas_call.reset_gpu_interpret_mode_state()
