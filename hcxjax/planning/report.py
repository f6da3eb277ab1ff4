"""Plans as Markdown, which reads well on a terminal too, and says everywhere what is compiled and what arithmetic."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

from hcxjax.planning.plan import COMPILED, Plan

BOUND = (
    "Bounds, not measurements: the least time is what the busiest resource needs at its maker's best rate, all others "
    "hidden behind it. No run on chips stands behind any figure here."
)


def report(plan: Plan, tokens: float | None = None) -> list[str]:
    """Lines of Markdown about one plan.

    Args:
      tokens: a budget to give days and chip-hours for.
    """
    step = plan.step
    mesh = " x ".join(f"{name.partition('.')[2]}={size}" for name, size in step.bindings().items() if "Layout" in name)
    remat = f", remat {step.model.remat}" if step.is_language_model else ""
    return [
        f"## {plan.pod.described}",
        "",
        f"{step.rows:,} rows of {step.length:,} tokens an update ({step.tokens:,}); mesh {mesh}; "
        f"microbatches {step.recipe.accumulate}{remat}",
        "",
        *_origin(plan),
        "",
        *_memory(plan),
        "",
        *_collectives(plan),
        "",
        *_roofline(plan),
        "",
        *_budget(plan, tokens),
    ]


def _origin(plan: Plan) -> list[str]:
    if plan.compiled is None:
        return ["**Arithmetic**: nothing was compiled; memory and collectives are estimates (docs/planning.md)."]
    versions = ", ".join(f"{name} {version}" for name, version in plan.compiled.versions.items())
    lines = [
        f"**Compiled** by {versions} in {plan.compiled.seconds:.0f} s: memory, collectives and matmul FLOPs are the "
        "program's own. Times are arithmetic over them."
    ]
    if plan.compiled.uncounted:
        lines.append(f"Not counted, because they do not say what they do: {', '.join(plan.compiled.uncounted)}.")
    if plan.compiled.moved_leaves:
        lines.append(
            "These leave an update laid out otherwise than they entered it, so that the next one compiles again: "
            f"{', '.join(plan.compiled.moved_leaves[:8])}."
        )
    return lines


def _memory(plan: Plan) -> list[str]:
    limit = plan.pod.device_memory
    what = "a chip" if plan.pod.chip.devices == 1 else f"a device (a {plan.pod.chip.name} chip is two)"
    lines = [f"| memory of {what} | GB | share of {limit / 1e9:.1f} GB | |", "|---|---:|---:|---|"]
    exact = ("parameters", "optimizer", "batch")
    for kind, size in dataclasses.asdict(plan.memory).items():
        known = "by sharding, exact" if kind in exact else plan.origin
        lines.append(f"| {kind} | {size / 1e9:.2f} | {size / limit:.1%} | {known} |")
    verdict = plan.origin if plan.fits else f"**does not fit**, {plan.origin}"
    lines.append(f"| total | {plan.memory.total / 1e9:.2f} | {plan.memory.total / limit:.1%} | {verdict} |")
    return lines


def _collectives(plan: Plan) -> list[str]:
    if not plan.collectives:
        return ["No collectives: every device works alone."]
    groups: dict[tuple[str, str], list] = {}
    for one in plan.collectives:
        if not one.total:  # of groups of one device
            continue
        along = " + ".join(one.axes) or "none"
        groups.setdefault((along if one.whole else f"a part of {along}", one.kind), []).append(one)
    lines = [
        f"| along | collective ({plan.origin}) | times an update | GB a chip sends | largest: MB, from |",
        "|---|---|---:|---:|---|",
    ]
    for (along, kind), ones in sorted(groups.items(), key=lambda item: -_total(item[1])):
        largest = max(ones, key=lambda one: one.total)
        place = f", {_place(largest.source)}" if plan.origin == COMPILED else ""
        lines.append(
            f"| {along} | {'between slices' if kind == 'send' else kind} | {sum(one.times for one in ones):,.0f} "
            f"| {_total(ones) / 1e9:.3f} | {largest.payload / 1e6:,.1f}{place} |"
        )
    return lines


def _total(ones: Iterable) -> float:
    return sum(one.total for one in ones)


def _place(source: str) -> str:
    """The tail of an `op_name`, which names the layer; what XLA made up itself has none."""
    parts = [part for part in source.split("/") if part not in ("while", "body", "closed_call", "checkpoint")]
    return "/".join(parts[-3:]) or "(XLA does not say)"


def _roofline(plan: Plan) -> list[str]:
    roofline, chips = plan.roofline, plan.pod.chips
    lines = [BOUND, "", "| least time of an update, arithmetic | ms | |", "|---|---:|---|"]
    for name, seconds in sorted(roofline.seconds.items(), key=lambda item: -item[1]):
        lines.append(f"| {name} | {seconds * 1e3:,.1f} | {'bounds' if name == roofline.bound_by else ''} |")
    lines.append(f"| if nothing overlapped | {roofline.serial * 1e3:,.1f} | |")
    again = plan.flops * plan.pod.devices / plan.step.flops
    return [
        *lines,
        "",
        f"Model FLOPs of an update: {plan.step.flops:.4g}; the chips run {again:.2f} times as many ({plan.origin}): "
        f"what is computed again and masked scores included. MFU is at most **{plan.mfu_bound:.1%}** of {chips:,} x "
        f"{plan.pod.chip.flops / 1e12:,.0f} TFLOP/s, bound by {roofline.bound_by}.",
    ]


def _budget(plan: Plan, tokens: float | None) -> list[str]:
    lines = [f"At most {plan.tokens_per_day:.4g} tokens a day."]
    if tokens is not None:
        lines.append(
            f"{tokens:.4g} tokens take at least {plan.days(tokens):.3g} days, "
            f"{plan.chip_hours(tokens):,.0f} chip-hours."
        )
    return lines


def candidates(plans: Sequence[Plan], tried: int) -> list[str]:
    """A table of the best variants of a search."""
    lines = [
        f"{tried:,} variants were estimated; the best of those that fit, by arithmetic:",
        "",
        "| pod | mesh | microbatches | remat | GB | ms at least | MFU at most | bound by |",
        "|---|---|---:|---|---:|---:|---:|---|",
    ]
    for plan in plans:
        mesh = " x ".join(str(size) for name, size in plan.step.bindings().items() if "Layout" in name)
        lines.append(
            f"| {plan.pod.name} | {mesh} | {plan.step.recipe.accumulate} | {plan.step.model.remat} "
            f"| {plan.memory.total / 1e9:.1f} | {plan.roofline.bound * 1e3:,.1f} | {plan.mfu_bound:.1%} "
            f"| {plan.roofline.bound_by} |"
        )
    return lines


def bindings(plan: Plan) -> str:
    """What to append to the training command."""
    return " ".join(f"--gin.{name}={value}" for name, value in plan.step.bindings().items())


def rounded(number: float, digits: int = 4) -> float:
    """To so many significant digits, for files that people compare."""
    return 0.0 if not number else round(number, digits - 1 - math.floor(math.log10(abs(number))))
