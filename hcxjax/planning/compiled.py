"""What XLA says of the train step that it has compiled for a pod: facts, as opposed to estimates."""

import dataclasses
import re
import time
from typing import Any

import jax
import jaxlib.version

from hcxjax.planning.collectives import KINDS, Collective, collectives
from hcxjax.planning.hlo import Executed, Program
from hcxjax.planning.matmuls import matmul_flops, unknown_kernels
from hcxjax.planning.memory import Held, Memory
from hcxjax.planning.shares import Share
from hcxjax.planning.step import Step
from hcxjax.planning.topology import PodLayout
from hcxjax.planning.wiring import Wiring
from hcxjax.update import abstract_state, lowered_update


class DoesNotFitError(ValueError):
    """The step was compiled, and needs more memory than a device has."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled train step.

    Attributes:
      memory: of one device. Parameters, optimizer and batch are what their shardings say; activations and gradients
        what the loops over layers lay down; temporaries are the rest of what XLA takes, its code and padding included.
      trained: bytes of the parameters that train.
      arguments: bytes that XLA gives to what an update is given: state and batch, with what its tiles add.
      collectives: that one device takes part in.
      flops: of one device's matmuls.
      uncounted: kernels that may hold matmuls and do not say so, loops of unknown length, whose bodies count once, and
        computations that are run in a way that is not known.
      moved_leaves: paths in the state that come out of an update with another sharding than they went in with, so that
        the next one would compile again.
      seconds: that compiling took.
      versions: of what compiled it.
    """

    memory: Memory
    trained: float
    arguments: float
    collectives: tuple[Collective, ...]
    flops: float
    uncounted: tuple[str, ...]
    moved_leaves: tuple[str, ...]
    seconds: float
    versions: dict[str, str]


def compile_step(step: Step, layout: PodLayout, wiring: Wiring) -> Compiled:
    """Compiles the update that training would run, for devices that are not there.

    Args:
      layout: over compile-only devices.
    Raises:
      DoesNotFitError: it needs more memory than there is.
    """
    with layout.active():
        state = abstract_state(step.recipe, layout)
        batch = layout.abstract_batch(step.shapes)
        started = time.monotonic()
        try:
            program = lowered_update(step.recipe, state, batch).compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise DoesNotFitError(_too_much(str(error))) from error
        seconds = time.monotonic() - started
    parsed = Program.parse(program.as_text() or "")
    executed = parsed.executed()
    held = Held.of(state, batch)
    said = program.memory_analysis()
    assert said is not None, "XLA says what a program takes on TPUs, GPUs and CPUs"
    return Compiled(
        memory=_memory(said, Memory(held.parameters, held.optimizer, held.batch, *_kept(parsed, step, layout), 0.0)),
        trained=held.trained,
        arguments=said.argument_size_in_bytes,
        collectives=collectives(executed, layout.sizes, wiring.across, one_program=layout.chosen[0].platform != "tpu"),
        flops=matmul_flops(executed),
        uncounted=(*unknown_kernels(executed), *executed.endless, *_missed(parsed, executed)),
        moved_leaves=_moved(state, program.output_shardings[0]),
        seconds=seconds,
        versions=_versions(),
    )


def _missed(program: Program, executed: Executed) -> list[str]:
    """Computations with matmuls or collectives that are run in a way that is not known."""
    watched = {"dot", "convolution", *KINDS, *(f"{kind}-start" for kind in KINDS)}
    return [
        name for name in executed.unreached if any(one.opcode in watched for one in program.computations[name].values())
    ]


def _kept(program: Program, step: Step, layout: PodLayout) -> tuple[float, float]:
    """(bytes of activations, bytes of gradients) that the loops over layers lay down; 0 where layers are not known."""
    if not step.is_language_model:
        return 0.0, 0.0
    sizes = {False: 0.0, True: 0.0}
    for loop, shape in program.stacked(Share.of(step, layout).turns):
        if loop.source.endswith("/while"):  # not those that XLA makes of one matmul and its collective
            sizes["transpose(" in loop.source] += shape.size
    return sizes[False], sizes[True]


def _memory(said: Any, known: Memory) -> Memory:
    """XLA's own account of a device: what is not known already is temporary."""
    # What is donated is counted among the arguments and among the outputs.
    total = (
        said.argument_size_in_bytes
        + said.output_size_in_bytes
        - said.alias_size_in_bytes
        + said.temp_size_in_bytes
        + said.generated_code_size_in_bytes
    )
    return dataclasses.replace(known, temporaries=max(0.0, total - known.total))


def _moved(state: Any, shardings: Any) -> tuple[str, ...]:
    """Paths of leaves that leave an update laid out otherwise than they entered it."""
    before = jax.tree_util.tree_leaves_with_path(dataclasses.replace(state, frozen={}))
    after = jax.tree.leaves(shardings)
    return tuple(
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, leaf), sharding in zip(before, after, strict=True)
        if not sharding.is_equivalent_to(leaf.sharding, leaf.ndim)
    )


def _too_much(message: str) -> str:
    """XLA's complaint in a sentence."""
    found = re.search(r"([\d.]+[KMG])\)? (?:exceeds available HBM|of) \(?([\d.]+[KMG])", message)
    amounts = f"XLA would need {found[1]} of the {found[2]} of HBM that a device has" if found else message[:300]
    return (
        f"the step does not fit: {amounts}. Divide it further (Layout.fsdp, Layout.tensor, ACCUMULATE), or keep less "
        "(DecoderConfig.remat)"
    )


def _versions() -> dict[str, str]:
    import importlib.metadata

    versions = {"jax": jax.__version__, "jaxlib": jaxlib.version.__version__}
    for library in ("libtpu", "jax-cuda13-plugin"):
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
