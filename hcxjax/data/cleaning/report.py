"""A report of cleaning: tables by source and reason in Markdown, and a picture where matplotlib is installed."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from hcxjax.data.cleaning.tally import Tally


def write_report(folder: str | Path, tallies: Mapping[str, Tally], *, examples: bool = False) -> Path:
    """Writes `report.md`, and `report.png` where matplotlib is installed (the extra `plots`).

    Args:
      folder: made where it is missing.
      tallies: source → what was done to it.
      examples: with excerpts of what was dropped or changed. They are text of the sources: leave them out of a report
        that is published or committed.
    Returns:
      where the text is.
    """
    path = Path(folder) / "report.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = _draw(path.with_suffix(".png"), tallies)
    path.write_text(_markdown(tallies, examples, drawn), encoding="utf-8")
    return path


def tables(tallies: Mapping[str, Tally]) -> list[str]:
    """Lines of Markdown: documents, bytes and tokens by source; what was dropped by reason, changed by kind."""
    names = sorted(tallies)
    lines = ["| source | documents | kept | MB in | MB out | tokens |", "|---|---:|---:|---:|---:|---:|"]
    for name in names:
        one = tallies[name]
        sizes = f"{one.bytes_in / 1e6:.1f} | {one.bytes_out / 1e6:.1f}"
        lines.append(f"| {name} | {one.documents:,} | {one.kept:,} | {sizes} | {one.tokens:,} |")
    lines += ["", "## Dropped documents, by reason", "", *_counts(names, lambda name: tallies[name].dropped)]
    return [
        *lines,
        "",
        "## Changes in kept documents, by kind",
        "",
        *_counts(names, lambda name: tallies[name].changed),
    ]


def _markdown(tallies: Mapping[str, Tally], examples: bool, drawn: bool) -> str:
    lines = ["# Cleaning", "", *tables(tallies)]
    if drawn:
        lines += ["", "![documents by source and reason](report.png)"]
    if examples:
        lines += ["", "## Examples", "", *_examples(sorted(tallies), tallies)]
    return "\n".join(lines) + "\n"


def _counts(names: list[str], counts: Callable[[str], Mapping[str, int]]) -> Iterable[str]:
    """A row a reason, a column a source."""
    reasons = sorted({reason for name in names for reason in counts(name)})
    if not reasons:
        return ["None."]
    header = ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    rows = (
        f"| {reason} | " + " | ".join(f"{counts(name).get(reason) or 0:,}" for name in names) + " |"
        for reason in reasons
    )
    return [*header, *rows]


def _examples(names: list[str], tallies: Mapping[str, Tally]) -> Iterable[str]:
    for name in names:
        for reason, shown in sorted(tallies[name].examples.items()):
            yield f"**{name}, {reason}**"
            yield ""
            # A code span cannot hold a backtick of its own length, and a table bar would end a cell.
            yield from (f"- {place}: `{excerpt.replace('`', chr(39))}`" for place, excerpt in shown)
            yield ""


def _draw(path: Path, tallies: Mapping[str, Tally]) -> bool:
    """Shares of the documents by reason, a bar a source; False without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    names = sorted(tallies)
    figure = Figure(figsize=(9, 1.5 + 0.4 * len(names)), layout="constrained")
    axes = figure.subplots()
    before = [0.0] * len(names)
    for reason in sorted({reason for name in names for reason in tallies[name].dropped}):
        widths = [100 * tallies[name].dropped.get(reason, 0) / max(1, tallies[name].documents) for name in names]
        axes.barh(names, widths, left=before, label=reason)
        before = [left + width for left, width in zip(before, widths, strict=True)]
    axes.set_xlabel("dropped documents, %")
    axes.invert_yaxis()
    if any(before):
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=120)
    return True
