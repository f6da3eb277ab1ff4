"""Draws loss and held-out bits per byte of one or more runs from their metrics.jsonl.

python -m tools.curves --run runs/quickstart --output curves.png        (needs the extra `plots`)
"""

import argparse
import json
import sys
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m tools.curves", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--run", nargs="+", type=Path, required=True, metavar="DIR", help="RUN_DIR of training runs")
    arguments.add_argument("--output", type=Path, default=Path("curves.png"), help="picture (default: %(default)s)")
    return arguments


def series(run: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every metric of a run, which may be going on. ValueError where it has told nothing."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{run} has no metrics.jsonl: name the RUN_DIR of a training run")
    found: dict[str, list[tuple[int, float]]] = {}
    for line in path.read_text().splitlines(keepends=True):
        try:
            metrics = json.loads(line)
        except json.JSONDecodeError:
            if line.endswith("\n"):
                raise ValueError(f"{path} has a line that is not JSON: {line[:80]!r}") from None
            break  # the last line is still being written
        for name, value in metrics.items():
            if name != "step" and value is not None:
                found.setdefault(name, []).append((metrics["step"], value))
    return found


def draw(runs: list[Path], output: Path) -> None:
    """Training loss on the left, bits per byte by source on the right; a line style a run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for run, style in zip(runs, ["-", "--", ":", "-."] * len(runs), strict=False):
        metrics = series(run)
        left.plot(*zip(*metrics["train/loss"], strict=True), style, linewidth=0.8, label=run.name)
        measured = [name for name in metrics if name.endswith("/bits_per_byte")]
        for color, name in enumerate(sorted(measured)):
            source = name.removeprefix("eval/").removesuffix("bits_per_byte").rstrip("/") or "mean"
            right.plot(
                *zip(*metrics[name], strict=True), style, marker="o", color=f"C{color}", label=f"{run.name} {source}"
            )
    left.set(title="training loss", xlabel="step", ylabel="nats a token")
    right.set(title="held-out text", xlabel="step", ylabel="bits per byte")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)


def main(argv: list[str] | None = None) -> int:
    """Writes the picture; 1 where something is wrong."""
    options = parser().parse_args(argv)
    try:
        draw(options.run, options.output)
    except (ValueError, ImportError) as error:
        print(f"curves: {error}", file=sys.stderr)
        return 1
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
