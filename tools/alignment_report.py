"""Tells what alignment reached on the small world: the known reward before and after PPO, prompt by prompt.

python -m tools.alignment_report --chain runs/chain/0 runs/chain/1 [--output report.md] [--picture curves.png]

A chain is a folder with the runs `reward` and `ppo` (`sft` is measured by PPO at step 0). Gains are paired: the same
prompts before and after, ± their standard error. `--picture` needs the extra `plots`.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hcxjax.evaluation.known_reward import FOLDER
from tools.curves import series

PARTS = ("reward", "truth", "form", "polite", "repetition", "length", "stop_rate", "seq_rep_4")
ENOUGH = 3
"""Standard errors that a gain has to exceed."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m tools.alignment_report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_argument("--chain", nargs="+", type=Path, required=True, metavar="DIR", help="folders of chains")
    arguments.add_argument(
        "--at",
        choices=("last", "best"),
        default="last",
        help="which measurement of PPO: the last, or the one that follows instructions best (default: %(default)s)",
    )
    arguments.add_argument("--output", type=Path, help="a Markdown file (default: standard output)")
    arguments.add_argument("--picture", type=Path, help="a picture of the runs' curves")
    return arguments


class Gain(NamedTuple):
    """A mean before and after, and the paired standard error of their difference."""

    before: float
    after: float
    error: float

    @property
    def errors(self) -> float:
        """The difference in standard errors."""
        difference = self.after - self.before
        if not self.error:
            return math.copysign(math.inf, difference) if difference else 0.0
        return difference / self.error


class Chain(NamedTuple):
    """What a chain reached.

    Attributes:
      name: of its folder.
      prompts: how many were asked.
      step: of PPO, whose answers are compared with those of step 0.
      gains: by part of the known reward.
      accuracy: of the reward model on held-out comparisons, and its 95 % interval.
      bound: accuracy of the known reward itself on them; it was overruled by noise in the others.
      kl: of PPO's last rollout up to `step`, in nats an answer.
    """

    name: str
    prompts: int
    step: int
    gains: Mapping[str, Gain]
    accuracy: tuple[float, float, float]
    bound: float
    kl: float

    @classmethod
    def read(cls, folder: Path, at: str) -> "Chain":
        """ValueError where something was not measured; the message says what."""
        ppo, reward = series(folder / "ppo"), series(folder / "reward")
        step = _step(folder, ppo, at)
        before, after = (_answers(folder, number) for number in (0, step))
        if [line["asked"] for line in before] != [line["asked"] for line in after]:
            raise ValueError(f"{folder}: other prompts were asked at step {step} than at step 0")
        names = [f"eval/preference/{name}" for name in ("accuracy", "low", "high", "floor/margins")]
        share, low, high, bound = (_last(reward, name, folder / "reward") for name in names)
        gains = {part: _gain(_column(before, part), _column(after, part)) for part in PARTS}
        kl = [value for number, value in ppo.get("objective/kl", []) if number <= step] or [math.nan]
        return cls(folder.name, len(before), step, gains, (share, low, high), bound, kl[-1])


def _step(folder: Path, ppo: Mapping[str, list[tuple[int, float]]], at: str) -> int:
    """The measurement that counts."""
    steps = sorted(int(path.stem) for path in (folder / "ppo" / FOLDER).glob("*.jsonl"))
    if not steps or steps[0] != 0 or len(steps) < 2:
        raise ValueError(
            f"{folder / 'ppo' / FOLDER} has {steps or 'no measurement'}; step 0 and a later one are needed"
        )
    if at == "last":
        return steps[-1]
    followed = [(value, number) for number, value in ppo.get("eval/instructions/followed", []) if number in steps[1:]]
    if not followed:
        raise ValueError(f"{folder / 'ppo'} has no eval/instructions/followed after step 0: --at best needs it")
    return max(followed)[1]


def _answers(folder: Path, step: int) -> list[dict]:
    path = folder / "ppo" / FOLDER / f"{step:08d}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _last(found: Mapping[str, list[tuple[int, float]]], name: str, run: Path) -> float:
    if name not in found:
        raise ValueError(
            f"{run} has not told {name}: its evaluators must hold PairAccuracy, on comparisons of the world"
        )
    return found[name][-1][1]


def _column(lines: Sequence[Mapping], part: str) -> np.ndarray:
    return np.array([line[part] for line in lines], np.float64)


def _gain(before: np.ndarray, after: np.ndarray) -> Gain:
    error = float(np.std(after - before, ddof=1) / math.sqrt(len(before))) if len(before) > 1 else math.nan
    return Gain(float(before.mean()), float(after.mean()), error)


def table(chains: Sequence[Chain]) -> str:
    """The report in Markdown."""
    lines = ["| chain | |" + "".join(f" {part} |" for part in PARTS), "|---|---|" + "---|" * len(PARTS)]
    for chain in chains:
        gains = chain.gains.values()
        lines.append(f"| {chain.name} | after SFT |" + "".join(f" {gain.before:.3f} |" for gain in gains))
        lines.append(f"| | after PPO, step {chain.step} |" + "".join(f" {gain.after:.3f} |" for gain in gains))
        cells = (f" {gain.after - gain.before:+.3f} ± {gain.error:.3f} |" for gain in gains)
        lines.append("| | gain |" + "".join(cells))
    lines += ["", "| chain | prompts | gain of the reward | RM accuracy | known reward's own | of it | KL |"]
    lines.append("|" + "---|" * 7)
    for chain in chains:
        share, low, high = chain.accuracy
        lines.append(
            f"| {chain.name} | {chain.prompts} | {chain.gains['reward'].errors:+.1f} standard errors | {share:.3f} "
            f"({low:.3f} to {high:.3f}) | {chain.bound:.3f} | {share / chain.bound:.3f} | {chain.kl:.3f} |"
        )
    up = sum(chain.gains["reward"].errors > ENOUGH for chain in chains)
    lines += [
        "",
        f"The known reward rose by more than {ENOUGH} paired standard errors in {up} of {len(chains)} chains.",
    ]
    return "\n".join(lines) + "\n"


PANELS = {
    "known reward": ("eval/world/reward", "eval/world/truth", "eval/world/form", "eval/world/polite"),
    "reward model and KL": ("objective/score", "objective/kl"),
    "length and form": ("eval/world/length", "eval/instructions/followed"),
    "repetition": ("eval/world/repetition", "eval/world/seq_rep_4"),
}
"""Title → metrics of PPO's run."""


def draw(folders: Sequence[Path], output: Path) -> None:
    """A panel a group of metrics; a line style a chain. A length is drawn in tens of tokens, to share an axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(4.5 * len(PANELS), 4), layout="constrained")
    for folder, style in zip(folders, ["-", "--", ":", "-."] * len(folders), strict=False):
        metrics = series(folder / "ppo")
        for axis, names in zip(axes, PANELS.values(), strict=True):
            for color, name in enumerate(name for name in names if name in metrics):
                steps, values = zip(*metrics[name], strict=True)
                tens = name.endswith("length")
                label = f"{folder.name} {name}" + (" / 10" if tens else "")
                heights = [value / 10 for value in values] if tens else values
                axis.plot(steps, heights, style, color=f"C{color}", linewidth=0.9, label=label)
    for axis, title in zip(axes, PANELS, strict=True):
        axis.set(title=title, xlabel="update")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=7)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)


def main(argv: list[str] | None = None) -> int:
    """Writes the report and the picture; 1 where something is wrong."""
    options = parser().parse_args(argv)
    try:
        report = table([Chain.read(folder, options.at) for folder in options.chain])
        if options.picture:
            draw(options.chain, options.picture)
    except (ValueError, OSError, ImportError) as error:
        print(f"alignment_report: {error}", file=sys.stderr)
        return 1
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(report, encoding="utf-8")
    else:
        print(report, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
