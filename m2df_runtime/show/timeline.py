"""Time line of a recording: the scores of its classes, its events, and a frame of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from m2df_runtime.show.course import ROWS, Course
from m2df_runtime.show.filmstrip import ACCENT, BACKGROUND, FAINT, INK, MARGIN, OTHER, TRACK, write_text
from m2df_runtime.stream.events import Event, clock

_WIDTH, _LABELS, _RULES = 1200, 150, 66  # pixels of the plot, of the names before it and of the thresholds behind it
_ROW, _GAP, _THUMB = 56, 14, 84  # height of a class, space below it, height of a frame
_FLOOR, _RISE = _ROW - 10, _ROW - 12  # of a class: where a score of 0 lies, and how far above it one of 1


class Timeline(Course):
    """A course that draws itself."""

    @property
    def moments(self) -> list[float]:
        """Seconds of the frames that `draw` wants: the middle of each event that has room for a frame."""
        return [(event.start + event.end) / 2 for event in self._with_frame()]

    def draw(self, frames: Sequence[NDArray[np.uint8]]) -> Image.Image:
        """The picture, RGB.

        Args:
            frames: Those of `moments`, uint8 [H, W, 3] RGB each.
        """
        every = self.labels
        labels = every[:ROWS]
        top = MARGIN + 34 + (_THUMB + 24 if frames else 0)
        height = top + len(labels) * (_ROW + _GAP) + 40
        image = Image.new("RGB", (2 * MARGIN + _LABELS + _WIDTH + _RULES, height), BACKGROUND)
        draw = ImageDraw.Draw(image)
        number = len(self.events)
        title = f"{self.name}: {number} event{'' if number == 1 else 's'} in {clock(self.end)}"
        left_out = len(every) - len(labels)
        title += f"; {left_out} classes with lower scores are not drawn" if left_out else ""
        write_text(draw, (MARGIN, MARGIN - 4), title, 16, INK, _WIDTH + _LABELS)
        for event, frame in zip(self._with_frame(), frames, strict=True):
            thumb = _thumb(frame)
            left = self._x((event.start + event.end) / 2) - thumb.width // 2
            left = min(max(left, MARGIN + _LABELS), MARGIN + _LABELS + _WIDTH - thumb.width)
            image.paste(thumb, (left, MARGIN + 30))
            write_text(draw, (left, MARGIN + 32 + _THUMB), event.label, 11, FAINT, thumb.width)
        for row, label in enumerate(labels):
            self._draw_class(draw, label, top + row * (_ROW + _GAP))
        self._name_thresholds(draw, top)
        self._draw_axis(draw, height - 36)
        return image

    def _x(self, second: float) -> int:
        return MARGIN + _LABELS + round(self.share(second) * _WIDTH)

    def _with_frame(self) -> list[Event]:
        """The events with the highest scores whose frames do not cover each other, in order of time."""
        chosen: list[Event] = []
        for event in sorted(self.events, key=lambda event: -event.top_score):
            middle = self._x((event.start + event.end) / 2)
            if all(abs(middle - self._x((other.start + other.end) / 2)) > 1.5 * _THUMB for other in chosen):
                chosen.append(event)
        return sorted(chosen, key=lambda event: event.start)

    def _draw_class(self, draw: ImageDraw.ImageDraw, label: str, top: int) -> None:
        """Scores of one class as columns, its events as bars below them, the thresholds as lines."""
        left, floor = MARGIN + _LABELS, _level(top, 0)
        found = [event for event in self.events if event.label == label]
        write_text(draw, (MARGIN, top + _RISE // 2 - 8), label, 13, INK if found else FAINT, _LABELS - 12)
        draw.rectangle((left, _level(top, 1), left + _WIDTH, floor), TRACK)
        heights = self.heights(label, _WIDTH + 1)
        inside = np.zeros(_WIDTH + 1, dtype=bool)
        for event in found:
            inside[self._x(event.start) - left : self._x(event.end) - left + 1] = True
        for column in np.flatnonzero(heights).tolist():
            x, y = left + column, _level(top, float(heights[column]))
            draw.line((x, y, x, floor), ACCENT if inside[column] else OTHER)
        for threshold in (self.rules.enter, self.rules.leave):
            y = _level(top, threshold)
            for x in range(left, left + _WIDTH, 8):
                draw.line((x, y, x + 3, y), FAINT)
        for event in found:
            draw.rectangle(
                (self._x(event.start), floor + 3, max(self._x(event.end), self._x(event.start) + 2), floor + 8), ACCENT
            )

    def _name_thresholds(self, draw: ImageDraw.ImageDraw, top: int) -> None:
        """Beside the first class: which dashed line is which."""
        for what, threshold, above in (("begins", self.rules.enter, 11), ("ends", self.rules.leave, 3)):
            y = _level(top, threshold) - above
            write_text(
                draw, (MARGIN + _LABELS + _WIDTH + 8, y), f"{what} {threshold:g}", 11, FAINT, _RULES + MARGIN - 8
            )

    def _draw_axis(self, draw: ImageDraw.ImageDraw, top: int) -> None:
        for second in self.marks():
            x = self._x(second)
            draw.line((x, top, x, top + 5), FAINT)
            write_text(draw, (min(x - 2, MARGIN + _LABELS + _WIDTH - 30), top + 8), clock(second), 12, FAINT, 80)


def _level(top: int, score: float) -> int:
    """The row at which a score lies, in a class that begins at row `top`."""
    return top + _FLOOR - round(_RISE * score)


def _thumb(frame: NDArray[np.uint8]) -> Image.Image:
    picture = Image.fromarray(frame)
    picture.thumbnail((2 * _THUMB, _THUMB))
    return picture
