"""Plots of the report as small SVG files: stacked bars and lines, drawn from plain numbers, always the same bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#3b82c4", "#e07b1f", "#2f9e6e", "#d1495b", "#8f63d2", "#a57c1b")  # middle tones, for light and dark pages
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#24292f}.small{font-size:11px;fill:#57606a}.own{font-weight:600}"
    ".axis{stroke:#8c959f;stroke-width:1;fill:none}.grid{stroke:#8c959f;stroke-width:.4;opacity:.5}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.small{fill:#9198a1}}"
)
LABEL, WIDTH, ROW = 190, 760, 24
APART = 30  # pixels between the middles of two numbers below an axis, at least


@dataclass(frozen=True)
class Bar:
    """One row: its parts in the order of the legend, and whether it is m2df's."""

    name: str
    parts: Sequence[float]
    own: bool


@dataclass(frozen=True)
class Panel:
    """One pair of logarithmic axes with a line [(x, y), ...] per name."""

    title: str
    lines: Mapping[str, Sequence[tuple[float, float]]]


def bars(legend: Sequence[str], rows: Sequence[Bar], unit: str, cut_at: float = math.inf) -> str:
    """Stacked horizontal bars; one that is longer than `cut_at` is cut, and its number stands beside it."""
    limit = min(max(sum(row.parts) for row in rows), cut_at) or 1.0
    scale = (WIDTH - LABEL - 90) / limit
    body = [_legend(legend, LABEL)]
    for number, row in enumerate(rows):
        top, left = 34 + ROW * number, float(LABEL)
        style = "own" if row.own else "plain"
        body.append(f'<text class="{style}" x="{LABEL - 8}" y="{top + 13}" text-anchor="end">{escape(row.name)}</text>')
        for place, part in enumerate(row.parts):
            width = min(part * scale, max(LABEL + limit * scale - left, 0.0))
            body.append(f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="17" fill="{COLOURS[place]}"/>')
            left += width
        total = sum(row.parts)
        cut = "… " if total > limit * 1.001 else ""
        body.append(f'<text class="small" x="{left + 6:.1f}" y="{top + 13}">{cut}{number_text(total)} {unit}</text>')
    return _document(WIDTH, 34 + ROW * len(rows) + 6, body)


def lines(panels: Sequence[Panel], unit: str) -> str:
    """Panels three in a row; a name has the same colour everywhere."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    colours = dict(zip(names, COLOURS, strict=False))
    body = [_legend(names, 40)]
    width, height = WIDTH // 3, 190
    for number, panel in enumerate(panels):
        left, top = (number % 3) * width, 30 + (number // 3) * (height + 10)
        body.append(_panel(panel, unit, colours, (left + 72.0, top + 24.0, width - 92.0, height - 60.0)))
    return _document(WIDTH, 30 + -(-len(panels) // 3) * (height + 10), body)


def number_text(value: float) -> str:
    """Three significant digits, and none after the point from 100 on."""
    if value >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _panel(panel: Panel, unit: str, colours: Mapping[str, str], box: tuple[float, float, float, float]) -> str:
    left, top, width, height = box
    xs = sorted({x for line in panel.lines.values() for x, _ in line})
    ys = [y for line in panel.lines.values() for _, y in line]
    low, high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)) + 1e-9)
    span = math.log(xs[-1] / xs[0]) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        across = math.log(x / xs[0]) / span
        up = (math.log10(y) - low) / max(high - low, 1)
        return left + width * across, top + height * (1 - up)

    parts = [f'<text x="{left:.1f}" y="{top - 8:.1f}">{escape(panel.title)}</text>']
    for exponent in range(low, high + 1):
        y = at(xs[0], 10.0**exponent)[1]
        parts.append(f'<path class="grid" d="M{left:.1f} {y:.1f}h{width:.1f}"/>')
        label = f"{10.0**exponent:,g} {unit}"
        parts.append(f'<text class="small" x="{left - 4:.1f}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    parts.append(f'<path class="axis" d="M{left:.1f} {top:.1f}v{height:.1f}h{width:.1f}"/>')
    last = -math.inf
    for x in xs:
        place = at(x, 10.0**low)[0]
        if place - last > APART:
            middle = f'x="{place:.1f}" y="{top + height + 15:.1f}" text-anchor="middle"'
            parts.append(f'<text class="small" {middle}>{x:,g}</text>')
            last = place
    for name, line in panel.lines.items():
        places = [at(x, y) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colours[name]}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colours[name]}"/>' for x, y in places]
    return "".join(parts)


def _legend(names: Sequence[str], left: float) -> str:
    parts = []
    for name, colour in zip(names, COLOURS, strict=False):
        parts.append(f'<rect x="{left:.0f}" y="8" width="11" height="11" fill="{colour}"/>')
        parts.append(f'<text class="small" x="{left + 16:.0f}" y="18">{escape(name)}</text>')
        left += 34 + 6.4 * len(name)
    return "".join(parts)


def _document(width: int, height: int, body: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    return "\n".join([head, f"<style>{STYLE}</style>", *body, "</svg>", ""])
