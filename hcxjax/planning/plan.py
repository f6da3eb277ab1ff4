"""A plan: what an update takes of a pod, compiled or by arithmetic, and what that bounds."""

import dataclasses
import functools
from typing import Any

from hcxjax.planning.collectives import Collective
from hcxjax.planning.compiled import Compiled, compile_step
from hcxjax.planning.memory import Held, Memory, estimated_memory
from hcxjax.planning.pods import Pod
from hcxjax.planning.roofline import Roofline
from hcxjax.planning.shares import Share
from hcxjax.planning.step import Step
from hcxjax.planning.topology import PodLayout
from hcxjax.planning.traffic import estimated_collectives, moved_bytes
from hcxjax.planning.wiring import Wiring
from hcxjax.update import Recipe, TrainState, boxed_state, laid_out

COMPILED, ARITHMETIC = "compiled", "arithmetic"

DAY = 24 * 60 * 60


@dataclasses.dataclass(frozen=True)
class Plan:
    """One step on one pod.

    Attributes:
      step, pod: what is planned, and where.
      origin: `COMPILED` where memory, collectives and matmuls are those of a compiled program, else `ARITHMETIC`. The
        roofline is arithmetic in either case.
      memory: of one of jax's devices.
      collectives: that one device takes part in.
      flops: that one device runs in matmuls.
      roofline: least times.
      compiled: the program's own account; None of arithmetic.
    """

    step: Step
    pod: Pod
    origin: str
    memory: Memory
    collectives: tuple[Collective, ...]
    flops: float
    roofline: Roofline
    compiled: Compiled | None = None

    @property
    def fits(self) -> bool:
        """Does it? XLA refuses to compile what does not by its own count, which leaves out a little of this one."""
        return self.memory.total <= self.pod.device_memory

    @property
    def mfu_bound(self) -> float:
        """Model FLOPs over what the chips could do in the least time: no run is better, and none was measured."""
        return self.step.flops / (self.pod.chips * self.pod.chip.flops * self.roofline.bound)

    @property
    def tokens_per_day(self) -> float:
        """At most."""
        return self.step.tokens / self.roofline.bound * DAY

    def days(self, tokens: float) -> float:
        """At least, for so many tokens."""
        return tokens / self.tokens_per_day

    def chip_hours(self, tokens: float) -> float:
        """At least, for so many tokens."""
        return self.days(tokens) * 24 * self.pod.chips

    def summary(self) -> dict[str, Any]:
        """All of it as numbers and names, for a file."""
        by_axis: dict[str, dict[str, float]] = {}
        for one in self.collectives:
            kinds = by_axis.setdefault("+".join(one.axes) or "none", {})
            kinds[one.kind] = kinds.get(one.kind, 0.0) + one.total
        told = {
            "pod": self.pod.name,
            "slices": self.pod.slices,
            "chips": self.pod.chips,
            "origin": self.origin,
            "step": {**self.step.bindings(), "rows": self.step.rows, "length": self.step.length},
            "memory_bytes": {**dataclasses.asdict(self.memory), "total": self.memory.total},
            "memory_limit_bytes": self.pod.device_memory,
            "collective_bytes": by_axis,
            "model_flops": self.step.flops,
            "device_flops": self.flops,
            "least_seconds": dict(self.roofline.seconds),
            "bound_by": self.roofline.bound_by,
            "step_seconds_bound": self.roofline.bound,
            "mfu_bound": self.mfu_bound,
            "tokens_per_day_bound": self.tokens_per_day,
        }
        if self.compiled is not None:
            told |= {
                "uncounted": list(self.compiled.uncounted),
                "moved_leaves": list(self.compiled.moved_leaves),
                "compile_seconds": self.compiled.seconds,
                "versions": self.compiled.versions,
            }
        return told


@dataclasses.dataclass(frozen=True)
class Site:
    """A mesh on a pod: what variants of a step share that differ in nothing else.

    Attributes:
      layout: over as many devices as the pod has.
      held: by each of them.
    """

    pod: Pod
    layout: PodLayout
    held: Held

    @classmethod
    def of(cls, step: Step, pod: Pod) -> "Site":
        """The step's own mesh. ValueError where it cannot be laid over the pod, or the batch not over it."""
        layout = step.on(pod)
        layout.check_batch(step.rows)
        state = laid_out(_boxed(dataclasses.replace(step.recipe, accumulate=1)), layout)
        return cls(pod, layout, Held.of(state, layout.abstract_batch(step.shapes)))

    @functools.cached_property
    def wiring(self) -> Wiring:
        """The pod's, for this mesh. ValueError where its slices cannot be divided so."""
        return Wiring.of(self.pod, self.layout.sizes)


@functools.lru_cache(maxsize=4)
def _boxed(recipe: Recipe) -> TrainState:
    """`boxed_state`, which is the same on all meshes and takes longer than all else."""
    return boxed_state(recipe)


def estimate(step: Step, site: Site) -> Plan:
    """By arithmetic, of a language model; nothing is compiled and no compiler is needed.

    Raises:
      ValueError: the mesh cannot be divided over the pod's slices, or the batch over the mesh, or it is no language
        model.
    """
    _ = step.objective
    pod, layout = site.pod, site.layout
    layout.check_batch(step.rows, step.recipe.accumulate)
    flops = Share.of(step, layout).flops
    collectives = estimated_collectives(step, pod, layout)
    moved = moved_bytes(step, layout, site.held.trained)
    return Plan(
        _resolved(step, layout),
        pod,
        ARITHMETIC,
        estimated_memory(step, layout, site.held),
        collectives,
        flops,
        Roofline.of(pod, site.wiring, flops, moved, collectives, step.eight_bits),
    )


def _resolved(step: Step, layout: PodLayout) -> Step:
    """The step with sizes in place of -1."""
    return dataclasses.replace(step, layout=dataclasses.replace(step.layout, **layout.sizes))


def compiled_plan(step: Step, pod: Pod, devices: list[Any]) -> Plan:
    """From the program that XLA compiles for `devices` (`compile_only_devices`), which takes minutes.

    Bytes between HBM and cores stay arithmetic, and are left out where that does not know the objective. Where a
    program has kernels or loops that do not say how much they compute, arithmetic stands in for all FLOPs if it says
    more.

    Raises:
      ValueError: the mesh cannot be laid over the pod, or the batch not over the mesh.
      DoesNotFitError: it needs more memory than a device has.
    """
    layout = PodLayout.over(step.layout, devices)
    wiring = Wiring.of(pod, layout.sizes)
    layout.check_batch(step.rows, step.recipe.accumulate)
    compiled = compile_step(step, layout, wiring)
    flops, moved = compiled.flops, 0.0
    if step.is_language_model:
        moved = moved_bytes(step, layout, compiled.trained)
    if compiled.uncounted:
        least = Share.of(step, layout).flops if step.is_language_model else step.flops / pod.devices
        flops = max(flops, least)
    roofline = Roofline.of(pod, wiring, flops, moved, compiled.collectives, step.eight_bits)
    step = _resolved(step, layout)
    return Plan(step, pod, COMPILED, compiled.memory, compiled.collectives, flops, roofline, compiled)
