"""Memory of the scores of a long row's targets, by how many logits exist at a time: what XLA allots for the head's loss
and both its gradients, beside the inputs and outputs. Nothing is run: it is compiled for this machine's device, or for
one chip of a pod that is not there (libtpu).
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.bench_device import attempted, jax_versions, write

Scores = Callable[[Any, Any, Any], Any]


def add_head(commands: Any) -> None:
    """The command line of `head`."""
    head = commands.add_parser("head", help="memory of the vocabulary's scores by chunk", description=__doc__)
    head.set_defaults(run=bench_head)
    head.add_argument("--topology", metavar="POD", help="such as v5p:2x2x1 (default: this machine's device)")
    head.add_argument("--length", type=int, default=32768, help="places of the one row (default: %(default)s)")
    head.add_argument("--vocabulary", type=int, default=100352, help="(default: %(default)s)")
    head.add_argument("--width", type=int, default=2048, help="of the model (default: %(default)s)")
    head.add_argument("--chunk", type=int, nargs="+", default=[128, 512, 2048, 8192], help="(default: %(default)s)")
    head.add_argument("--json", type=Path, metavar="FILE", help="write all measurements here")


def bench_head(options: argparse.Namespace) -> int:
    """Prints a table."""
    if options.topology:
        from hcxjax.planning.topology import without_accelerators

        without_accelerators()
    import jax

    from hcxjax.planning.pods import Pod
    from hcxjax.planning.topology import compile_only_devices

    device = compile_only_devices(Pod.parse(options.topology))[0] if options.topology else jax.devices()[0]
    sides = {"whole, autodiff": dense} | {f"{size:,}": chunked(size) for size in (options.length, *options.chunk)}
    shape = (options.length, options.vocabulary, options.width)
    cases = {name: attempted(lambda scores=scores: measured(scores, *shape, device)) for name, scores in sides.items()}
    results = {"versions": jax_versions(), "device": device.device_kind, "shape": shape, "temporary_bytes": cases}
    logits = 4 * options.length * options.vocabulary
    print(json.dumps(results["versions"] | {"compiled for": device.device_kind}))
    print(f"{options.length:,} places x {options.vocabulary:,} entries: logits of {logits / 2**30:.2f} GiB in float32")
    print("| positions at a time | temporaries, GiB | of the logits |\n|---|---|---|")
    for name, taken in cases.items():
        told = f"{taken / 2**30:.3f} | {taken / logits:.3f}" if isinstance(taken, int) else f"{taken['error']} |"
        print(f"| {name} | {told} |")
    write(options.json, results)
    return 0


def measured(scores: Scores, length: int, vocabulary: int, width: int, device: Any) -> int:
    """Bytes of temporaries of a row's loss and of its gradients to the head (float32) and to the hidden states."""
    import jax
    import jax.numpy as jnp

    def loss(table_VD: Any, x_BTD: Any, targets_BT: Any) -> Any:
        return -jnp.mean(scores(table_VD, x_BTD, targets_BT))

    shapes = ((vocabulary, width), jnp.float32), ((1, length, width), jnp.bfloat16), ((1, length), jnp.int32)
    here = jax.sharding.SingleDeviceSharding(device)
    arguments = [jax.ShapeDtypeStruct(shape, dtype, sharding=here) for shape, dtype in shapes]
    said = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arguments).compile().memory_analysis()
    assert said is not None, "XLA says what a program takes on TPUs, GPUs and CPUs"
    return said.temp_size_in_bytes


def chunked(size: int) -> Scores:
    """Ours, so many positions at a time."""

    def scores(table_VD: Any, x_BTD: Any, targets_BT: Any) -> Any:
        from hcxjax.models.vocabulary_scores import target_scores

        return target_scores(table_VD, x_BTD, targets_BT, dtype="bfloat16", multiplier=1.0, chunk=size)[0]

    return scores


def dense(table_VD: Any, x_BTD: Any, targets_BT: Any) -> Any:
    """As a model without chunks does it, the backward pass left to jax."""
    import jax
    import jax.numpy as jnp

    weight_VD = table_VD.astype(jnp.bfloat16)
    logits_BTV = jnp.einsum("BTD,VD->BTV", x_BTD, weight_VD, preferred_element_type=jnp.float32)
    logprob_BTV = jax.nn.log_softmax(logits_BTV)
    return jnp.take_along_axis(logprob_BTV, targets_BT[..., None], axis=-1)[..., 0]
