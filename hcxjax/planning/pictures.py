"""Two pictures of a plan as SVG: what fills the memory, and what takes the time."""

import dataclasses
import html
from collections.abc import Mapping

from hcxjax.planning.plan import Plan

_WIDTH, _BAR, _LINE, _LABEL = 720, 34, 22, 170

_COLOURS = ("#2563a8", "#5b8fc7", "#9cbfe0", "#3d8b5f", "#d2a03c", "#c65b3c", "#7a5aa6", "#777777")


def memory_picture(plan: Plan) -> str:
    """One bar: the kinds of memory side by side, to the limit of a device."""
    limit, kinds = plan.pod.device_memory, dataclasses.asdict(plan.memory)
    scale = (_WIDTH - 2) / max(limit, plan.memory.total)
    at, parts = 1.0, []
    for (kind, size), colour in zip(kinds.items(), _COLOURS, strict=False):
        parts.append(_box(at, 1, size * scale, _BAR, colour, f"{kind}: {size / 1e9:.2f} GB"))
        at += size * scale
    end = 1 + limit * scale
    parts.append(f'<line x1="{end:.1f}" y1="0" x2="{end:.1f}" y2="{_BAR + 2}" stroke="#222" stroke-width="2"/>')
    for number, ((kind, size), colour) in enumerate(zip(kinds.items(), _COLOURS, strict=False)):
        x, y = 1 + number % 3 * 240, _BAR + 14 + number // 3 * _LINE
        parts += [_box(x, y, 12, 12, colour, kind), _text(x + 18, y + 11, f"{kind} {size / 1e9:.2f} GB")]
    height = _BAR + 14 + -(-len(kinds) // 3) * _LINE
    title = f"Memory of a device of {plan.pod.name}: {plan.memory.total / 1e9:.1f} of {limit / 1e9:.1f} GB"
    return _svg(title, parts, height)


def time_picture(plan: Plan) -> str:
    """A bar for each resource: the least time that it is busy in an update."""
    seconds: Mapping[str, float] = plan.roofline.seconds
    scale, parts = (_WIDTH - _LABEL - 90) / plan.roofline.bound, []
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    for number, (name, spent) in enumerate(ordered):
        y = number * _LINE + 2
        label = f"{spent * 1e3:,.1f} ms"
        colour = _COLOURS[5] if number == 0 else _COLOURS[1]
        parts += [_text(0, y + 13, name), _box(_LABEL, y, spent * scale, 16, colour, f"{name}: {label}")]
        parts.append(_text(_LABEL + spent * scale + 6, y + 13, label))
    return _svg(f"Least time of an update on {plan.pod.name}, by resource", parts, len(ordered) * _LINE + 4)


def _box(x: float, y: float, width: float, height: float, colour: str, title: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" fill="{colour}">'
        f"<title>{html.escape(title)}</title></rect>"
    )


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}">{html.escape(text)}</text>'


def _svg(title: str, parts: list[str], height: float) -> str:
    style = "text { font: 13px system-ui, sans-serif; fill: #222 }"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height:.0f}" role="img">'
        f"<title>{html.escape(title)}</title><style>{style}</style>"
        f'<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )
