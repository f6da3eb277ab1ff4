"""Shows what a run's model really sees: rows with their documents and infilling, and counts over a window of them.

python -m tools.inspect_data --gin_file=gin/runs/quickstart.gin
python -m tools.inspect_data --gin_file=gin/runs/quickstart.gin --gin.LENGTH=512 --step 100 --picture rows.png

Data that is not there yet is prepared, as training would, into the run's DATA_DIR. No model is built.
--picture needs the extra `plots` (pip install -e '.[plots]').
"""

import argparse
import dataclasses
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hcxjax.data.inspection import Seen, Summary, runs, summary, taken_apart
from hcxjax.data.packed import PackedTokens
from hcxjax.data.packing import Infilling
from hcxjax.main import configure
from hcxjax.mesh import Layout
from hcxjax.text.vocabulary import Vocabulary
from hcxjax.tracking import quiet_libraries
from hcxjax.train import Experiment

_BOLD, _PLAIN, _PADDING = "\x1b[1m", "\x1b[0m", "\x1b[2m"
_THIRDS = {"prefix": "\x1b[36m", "suffix": "\x1b[35m", "middle": "\x1b[32m"}
_BAR = 50  # characters of the longest bar
_PICTURE_ROWS = 32


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m tools.inspect_data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    arguments.add_argument("--gin_file", action="append", required=True, metavar="FILE", help="a run file; repeatable")
    arguments.add_argument("--gin.NAME=value", dest="_", help="a binding that overrides the files; repeatable")
    arguments.add_argument("--rows", type=int, default=4, help="rows to print (default: %(default)s)")
    arguments.add_argument("--step", type=int, default=0, help="updates before the first row (default: %(default)s)")
    arguments.add_argument("--window", type=int, default=1000, help="rows to count (default: %(default)s)")
    arguments.add_argument("--picture", type=Path, metavar="FILE.png", help="draw the rows and counts")
    arguments.add_argument(
        "--color", choices=("auto", "always", "never"), default="auto", help="auto: on a terminal (default)"
    )
    return arguments


def open_source(files: list[str], bindings: list[str], step: int) -> tuple[PackedTokens, int]:
    """The started source that a run reads at `step`, and which of its rows is the first there.

    Args:
      step: updates of the run before; a run with phases has a source for each.
    Raises:
      ValueError: the run file is wrong, or does not train on packed rows.
    """
    experiment, _ = configure(files, bindings)
    if not isinstance(experiment, Experiment):
        raise ValueError(f"{files[-1]} does not train on packed rows of text")
    phase = experiment.timeline.at(step + 1)
    if not isinstance(phase.source, PackedTokens):
        raise ValueError(f"{files[-1]} does not train on packed rows of text at update {step + 1}")
    source = dataclasses.replace(phase.source, run_dir=None)  # who only looks leaves nothing in the run's folder
    experiment.timeline.introduce(source, phase)
    source.start(Layout(rules=(("batch", None),)), None)  # any BATCH will do, whatever devices are here
    return source, (step - experiment.timeline.begin(phase)) * source.batch


def row_text(documents: list[Seen], length: int, names: list[str], vocabulary: Vocabulary, colored: bool) -> str:
    """A row as it is fed, under a heading for each document."""
    lines = []
    for number, document in enumerate(documents, 1):
        what = [names[document.source], f"{document.length} tokens"]
        what += [f"infilled, {document.order}"] * bool(document.order)
        what += ["continues another row"] * (not document.begins) + ["goes on in another row"] * (not document.ends)
        lines.append(_painted(f"── document {number} ({', '.join(what)}) ──", _BOLD, colored))
        lines.append("".join(_body(document, vocabulary, colored)))
    if padding := length - (documents[-1].stop if documents else 0):
        lines.append(_painted(f"── padding: {padding} positions ──", _PADDING, colored))
    return "\n".join(lines)


def _body(document: Seen, vocabulary: Vocabulary, colored: bool) -> Iterator[str]:
    paint = ""
    for run in runs(document.tokens, vocabulary):
        if run.special:
            paint = _THIRDS.get(run.special, "")
        yield _painted(f"⟦{run.special}⟧" if run.special else run.text, paint, colored)


def _painted(text: str, paint: str, colored: bool) -> str:
    return f"{paint}{text}{_PLAIN}" if colored and paint else text


def counts(seen: Summary, source: PackedTokens, first: int) -> str:
    """The counts of a window as text."""
    lines = [
        f"{seen.rows:,} rows from row {first:,}: {seen.rows * seen.length:,} positions, {seen.padding:.2%} padding, "
        f"{seen.trained:.2%} with a weight",
        f"{len(seen.lengths):,} pieces: a piece is a document, or the part of one that stands in a row",
        "",
        f"{'source':<12}{'tokens':>12}{'share':>9}{'configured':>12}{'pieces':>10}",
    ]
    for number, (name, share) in enumerate(seen.shares.items()):
        pieces = int((seen.sources == number).sum())
        wanted = seen.configured[name]
        lines.append(f"{name:<12}{seen.tokens[number]:>12,}{share:>9.2%}{wanted:>12.2%}{pieces:>10,}")
    return "\n".join([*lines, "", *_infilling(seen, source.infilling), "", *histogram(seen)])


def _infilling(seen: Summary, configured: Infilling) -> list[str]:
    orders = seen.orders[seen.orders != ""]
    suffix_first = float((orders == "suffix first").mean()) if len(orders) else 0.0
    return [
        f"infilled: {seen.infilled():.1%} of the pieces; of those with {configured.min_tokens} tokens or more "
        f"{seen.infilled(configured.min_tokens):.1%} (Infilling.rate asks for {configured.rate:.1%})",
        f"suffix first: {suffix_first:.1%} of the infilled "
        f"(Infilling.suffix_first_share asks for {configured.suffix_first_share:.1%})",
    ]


def histogram(seen: Summary) -> list[str]:
    """Bars of pieces by length, each class twice as wide as the one before."""
    if not len(seen.lengths):
        return ["no document in these rows"]
    edges = [1 << power for power in range(int(seen.lengths.max()).bit_length() + 1)]
    places = np.digitize(seen.lengths, edges)
    every, cut = (np.bincount(chosen, minlength=len(edges)) for chosen in (places, places[~seen.whole]))
    lines = [f"{'tokens':>15}{'pieces':>10}   █ whole documents   ░ parts of documents"]
    for place in range(int(places.min()), int(places.max()) + 1):
        low, high = (edges[place - 1] if place else 0), edges[place] - 1
        bar, light = (round(number * _BAR / every.max()) for number in (every[place], cut[place]))
        lines.append(f"{f'{low:,} to {high:,}':>15}{every[place]:>10,}   {'█' * (bar - light)}{'░' * light}".rstrip())
    return lines


def draw(documents: list[list[Seen]], seen: Summary, output: Path) -> None:
    """Rows as strips of documents above, shares and lengths below.

    Raises:
      ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(12, 3.5 + 0.16 * len(documents)), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=[0.5 + 0.16 * len(documents), 2.5])
    _draw_rows(figure.add_subplot(grid[0, :]), documents, list(seen.configured), seen.length)
    _draw_shares(figure.add_subplot(grid[1, 0]), seen)
    _draw_lengths(figure.add_subplot(grid[1, 1]), seen)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)
    pyplot.close(figure)


def _draw_rows(axes, documents: list[list[Seen]], names: list[str], length: int) -> None:
    blocks = [(number, piece) for number, row in enumerate(documents) for piece in row]
    for number, piece in blocks:
        axes.barh(
            number,
            piece.stop - piece.start,
            left=piece.start,
            height=0.85,
            color=f"C{piece.source}",
            alpha=0.75,
            edgecolor="white",
            linewidth=0.6,
            hatch="////" if piece.order else None,
        )
    for side in ("begins", "ends"):
        cut = [
            (number, piece.start if side == "begins" else piece.stop)
            for number, piece in blocks
            if not getattr(piece, side)
        ]
        for number, at in cut:
            axes.plot([at, at], [number - 0.42, number + 0.42], color="black", linewidth=1.6)
    for number, name in enumerate(names):
        axes.barh(0, 0, color=f"C{number}", alpha=0.75, label=name)
    axes.barh(0, 0, color="gray", hatch="////", edgecolor="white", label="infilled")
    axes.plot([], [], color="black", linewidth=1.6, label="cut")
    title = "rows; a block is a document, or its part in a row; white is padding"
    axes.set(title=title, xlabel="position", ylabel="rows from the first", xlim=(-0.01 * length, 1.01 * length))
    axes.spines[:].set_visible(False)
    axes.set_ylim(len(documents) - 0.5, -0.5)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)


def _draw_shares(axes, seen: Summary) -> None:
    at, names = np.arange(len(seen.shares)), list(seen.shares)
    axes.bar(at - 0.2, [100 * share for share in seen.shares.values()], 0.4, color=[f"C{number}" for number in at])
    axes.bar(at + 0.2, [100 * share for share in seen.configured.values()], 0.4, color="lightgray", label="configured")
    axes.set_xticks(at, names)
    axes.set(
        title=f"tokens of {seen.rows:,} rows; {seen.padding:.2%} padding",
        ylabel="%",
        ylim=(0, 125 * max(seen.configured.values())),
    )
    axes.legend(fontsize=8)


def _draw_lengths(axes, seen: Summary) -> None:
    edges = np.geomspace(1, max(2, int(seen.lengths.max(initial=1)) + 1), 25)
    lengths = [np.maximum(1, seen.lengths[seen.sources == number]) for number in range(len(seen.configured))]
    axes.hist(lengths, bins=edges, stacked=True, color=[f"C{number}" for number in range(len(lengths))])
    axes.set(title=f"{len(seen.lengths):,} documents and parts", xlabel="tokens", ylabel="pieces", xscale="log")


def _checked(options: argparse.Namespace) -> None:
    for name, least in (("rows", 0), ("step", 0), ("window", 1)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name} is {getattr(options, name)}; it must be at least {least}")


def show(options: argparse.Namespace, bindings: list[str]) -> None:
    """Prints rows and counts, and draws them.

    Raises:
      ValueError: a wrong option or run file.
    """
    _checked(options)
    source, first = open_source(options.gin_file, bindings, options.step)
    vocabulary, names = source.corpus.vocabulary(), source.corpus.names
    colored = options.color == "always" or (options.color == "auto" and sys.stdout.isatty())
    for row in range(first, first + options.rows):
        (documents,) = taken_apart(source.rows(row, row + 1), vocabulary)
        print(_painted(f"━━━━ row {row:,} of {source.length} positions ━━━━", _BOLD, colored))
        print(row_text(documents, source.length, names, vocabulary, colored), end="\n\n")
    seen = summary(source, vocabulary, first, first + options.window)
    print(counts(seen, source, first))
    if options.picture:
        rows = source.rows(first, first + _PICTURE_ROWS)
        draw(taken_apart(rows, vocabulary), seen, options.picture)
        print(f"\n{options.picture}")
    source.close()


def main(argv: list[str] | None = None) -> int:
    """Prints what was asked for; 1 where something is wrong."""
    arguments = sys.argv[1:] if argv is None else argv
    bindings = [argument for argument in arguments if argument.startswith("--gin.")]
    options = parser().parse_args([argument for argument in arguments if argument not in bindings])
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    quiet_libraries()
    try:
        if valueless := [binding for binding in bindings if "=" not in binding]:
            raise ValueError(f"{valueless[0]} has no value: write --gin.NAME=value")
        show(options, [binding.removeprefix("--gin.") for binding in bindings])
    except (ValueError, OSError) as error:
        print(f"inspect_data: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        print(f"inspect_data: {error}; --picture needs pip install -e '.[plots]'", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
