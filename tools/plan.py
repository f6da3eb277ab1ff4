"""Plans a training run for a pod that is not there: compiles its real train step, and says what bounds it.

python -m tools.plan --gin_file=gin/runs/pretrain_1b.gin --gin.CODE=files:src --topology=v5e:8x8 --tokens=21e9
python -m tools.plan --gin_file=... --topology=v5p:4x4x4 --search          tries meshes, remat and microbatches
python -m tools.plan --gin_file=... --topology=v5p --topology=v6e --search picks the pod too, of 16 to 1,024 chips
python -m tools.plan --gin_file=... --topology=v5p:8x8x8 --arithmetic      in a second, and estimated

Compiling for TPUs needs libtpu (pip install 'jax[tpu]'), no TPU; for GPUs jax[cuda13] and --target_config. It takes
minutes. What is compiled and what is arithmetic is said on every line; docs/planning.md explains both. Opens no data.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from hcxjax.main import configure
from hcxjax.planning.pictures import memory_picture, time_picture
from hcxjax.planning.plan import Plan, Site, compiled_plan, estimate
from hcxjax.planning.pods import Pod, usual_pods
from hcxjax.planning.report import bindings, candidates, report
from hcxjax.planning.search import pick, search
from hcxjax.planning.step import Step
from hcxjax.planning.topology import compile_only_devices, without_accelerators
from hcxjax.protocols import Shaped
from hcxjax.tracking import quiet_libraries
from hcxjax.train import Experiment

SHOWN = 10
"""Variants of a search that are listed."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m tools.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = arguments.add_argument
    add("--gin_file", action="append", required=True, metavar="FILE", help="the run; can be repeated")
    add("--gin.NAME=value", dest="_", help="a binding that overrides the files; may be repeated")
    add(
        "--topology",
        action="append",
        required=True,
        metavar="POD",
        help="v5e:8x8, v5p:4x4x4, v6e:16x16, TPU7x:4x4x4, H200:NODESx8; a chip alone: its usual pods, with --search",
    )
    add("--slices", type=int, default=1, help="slices of that topology (default: %(default)s)")
    add("--tokens", type=float, metavar="N", help="a budget, for days and chip-hours")
    add("--days", type=float, metavar="N", help="with --tokens and --search: takes the smallest pod that is in time")
    add("--phase", type=int, default=0, metavar="N", help="of a run with several, from 0 (default: %(default)s)")
    add("--search", action="store_true", help="tries variants by arithmetic and compiles the best")
    add("--compile", type=int, default=3, metavar="N", help="variants of a search to compile (default: %(default)s)")
    add("--arithmetic", action="store_true", help="compiles nothing")
    add("--quick", action="store_true", help="XLA tries less hard: minutes less, other memory and collectives")
    add("--target_config", type=Path, metavar="FILE", help="XLA's description of a GPU (GpuTargetConfigProto, text)")
    add("--page", type=Path, metavar="FOLDER", help="writes plan.md with two pictures, and plan.json")
    return arguments


def step_of(experiment: object, number: int) -> Step:
    """The update of a run's phase. ValueError where its batches have no one shape."""
    if not isinstance(experiment, Experiment):
        raise ValueError("the run file trains nothing, so there is nothing to plan")
    phases = experiment.timeline.phases
    if not 0 <= number < len(phases):
        raise ValueError(f"--phase is {number}; the run has {len(phases)}, from 0")
    phase = phases[number]
    if not isinstance(phase.source, Shaped):
        raise ValueError(
            f"the batches of {type(phase.source).__name__} have several shapes; plans are of runs of packed rows "
            "(PackedTokens)"
        )
    return Step(experiment.recipe(phase), experiment.layout, phase.source.shapes())


def planned(step: Step, options: argparse.Namespace) -> tuple[Plan, list[str]]:
    """(the plan, lines of Markdown about how it was found).

    Raises:
      ValueError: it cannot be, or fits nowhere.
    """
    pods = [pod for text in options.topology for pod in usual_pods(text, options.slices)]
    if options.search:
        return searched(step, pods, options)
    if len(pods) > 1:
        raise ValueError("several pods are only compared with --search; name one, as in --topology=v5p:4x4x4")
    pod = pods[0]
    _ = step.on(pod)
    if options.arithmetic:
        return estimate(step, Site.of(step, pod)), []
    return compiled_plan(step, pod, compile_only_devices(pod, options.target_config)), []


def searched(step: Step, pods: list[Pod], options: argparse.Namespace) -> tuple[Plan, list[str]]:
    """The first of the best variants that compiles, on the pod that is picked."""
    found = search(step, pods)
    best = pick(found, options.tokens, options.days)
    plans = found[best.pod].plans
    lines = candidates(plans[:SHOWN], sum(tried.tried for tried in found.values()))
    if len(pods) > 1:
        firsts = [tried.plans[0] for tried in found.values() if tried.plans]
        lines += ["", f"Picked: {best.pod.described}, of these pods:", "", *candidates(firsts, len(firsts))[2:]]
    if options.arithmetic:
        return best, lines
    compiled, told = compiled_best(plans, options)
    return compiled, [*lines, "", "Compiled, the best first:", "", *told]


def compiled_best(plans: Sequence[Plan], options: argparse.Namespace) -> tuple[Plan, list[str]]:
    """(the best of the first variants that compile, a line about each).

    Those that turn out not to fit are passed over, and so are those that the model refuses when it is traced.

    Raises:
      ValueError: of three times as many as were asked for, none compiles and fits.
    """
    devices = compile_only_devices(plans[0].pod, options.target_config)
    fits, lines = [], []
    for plan in plans[: 3 * options.compile]:
        try:
            compiled = compiled_plan(plan.step, plan.pod, devices)
        except ValueError as error:
            lines.append(f"- {bindings(plan)}: {error}")
            continue
        memory = f"{compiled.memory.total / 1e9:.1f} GB ({plan.memory.total / 1e9:.1f} estimated)"
        if not compiled.fits:
            lines.append(f"- {bindings(plan)}: {memory}, more than the {plan.pod.device_memory / 1e9:.1f} of a device")
            continue
        fits.append(compiled)
        lines.append(
            f"- {bindings(plan)}: {memory}, at least {compiled.roofline.bound * 1e3:,.1f} ms "
            f"({plan.roofline.bound * 1e3:,.1f} estimated)"
        )
        if len(fits) == options.compile:
            break
    if not fits:
        raise ValueError("\n".join([*lines, "none of them compiles and fits; take more chips"]))
    return min(fits, key=lambda plan: plan.roofline.ranking), lines


def write_page(folder: Path, title: str, plan: Plan, lines: list[str]) -> Path:
    """`plan.md`, its pictures, and its numbers as `plan.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.svg").write_text(memory_picture(plan))
    (folder / "time.svg").write_text(time_picture(plan))
    (folder / "plan.json").write_text(json.dumps(plan.summary(), indent=2) + "\n")
    pictures = ["![memory of a device by kind](memory.svg)", "", "![least time by resource](time.svg)"]
    page = folder / "plan.md"
    page.write_text("\n".join([f"# {title}", "", *pictures, "", *lines]) + "\n")
    return page


def main(argv: list[str] | None = None) -> int:
    """Prints the plan; 1 where something is wrong."""
    arguments = sys.argv[1:] if argv is None else argv
    overrides = [argument for argument in arguments if argument.startswith("--gin.")]
    options = parser().parse_args([argument for argument in arguments if argument not in overrides])
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    quiet_libraries()
    without_accelerators()
    if options.quick:
        jax.config.update("jax_exec_time_optimization_effort", -1.0)
    try:
        experiment, _ = configure(options.gin_file, [binding.removeprefix("--gin.") for binding in overrides])
        plan, how = planned(step_of(experiment, options.phase), options)
        lines = [*report(plan, options.tokens), ""]
        lines += [f"To train so: `{bindings(plan)}`", "", *how] if how else []
        print("\n".join(lines))
        if options.page:
            command = "python -m tools.plan " + " ".join(arguments)
            title = f"Plan of {options.gin_file[-1]} on {plan.pod.described}"
            print(write_page(options.page, title, plan, [f"`{command}`", "", *lines]))
    except (ValueError, OSError) as error:
        print(f"plan: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
