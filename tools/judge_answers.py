"""Has judges compare what a run of PPO answers to held-out prompts, checkpoint by checkpoint, with what it began from.

python -m tools.judge_answers --run runs/files_ppo --pairs 'jsonl:other_pairs/*.jsonl.gz' \
    --judge runs/other_reward --output report.md --picture curve.png

A judge should have learnt from other comparisons than the reward model of the run has: from `--pairs` a bag of bigrams
learns, four fifths of the prompts; `--judge` is the run of a reward model. Each comes with its own accuracy on
comparisons that it has not learnt from: one that is right in 55 of 100 says little. Shares are of prompts whose answer
is preferred to that of the model which the run began from (0.5: neither is), gains are in the judge's own unit; ± is
the standard error over prompts. `--picture` needs the extra `plots`.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hcxjax.checkpoint import CheckpointError
from hcxjax.data.preferences import Preferences
from hcxjax.evaluation.preference_floors import preferred
from tools.answer_judges import BagOfBigrams, Judge, RewardModel
from tools.curves import series
from tools.policy_checkpoints import ROWS, PolicyRun

FOLLOWED = "eval/instructions/followed"
"""What training is stopped on early."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m tools.judge_answers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_argument("--run", type=Path, required=True, metavar="DIR", help="RUN_DIR of a run of PPO")
    arguments.add_argument("--pairs", nargs="+", default=[], metavar="SOURCE", help="jsonl:PATH_OR_GLOB of comparisons")
    arguments.add_argument("--judge", nargs="+", default=[], type=Path, metavar="DIR", help="runs of reward models")
    arguments.add_argument("--count", type=int, default=128, help="prompts of each source (default: %(default)s)")
    arguments.add_argument(
        "--length", type=int, default=512, help="most tokens of prompt and answer in --pairs (default: %(default)s)"
    )
    arguments.add_argument("--steps", nargs="+", type=int, help="checkpoints (default: all that are kept)")
    arguments.add_argument("--answers", type=Path, metavar="DIR", help="keep the answers of each step as JSON lines")
    arguments.add_argument("--output", type=Path, help="a Markdown file (default: standard output)")
    arguments.add_argument("--picture", type=Path, metavar="FILE.png", help="judges against the square root of the KL")
    return arguments


class Gain(NamedTuple):
    """The mean of paired numbers and its standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, gains: np.ndarray) -> "Gain":
        """Over prompts."""
        return cls(float(np.mean(gains)), float(np.std(gains, ddof=1) / math.sqrt(len(gains))))

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.error:.3f}"


class Judgement(NamedTuple):
    """What a judge says of a checkpoint: the share that it prefers to the beginning, and by how much."""

    share: Gain
    gain: Gain

    @classmethod
    def of(cls, gains: np.ndarray) -> "Judgement":
        """Of differences, above 0 where the checkpoint's answer is preferred."""
        return cls(Gain.of(preferred(gains)), Gain.of(gains))


class Point(NamedTuple):
    """A checkpoint.

    Attributes:
      step: of the run; 0 is the model that it began from.
      kl: nats an answer between it and that model.
      length: tokens of an answer.
      stopped: share of the answers that come to their end.
      judged: by name of the judge, the run's own reward model first.
    """

    step: int
    kl: float
    length: float
    stopped: float
    judged: Mapping[str, Judgement]


def judges(options: argparse.Namespace, run: PolicyRun, folder: str) -> list[Judge]:
    """The run's own reward model, and those that are asked for.

    Args:
      folder: where comparisons are rendered.
    """
    prompts = run.source.prompts
    found: list[Judge] = [RewardModel(run.judge, Path(str(run.source.reward)), ROWS)]
    if options.pairs:
        sources = {f"pairs{number}": source for number, source in enumerate(options.pairs)}
        preferences = Preferences(sources, prompts.tokenizer, folder, options.length, prompts.template, 0.2)
        found.append(BagOfBigrams(preferences, run.layout))
    found += [RewardModel(run.reward(str(place)), place, ROWS) for place in options.judge]
    if len({judge.name for judge in found}) < len(found):
        raise ValueError("two judges have one name: the folders of --judge and REWARD must have names that differ")
    return found


def measured(run: PolicyRun, asked: Sequence[Judge], steps: Sequence[int], keep: Path | None) -> list[Point]:
    """The beginning and checkpoints `steps`, judged; `keep` is a folder for their answers."""
    before, points = run.answers(0), []
    for step in [0, *(step for step in steps if step)]:
        after = run.answers(step) if step else before
        mask_BT, stopped_B = after.answers(run.prompts.stop_ids)
        judged = {judge.name: Judgement.of(judge.gains(before, after, run.sources)) for judge in asked}
        length = float(mask_BT.sum(axis=1).mean())
        points.append(Point(step, float(run.kl(after).mean()), length, float(stopped_B.mean()), judged))
        if keep:
            keep.mkdir(parents=True, exist_ok=True)
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in run.lines(after))
            (keep / f"{step:08d}.jsonl").write_text(text, encoding="utf-8")
    return points


def table(points: Sequence[Point], asked: Sequence[Judge], followed: Mapping[int, float], count: int) -> str:
    """The report in Markdown.

    Args:
      followed: by step, the share of constrained requests that were followed.
      count: of the prompts.
    """
    lines = ["| judge | accuracy on comparisons that it has not learnt from |", "|---|---|"]
    for judge in asked:
        share, low, high = judge.accuracy
        lines.append(f"| {judge.name} | {share:.3f} ({low:.3f} to {high:.3f}) |")
    names = [judge.name for judge in asked]
    head = ["step", "KL", "length", "stopped", "followed"]
    head += [f"{name}: {what}" for name in names for what in ("share", "gain")]
    lines += ["", f"{count} held-out prompts.", "", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for point in points:
        cells = [f"{point.step}", f"{point.kl:.3f}", f"{point.length:.1f}", f"{point.stopped:.3f}"]
        cells.append(f"{followed[point.step]:.3f}" if point.step in followed else "")
        cells += [str(part) for name in names for part in point.judged[name]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *_stopped_early(points, names, followed)]) + "\n"


def _stopped_early(points: Sequence[Point], names: Sequence[str], followed: Mapping[int, float]) -> list[str]:
    """What the checkpoint that follows instructions best is worth, beside the best there is, by each judge."""
    later = {point.step: point.judged for point in points if point.step}
    known = [step for step in later if step in followed]
    if not known:
        return []
    picked = max(known, key=lambda step: followed[step])
    lines = ["", f"Instructions are followed best at step {picked}."]
    for name in names:
        peak = max(later, key=lambda step: later[step][name].share.mean)
        here, there = (later[step][name].share.mean for step in (picked, peak))
        lines.append(f"{name}: {here:.3f} there, {there:.3f} at its peak, step {peak}.")
    return lines


def draw(points: Sequence[Point], output: Path) -> None:
    """Shares against the square root of the KL, a line a judge."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 4), layout="constrained")
    ordered = sorted(points, key=lambda point: point.kl)
    far = [math.sqrt(max(0.0, point.kl)) for point in ordered]
    for name in points[0].judged:
        shares = [point.judged[name].share for point in ordered]
        axis.errorbar(far, [one.mean for one in shares], [one.error for one in shares], marker="o", label=name)
    axis.set(xlabel="√KL, nats an answer", ylabel="share preferred to the beginning")
    axis.grid(alpha=0.3)
    axis.legend()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    """Writes the report; 1 where something is wrong."""
    options = parser().parse_args(argv)
    try:
        run = PolicyRun(options.run, options.count)
        with tempfile.TemporaryDirectory() as folder:
            asked = judges(options, run, folder)
        points = measured(run, asked, options.steps or run.steps(), options.answers)
        report = table(points, asked, dict(series(options.run).get(FOLLOWED, [])), len(run.numbers))
        if options.picture:
            draw(points, options.picture)
    except (ValueError, OSError, ImportError, CheckpointError) as error:
        print(f"judge_answers: {error}", file=sys.stderr)
        return 1
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(report, encoding="utf-8")
    else:
        print(report, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
