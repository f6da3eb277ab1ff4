"""Meshes, microbatches and remat policies of a step on a pod, tried by arithmetic."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

from hcxjax.mesh import AXES
from hcxjax.models.config import REMAT
from hcxjax.placement import across_slices
from hcxjax.planning.flops import TILE
from hcxjax.planning.memory import estimated_memory
from hcxjax.planning.plan import Plan, Site, estimate
from hcxjax.planning.pods import Pod
from hcxjax.planning.step import Step

SEARCHED: tuple[str, ...] = ("pipe", "data", "fsdp", "context", "tensor")
"""Mesh axes whose sizes are varied; the others stay as the run has them."""

FULL = 0.9
"""Share of a device's memory that an estimate may fill: estimates are off by about as much (docs/planning.md)."""

NEAR = 0.01
"""Pods whose MFU bounds differ by no more than this are as good; the smaller one is taken."""


@dataclasses.dataclass(frozen=True)
class Tried:
    """What a search has found.

    Attributes:
      plans: those that fit, of every mesh and remat policy the one of fewest microbatches, the best first.
      tried: how many variants were estimated.
      tightest: bytes of the variant that needs least memory, for a message where none fits.
    """

    plans: tuple[Plan, ...]
    tried: int
    tightest: float


def search(step: Step, pods: Sequence[Pod]) -> dict[Pod, Tried]:
    """All variants of the step on each pod, by the time that `Roofline.ranking` gives them.

    Raises:
      ValueError: the arithmetic does not know the objective, or no mesh of that many devices can be.
    """
    return {pod: _tried(step, pod) for pod in pods}


def _tried(step: Step, pod: Pod) -> Tried:
    plans, tightest, tried = [], None, 0
    for site in sites(step, pod):
        for remat in REMAT:
            # More microbatches than it takes to fit cost time and save none.
            for accumulate in _microbatches(step, site):
                variant = step.changed(site.layout.sizes, accumulate, remat)
                memory = estimated_memory(variant, site.layout, site.held)
                tried += 1
                tightest = min(memory.total, tightest or memory.total)
                if memory.total <= FULL * pod.device_memory:
                    plans.append(estimate(variant, site))
                    break
    if tightest is None:
        raise ValueError(
            f"no mesh over {', '.join(SEARCHED)} divides {pod.described} and a batch of {step.rows} rows; make BATCH a "
            "multiple of more powers of two, or take fewer chips"
        )
    plans.sort(key=lambda plan: (plan.roofline.ranking, plan.memory.total))
    return Tried(tuple(plans), tried, tightest)


def pick(found: Mapping[Pod, Tried], tokens: float | None = None, days: float | None = None) -> Plan:
    """The best plan of several pods: the pod of fewest FLOP/s that is in time, or of those that do about as well.

    Args:
      tokens, days: a budget, and in how many days it is to be spent by the bound; the fastest pod where none is in
        time. None: of the pods whose `ranked_mfu` is within `NEAR` of the best.
    Raises:
      ValueError: it fits on none of them.
    """
    best = [tried.plans[0] for tried in found.values() if tried.plans]
    if not best:
        told = "; ".join(
            f"{pod.name} has {pod.device_memory / 1e9:.1f} GB a device and the least is {tried.tightest / 1e9:.1f}"
            for pod, tried in found.items()
        )
        raise ValueError(f"the step fits on none of these pods: {told}. Take more chips, or fewer rows (BATCH)")
    if tokens is not None and days is not None:
        able = [plan for plan in best if plan.days(tokens) <= days] or [min(best, key=lambda plan: plan.days(tokens))]
    else:
        top = max(map(ranked_mfu, best))
        able = [plan for plan in best if ranked_mfu(plan) >= top - NEAR]
    return min(able, key=lambda plan: plan.pod.chips * plan.pod.chip.flops)


def ranked_mfu(plan: Plan) -> float:
    """MFU in the time by which variants are compared: for comparing alone, it is no forecast."""
    return plan.mfu_bound * plan.roofline.bound / plan.roofline.ranking


def sites(step: Step, pod: Pod) -> Iterator[Site]:
    """Every mesh that can be, for the step on the pod."""
    fixed = math.prod(getattr(step.layout, axis) for axis in AXES if axis not in SEARCHED)
    if fixed < 1 or pod.devices % fixed:
        return
    for sizes in factorizations(pod.devices // fixed, len(SEARCHED)):
        axes = dict(zip(SEARCHED, sizes, strict=True))
        rows = math.prod(axes.get(axis, 1) for axis in ("data", "fsdp"))
        if not _possible(step, axes) or step.rows % rows:
            continue
        try:
            site = Site.of(step.changed(axes, 1, step.model.remat), pod)
            across_slices(site.layout.sizes, pod.parts)
        except ValueError:  # slices that the axes cannot be divided over, or rows that rules divide otherwise
            continue
        yield site


def _possible(step: Step, axes: Mapping[str, int]) -> bool:
    """Do the axes divide what they are to divide, so that nothing is done twice, and leave tiles of attention whole?"""
    model, tensor, stages = step.model, axes.get("tensor", 1), axes.get("pipe", 1)
    divided = {
        "fsdp": (model.embed_dim,),
        "tensor": (model.num_heads, model.mlp_dim, model.vocab_size),
        # Of a row, a device has two chunks.
        "context": (max(1, step.length // (2 * TILE)),),
    }
    groups = stages * model.pipe_repeats if stages > 1 else 1
    # A device has KV heads of its own, or shares one.
    keys = model.num_kv_heads % tensor == 0 or tensor % model.num_kv_heads == 0
    whole = all(size % axes.get(axis, 1) == 0 for axis, sizes in divided.items() for size in sizes)
    return whole and keys and model.num_layers % groups == 0


def _microbatches(step: Step, site: Site) -> list[int]:
    """How many there can be in an update, the fewest first: stages take `pipe_rows` rows of a device at a time."""
    rows = step.rows // site.layout.batch_shards
    at_once = step.model.pipe_rows if site.layout.sizes["pipe"] > 1 else 1
    return [number for number in divisors(rows) if rows // number % at_once == 0]


def factorizations(number: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Every way to write `number` as a product of `parts` factors, in order."""
    if parts == 1:
        yield (number,)
        return
    for first in divisors(number):
        for rest in factorizations(number // first, parts - 1):
            yield (first, *rest)


def divisors(number: int) -> Sequence[int]:
    """Of a positive number, rising."""
    return [part for part in range(1, number + 1) if number % part == 0]
