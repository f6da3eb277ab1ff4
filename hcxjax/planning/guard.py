"""What the start of a run refuses: a mesh that does not divide the model, and more memory than a device has.

It warns of what may be meant: a model that nearly every device holds whole, and a step that fills the memory by
arithmetic.
"""

import functools
import logging
import math
from collections.abc import Callable, Mapping

import jax

from hcxjax.chips import GIB, chip_of
from hcxjax.mesh import Layout, unbox
from hcxjax.phases import Phase, Phases
from hcxjax.planning.memory import Held, estimated_memory, sharded_bytes
from hcxjax.planning.step import Step
from hcxjax.planning.topology import PodLayout
from hcxjax.protocols import Shaped
from hcxjax.update import Recipe, TrainState, abstract_state, update

_log = logging.getLogger(__name__)

MOST_COPIES = 0.05
"""Share of a device's parameters that it may hold because a dimension did not divide, such as the few KV heads' own."""

MOST_REPLICATED = 0.9
"""Share of a device's parameters and optimizer that may be copies of what others of its mesh hold: of ten devices that
all hold everything."""

ALWAYS_DIVIDED = ("heads", "mlp")
"""Logical axes whose work every device would do whole, if it held them whole."""


def check_phases(phases: Phases, recipe_of: Callable[[Phase], Recipe], layout: Layout) -> None:
    """`check_start` of every phase: what the last one cannot do is found before the first has run for days.

    Updates of later phases are traced, too, for all else that a trace refuses, such as rows longer than the model's
    context; the first one's is traced soon enough.

    Raises:
      ValueError: names the phase, and what `check_start` names.
    """
    for number, phase in enumerate(phases.phases):
        recipe, shapes = recipe_of(phase), phase.source.shapes() if isinstance(phase.source, Shaped) else None
        try:
            check_start(recipe, layout, shapes, number)
            if number and shapes is not None:
                with layout.active():
                    state, batch = abstract_state(recipe, layout), layout.abstract_batch(shapes)
                    jax.eval_shape(functools.partial(update, recipe), state, batch)
        except ValueError as error:
            if not number:
                raise
            raise ValueError(
                f"phase {number} of the run (Experiment.phases), from update {phases.begin(phase) + 1:,} on: {error}. "
                "LENGTH, BATCH and ACCUMULATE are that phase's own, such as LONG_LENGTH of "
                "gin/stages/long_context.gin"
            ) from error


def check_start(
    recipe: Recipe, layout: Layout, shapes: Mapping[str, jax.ShapeDtypeStruct] | None, phase: int = 0
) -> None:
    """Looks at shapes and devices, makes no array.

    Args:
      shapes: of the batch's arrays, where they are known before data is read.
      phase: its number, for a warning to name.
    Raises:
      ValueError: names the axis, the size, and what to change.
    """
    if len(layout.chosen) > 1:
        _check_division(recipe, layout)
    if shapes is not None and "tokens_BT" in shapes:
        rows, length = shapes["tokens_BT"].shape
        layout.check_batch(rows, recipe.accumulate)
        _check_length(layout, length)
    limit = device_memory(layout)
    if len(layout.chosen) > 1 or limit is not None:
        state = abstract_state(recipe, layout)
        _check_replicas(state, layout)
        if limit is not None:
            _check_memory(recipe, layout, state, shapes, limit, phase)


def device_memory(layout: Layout) -> float | None:
    """Bytes that a program may take of a device; None of a CPU, and of chips that are not known.

    A run of one process takes what its device says, else the table of chips. Several processes all take the table: no
    process can ask another's devices, and all must judge alike. On GPUs the table knows nothing of the share that XLA
    allots itself (XLA_PYTHON_CLIENT_MEM_FRACTION), so that less is refused there.
    """
    device = layout.chosen[0]
    if device.platform == "cpu":
        return None
    told = device.memory_stats() if jax.process_count() == 1 else None
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
    phase: int,
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
            "phase %d: by arithmetic a device needs %.1f GiB (state %.1f, activations %.1f, temporaries %.1f) and has "
            "%.1f: more ACCUMULATE, DecoderConfig.remat = 'full' or a smaller BATCH take less; tools/plan.py "
            "compiles it, to be sure",
            phase,
            memory.total / GIB,
            certain / GIB,
            memory.activations / GIB,
            memory.temporaries / GIB,
            limit / GIB,
        )
