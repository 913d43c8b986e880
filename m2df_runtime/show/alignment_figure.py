"""How two clips are aligned, as pictures: filmstrips with lines between them, and the costs of all pairs of frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.pixels.thumbnails import strip_jpeg
from m2df_runtime.show.page import data_uri, text
from m2df_runtime.show.parts import ViewParts

_SIDE, _BETWEEN = 100, 74  # of a frame, and of the space for lines
_SEEN = 0.04  # visits from which a line or a dot is drawn
_LEVELS = 12  # shades of costs


@dataclass(frozen=True)
class Strip:
    """The frames of a clip.

    Attributes:
        id: Of its picture in the page.
        frames: How many.
        uri: Its picture as a data URI; None where there is nothing to look at.
    """

    id: str
    frames: int
    uri: str | None

    @classmethod
    def of(cls, id_: str, pictures: NDArray[np.uint8] | None, frames: int) -> Strip:
        """The strip of pictures, uint8 [T, S, S, 3]."""
        return cls(id_, frames, None if pictures is None else data_uri(strip_jpeg(pictures), "image/jpeg"))

    def symbol(self) -> str:
        """What `drawn` refers to; once in a page."""
        width = _SIDE * self.frames
        if self.uri is None:
            inside = "".join(
                f'<rect class="missing" x="{_SIDE * t + 2}" y="2" width="{_SIDE - 4}" height="{_SIDE - 4}"/>'
                f'<text x="{_SIDE * (t + 0.5):g}" y="{_SIDE * 0.55:g}" text-anchor="middle">{t + 1}</text>'
                for t in range(self.frames)
            )
        else:
            cuts = "".join(f'<path class="cut" d="M{_SIDE * t} 0v{_SIDE}"/>' for t in range(1, self.frames))
            image = f'<image href="{self.uri}" width="{width}" height="{_SIDE}" preserveAspectRatio="none"/>'
            inside = image + cuts
        return f'<svg class="defs" aria-hidden="true"><defs><g id="{self.id}">{inside}</g></defs></svg>'

    def drawn(self, top: float) -> str:
        """The strip in a figure."""
        return f'<use href="#{self.id}" y="{top:g}"/>'


def strips_with_ties(query: Strip, other: Strip, views: Sequence[tuple[str, ViewParts]], label: str) -> str:
    """The query's frames above and below another clip's, with the lines of each view between them.

    Args:
        query: The strip of the query.
        other: That of the clip it is aligned with.
        views: Name and parts of each view.
        label: What the figure shows, as text.
    """
    width, shapes, top = _SIDE * query.frames, [query.drawn(0)], _SIDE
    for place, (name, view) in enumerate(views):
        down = place % 2 == 0  # whether the query is above the lines
        shapes += _ties(view, top, down)
        if name:
            shapes.append(f'<text class="over" x="2" y="{top + _BETWEEN / 2 + 4:g}">{text(name)}</text>')
        top += _BETWEEN
        shapes.append((other if down else query).drawn(top))
        top += _SIDE
    if not views:
        shapes.append(other.drawn(top + 12))
        top += _SIDE + 12
    return (
        f'<div class="wide strip"><svg viewBox="0 0 {width} {top}" role="img" '
        f'style="min-width:{min(width, 520)}px;max-width:{1.2 * width:g}px" '
        f'aria-label="{text(label)}">{"".join(shapes)}</svg></div>'
    )


def _ties(view: ViewParts, top: float, down: bool) -> list[str]:
    shapes = []
    for i, j in np.argwhere(view.visits >= _SEEN).tolist():
        share = float(view.visits[i, j])
        line = _tie(i, j, top, down)
        style = f'stroke-width="{1 + 9 * share:.1f}" stroke-opacity="{min(0.08 + 0.9 * share, 0.95):.2f}"'
        shapes.append(f'<path class="tie" d="{line}" {style}/>')
    cells = sorted({cell for path in view.hard for cell in path})
    shapes += [f'<path class="tie hard" d="{_tie(i, j, top, down)}"/>' for i, j in cells]
    return shapes


def _tie(i: int, j: int, top: float, down: bool) -> str:
    upper, lower = ((place + 0.5) * _SIDE for place in ((i, j) if down else (j, i)))
    middle = _BETWEEN / 2
    return f"M{upper:g} {top:g}c0 {middle:g} {lower - upper:g} {middle:g} {lower - upper:g} {_BETWEEN}"


def cost_grid(view: ViewParts, highest: float, label: str) -> str:
    """All pairs of frames: darker costs more, a dot says how often the soft path goes there, lines are the cheapest.

    Args:
        view: What is drawn.
        highest: The cost that is darkest.
        label: What the figure shows, as text.
    """
    rows, columns = view.costs.shape
    levels = np.clip(np.round(_LEVELS * view.costs / max(highest, 1e-9)), 0, _LEVELS).astype(int)
    shapes = []
    for level in range(1, _LEVELS + 1):
        cells = "".join(f"M{j} {i}h1v1h-1z" for i, j in np.argwhere(levels == level).tolist())
        if cells:
            shapes.append(f'<path class="cost" fill-opacity="{0.85 * level / _LEVELS:.2f}" d="{cells}"/>')
    for i, j in np.argwhere(view.visits >= _SEEN).tolist():
        radius = 0.46 * float(np.sqrt(min(view.visits[i, j], 1.0)))
        shapes.append(f'<circle class="soft" cx="{j + 0.5}" cy="{i + 0.5}" r="{radius:.2f}"/>')
    for place, path in enumerate(view.hard):
        points = " ".join(f"{j + 0.5},{i + 0.5}" for i, j in path)
        shapes.append(f'<polyline class="hard{" back" if place else ""}" points="{points}"/>')
    shapes.append(f'<rect class="frame" width="{columns}" height="{rows}"/>')
    return f'<svg viewBox="0 0 {columns} {rows}" role="img" aria-label="{text(label)}">{"".join(shapes)}</svg>'
