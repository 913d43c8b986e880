"""Figures of the report: SVG whose lines and letters take the page's colour, and pictures as data URIs."""

from __future__ import annotations

import base64
import io
import re
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from m2df_train.report.attention import AttentionMap
from m2df_train.report.occlusion import Occlusion
from m2df_train.report.projection import Panel

Pixels = NDArray[np.uint8]

# Middle tones: they stand out from white and from black.
COLOURS = (
    *("#3b82c4", "#e07b1f", "#2f9e6e", "#d1495b", "#8f63d2"),
    *("#a57c1b", "#c9559f", "#5f8f2f", "#1d9fb3", "#8a7a70"),
)
MARKERS = "os^Dv"  # colour and shape together name a class
ACCENT = (0.23, 0.51, 0.77)
NUMBERED = 10  # columns of an attention map whose cells have room for a number
THUMB = 48
SPEAKS_FOR, SPEAKS_AGAINST = (232, 64, 40), (52, 120, 246)

_INK = "#0a0b0c"  # drawn in this, and replaced by the page's colour
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.linewidth": 0.6,
}


def scatter(panel: Panel, owner: NDArray[np.int64], name: str) -> str:
    """Queries as small marks and prototypes as numbered discs, in the colour of their class: SVG."""
    figure, axes = _figure(3.6, 3.3)
    for number, place in enumerate(panel.prototypes):
        colour = COLOURS[number % len(COLOURS)]
        own = panel.queries[owner == number]
        axes.scatter(
            own[:, 0], own[:, 1], s=13, c=colour, marker=MARKERS[number % len(MARKERS)], alpha=0.75, linewidths=0
        )
        axes.scatter(place[0], place[1], s=120, c=colour, edgecolors=_INK, linewidths=0.8, zorder=3)
        axes.annotate(str(number + 1), place, color="white", ha="center", va="center", zorder=4, fontsize=7.5)
    axes.set(xticks=[], yticks=[])
    axes.margins(0.06)
    return _svg(figure, name)


def attention(found: AttentionMap, frames: Pixels, name: str) -> str:
    """Tokens that attend in rows, tokens attended to in columns with their frames above: SVG."""
    rows, columns = found.weights.shape
    figure, axes = _figure(3.6, 3.6 * (rows + 2.2) / (columns + 1.6))
    shade = found.weights / found.weights.max()
    for (row, column), strength in np.ndenumerate(shade):
        colour = (*ACCENT, max(0.03, float(strength)))
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, edgecolor="none"))
        if columns <= NUMBERED:
            percent = f"{100 * found.weights[row, column]:.0f}"
            axes.annotate(percent, (column, row), color=_INK, ha="center", va="center", fontsize=7)
    for column, token in enumerate(found.columns):
        if token.isdigit():
            box = (column - 0.46, column + 0.46, -0.62, -1.54)
            thumb = np.asarray(Image.fromarray(frames[int(token) - 1]).resize((THUMB, THUMB)))
            axes.imshow(thumb, extent=box, interpolation="none", aspect="auto", origin="upper")
    axes.set_xticks(range(columns), found.columns)
    axes.set_yticks(range(rows), found.rows)
    axes.set(xlim=(-0.55, columns - 0.45), ylim=(rows - 0.45, -1.6), aspect="equal", xlabel="attended to")
    axes.set_ylabel("attends")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return _svg(figure, name)


def overlays(frames: Pixels, found: Occlusion) -> list[Pixels]:
    """Frames [T, H, W, 3] in grey, red where they speak for the answer and blue where against it."""
    largest = max(float(np.abs(found.effect).max()), 1e-12)
    side = frames.shape[2], frames.shape[1]
    pictures = []
    for frame, effect in zip(frames, found.effect / largest, strict=True):
        smooth = np.asarray(Image.fromarray(effect.astype(np.float32)).resize(side, Image.Resampling.BILINEAR))
        grey = frame.mean(axis=2, keepdims=True) * 0.75 + 40
        colour = np.where(smooth[..., None] > 0, SPEAKS_FOR, SPEAKS_AGAINST)
        strength = 0.8 * np.abs(smooth[..., None])
        pictures.append(np.clip(grey * (1 - strength) + colour * strength, 0, 255).astype(np.uint8))
    return pictures


def picture(pixels: Pixels) -> str:
    """A picture [H, W, 3] as the data URI of a JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of inches with one pair of axes."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots()


def _svg(figure: Figure, name: str) -> str:
    """The figure as an element of a page, without what only a file needs; `name` keeps its ids apart."""
    buffer = io.StringIO()
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = text.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    text = re.sub(r"font: (\S+) [^;\"]*", r"font-size: \1", text)  # the page's letters
    return text.replace(_INK, "currentColor")
