"""What the start of a run refuses: a mesh that does not divide the model, and more memory than a device has.

It warns of what may be meant: a model that nearly every device holds whole, and a step that fills the memory by
arithmetic.
"""

import logging
import math
from collections.abc import Mapping

import jax

from hcxjax.chips import GIB, chip_of
from hcxjax.mesh import Layout, unbox
from hcxjax.planning.memory import Held, estimated_memory, sharded_bytes
from hcxjax.planning.step import Step
from hcxjax.planning.topology import PodLayout
from hcxjax.update import Recipe, TrainState, abstract_state

_log = logging.getLogger(__name__)

MOST_COPIES = 0.05
"""Share of a device's parameters that it may hold because a dimension did not divide, such as the few KV heads' own."""

MOST_REPLICATED = 0.9
"""Share of a device's parameters and optimizer that may be copies of what others of its mesh hold: of ten devices that
all hold everything."""

ALWAYS_DIVIDED = ("heads", "mlp")
"""Logical axes whose work every device would do whole, if it held them whole."""


def check_start(recipe: Recipe, layout: Layout, shapes: Mapping[str, jax.ShapeDtypeStruct] | None) -> None:
    """Looks at shapes and devices, makes no array.

    Args:
      shapes: of the batch's arrays, where they are known before data is read.
    Raises:
      ValueError: names the axis, the size, and what to change.
    """
    if len(layout.chosen) > 1:
        _check_division(recipe, layout)
    if shapes is not None and "tokens_BT" in shapes:
        _check_length(layout, shapes["tokens_BT"].shape[1])
    limit = device_memory(layout)
    if len(layout.chosen) > 1 or limit is not None:
        state = abstract_state(recipe, layout)
        _check_replicas(state, layout)
        if limit is not None:
            _check_memory(recipe, layout, state, shapes, limit)


def device_memory(layout: Layout) -> float | None:
    """Bytes that a program may take of a device: as the device says, else by the table of chips; None of a CPU."""
    device = layout.chosen[0]
    if device.platform == "cpu":
        return None
    told = device.memory_stats() if device.process_index == jax.process_index() else None
    if told and "bytes_limit" in told:
        return float(told["bytes_limit"])
    chip = chip_of(device.device_kind)
    return None if chip is None else chip.memory / chip.devices


def _check_division(recipe: Recipe, layout: Layout) -> None:
    boxed = jax.eval_shape(recipe.objective.init, jax.random.key(0))
    held = sharded_bytes(
        jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            unbox(boxed),
            layout.param_shardings(boxed),
        )
    )
    copies = 0.0
    undivided = layout.undivided(boxed)
    for found in undivided:
        if found.logical in ALWAYS_DIVIDED:
            raise ValueError(f"{found}: each device would do the work of all")
        if found.logical == "kv_heads" and found.parts % found.size:
            raise ValueError(
                f"{found}, and {found.parts} is no multiple of {found.size} either: query heads of a device would "
                "share no single KV head. Make DecoderConfig.num_kv_heads or the mesh axis a multiple of the other"
            )
        copies += found.bytes * (1 - 1 / found.parts)
    if copies > MOST_COPIES * held and copies > GIB / 4:
        largest = max(undivided, key=lambda found: found.bytes)
        raise ValueError(
            f"of {held / GIB:.2f} GiB of parameters a device, {copies / GIB:.2f} are copies of what others hold; "
            f"at most {MOST_COPIES:.0%} may be. The largest: {largest}"
        )


def _check_replicas(state: TrainState, layout: Layout) -> None:
    """Warns: small models are trained so on purpose, and whether a large one fits is judged by the memory."""
    leaves = jax.tree.leaves(state)
    held, devices = sharded_bytes(state), len(layout.chosen)
    copies = held - sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) / devices
    if copies <= MOST_REPLICATED * held or copies <= GIB:
        return
    dividing = {name for leaf in leaves for name in jax.tree.leaves(tuple(leaf.sharding.spec))}
    idle = [f"Layout.{axis} = {size}" for axis, size in layout.mesh.shape.items() if size > 1 and axis not in dividing]
    _log.warning(
        "a device holds %.1f GiB of parameters and optimizer, of which %.1f are copies of what others of %d devices "
        "hold: nothing of them is divided over %s. Layout.fsdp (%d) and Layout.tensor (%d) divide them",
        held / GIB,
        copies / GIB,
        devices,
        " x ".join(idle),
        layout.mesh.shape["fsdp"],
        layout.mesh.shape["tensor"],
    )


def _check_length(layout: Layout, length: int) -> None:
    axes = layout.sharding("length").spec
    names = jax.tree.leaves(tuple(axes))
    parts = math.prod(layout.mesh.shape[name] for name in names)
    if parts > 1 and length % (2 * parts):
        raise ValueError(
            f"LENGTH is {length}; it must be a multiple of {2 * parts}, two chunks a device "
            f"(Layout.{names[0]} is {parts})"
        )


def _check_memory(
    recipe: Recipe,
    layout: Layout,
    state: TrainState,
    shapes: Mapping[str, jax.ShapeDtypeStruct] | None,
    limit: float,
) -> None:
    held = Held.of(state, layout.abstract_batch(shapes or {}))
    gradients = held.trained * (2 if recipe.accumulate > 1 else 1)
    certain = held.parameters + held.optimizer + gradients
    if certain > limit:
        raise ValueError(
            f"a device holds {limit / GIB:.1f} GiB; parameters ({held.parameters / GIB:.1f}), optimizer "
            f"({held.optimizer / GIB:.1f}) and gradients ({gradients / GIB:.1f}) alone take {certain / GIB:.1f}. "
            "Divide them over more devices: "
            f"Layout.fsdp is {layout.fsdp}, Layout.tensor {layout.tensor}, Layout.pipe {layout.pipe}"
        )
    step = Step(recipe, layout, shapes or {})
    if not step.is_language_model:
        return
    memory = estimated_memory(step, PodLayout.over(layout, layout.chosen), held)
    if memory.total > limit:
        _log.warning(
            "by arithmetic a device needs %.1f GiB (state %.1f, activations %.1f, temporaries %.1f) and has %.1f: "
            "more ACCUMULATE, DecoderConfig.remat = 'full' or a smaller BATCH take less; tools/plan.py compiles it, to "
            "be sure",
            memory.total / GIB,
            certain / GIB,
            memory.activations / GIB,
            memory.temporaries / GIB,
            limit / GIB,
        )
