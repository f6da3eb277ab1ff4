"""A page of a run's rollouts that needs no other file: curves, and tables of episodes with colours."""

import html
from collections.abc import Sequence

from tools.rollout_files import SORTS, Episode, Written

_MOST = 60
"""Rollouts on a page; of more, as many are shown, evenly spread."""

_WIDTH, _HEIGHT, _EDGE = 240, 90, 4

_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2em; color: #222; background: #fff }
figure { display: inline-block; margin: 0 1em 1em 0 } figcaption { font-size: 12px }
svg { background: #f6f6f6; display: block } polyline { fill: none; stroke: #2563a8; stroke-width: 1.5 }
table { border-collapse: collapse; margin: .5em 0 1.5em } th, td { padding: .3em .6em; vertical-align: top }
th { text-align: left; border-bottom: 1px solid #999; position: sticky; top: 0; background: #fff }
td { border-bottom: 1px solid #ddd } td.number { text-align: right; font-variant-numeric: tabular-nums }
td.text { white-space: pre-wrap; overflow-wrap: anywhere; max-width: 40em }
summary { cursor: pointer; font-weight: 600 }
"""

_BLUE, _RED = (37, 99, 168), (200, 60, 40)


def page(written: Written) -> str:
    """The whole page, as HTML."""
    name = html.escape(str(written.run))
    updates = list(written.rollouts)
    step = max(1, -(-len(updates) // _MOST))
    shown = sorted({*updates[::step], *written.landmarks})
    everything = [episode for update in shown for episode in written.rollouts[update]]
    tables = "".join(
        f"<details{' open' if update == updates[-1] else ''}><summary>update {update:,}</summary>"
        f"{table(written.rollouts[update], everything)}</details>\n"
        for update in reversed(shown)
    )
    return (
        f'<!doctype html><html><head><meta charset="utf-8"><title>{name}</title><style>{_STYLE}</style></head><body>\n'
        f"<h1>{name}</h1><p>{len(updates):,} rollouts, updates {updates[0]:,} to {updates[-1]:,}; "
        f"{len(shown):,} are shown. Colours: blue is a high score, red a low one; of KL, repetition and length, red is "
        "high.</p>\n"
        f"{''.join(curve(title, points) for title, points in written.curves.items())}\n{tables}</body></html>\n"
    )


def curve(title: str, points: Sequence[tuple[int, float]]) -> str:
    """A small picture of one number over the updates, with its first, its last and its bounds."""
    updates, values = zip(*points, strict=True)
    low, high = min(values), max(values)
    x = _scaled(updates, min(updates), max(updates), _EDGE, _WIDTH - _EDGE)
    y = _scaled(values, low, high, _HEIGHT - _EDGE, _EDGE)
    line = " ".join(f"{across:.1f},{down:.1f}" for across, down in zip(x, y, strict=True))
    return (
        f'<figure><svg width="{_WIDTH}" height="{_HEIGHT}"><polyline points="{line}"/></svg>'
        f"<figcaption><b>{html.escape(title)}</b> {values[0]:.4g} → {values[-1]:.4g} "
        f"({low:.4g} to {high:.4g})</figcaption></figure>"
    )


def _scaled(values: Sequence[float], low: float, high: float, first: float, last: float) -> list[float]:
    span = (high - low) or 1.0
    return [first + (value - low) / span * (last - first) for value in values]


def table(episodes: Sequence[Episode], everything: Sequence[Episode]) -> str:
    """Episodes, the best first; colours say where a number lies among those of all episodes shown."""
    bounds = {
        field: (
            min((getattr(one, field) for one in everything), default=0),
            max((getattr(one, field) for one in everything), default=0),
        )
        for field in SORTS
    }
    heads = "".join(f"<th>{name}</th>" for name in (*SORTS, "source", "prompt", "answer"))
    rows = []
    for episode in sorted(episodes, key=lambda episode: -episode.score):
        cells = "".join(_number(episode, field, *bounds[field]) for field in SORTS)
        texts = "".join(f'<td class="text">{html.escape(text)}</td>' for text in (episode.prompt, episode.answer))
        rows.append(f"<tr>{cells}<td>{html.escape(episode.source)} {episode.number}</td>{texts}</tr>\n")
    return f"<table><tr>{heads}</tr>\n{''.join(rows)}</table>"


def _number(episode: Episode, field: str, low: float, high: float) -> str:
    value = getattr(episode, field)
    place = (value - low) / (high - low) if high > low else 0.5
    good = place if field == "score" else 1 - place
    red, green, blue = _BLUE if good >= 0.5 else _RED
    # Only the worse half of what is bad when high is coloured: a short answer without KL is nothing to praise.
    strength = abs(2 * good - 1) * 0.45 if field == "score" or good < 0.5 else 0.0
    shown = f"{value:,}" if field == "length" else f"{value:.3f}"
    return f'<td class="number" style="background: rgba({red}, {green}, {blue}, {strength:.2f})">{shown}</td>'
