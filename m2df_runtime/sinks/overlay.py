"""An annotated copy of a recording: below every frame what the windows around it say, and which event goes on."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from m2df_runtime.clips.source import FrameSource
from m2df_runtime.show.filmstrip import ACCENT, BACKGROUND, FAINT, INK, OTHER, TRACK, write_text
from m2df_runtime.sinks.video import write_video
from m2df_runtime.stream.events import Event, clock
from m2df_runtime.stream.stream import WindowAnswer

_STRIP = 52  # pixels below the frame
_NARROWEST = 320  # a strip below smaller frames would hold no words: they are enlarged
_MARGIN = 10


class AnnotatedVideo:
    """Collects what is written below frames while a recording is read, and writes its copy afterwards."""

    def __init__(self) -> None:
        self._middles: list[float] = []
        self._best: list[tuple[str, float]] = []  # class and score of each window
        self._events: list[Event] = []

    def add(self, answer: WindowAnswer | None, events: Sequence[Event]) -> None:
        """One step of a stream."""
        if answer:
            best = max(answer.scores, key=lambda label: answer.scores[label])
            self._middles.append((answer.start + answer.end) / 2)
            self._best.append((best, answer.scores[best]))
        self._events += [event for event in events if event.type == "end"]

    def write(self, path: Path, recording: FrameSource) -> None:
        """Write the copy, as MP4, atomically.

        Raises:
            OSError: The place cannot be written.
            ClipError: The recording cannot be read.
        """
        write_video(path, self._frames(recording), recording.fps)

    def _frames(self, recording: FrameSource) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        known: tuple[object, NDArray[np.uint8]] | None = None  # what the last strip says, and the strip
        self._events.sort(key=lambda event: event.start)
        begun: list[Event] = []
        ahead = 0
        for index, picture in enumerate(recording.pictures(np.arange(recording.n_frames))):
            time = float(recording.times[index])
            while ahead < len(self._events) and self._events[ahead].start <= time:
                begun.append(self._events[ahead])
                ahead += 1
            begun = [event for event in begun if event.end > time]
            frame = _enlarged(picture.rgb())
            said = (frame.shape[1], clock(time), [event.label for event in begun], *self._nearest(time))
            if known is None or known[0] != said:
                known = (said, _strip(*said))
            yield time, np.concatenate([frame, known[1]])

    def _nearest(self, time: float) -> tuple[str, float]:
        """Class and score of the window whose middle is nearest."""
        after = bisect_left(self._middles, time)
        around = [place for place in (after - 1, after) if 0 <= place < len(self._middles)]
        return self._best[min(around, key=lambda place: abs(self._middles[place] - time))]


def _enlarged(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    times = -(-_NARROWEST // frame.shape[1])
    return frame.repeat(times, axis=0).repeat(times, axis=1) if times > 1 else frame


def _strip(width: int, time: str, events: Sequence[str], label: str, score: float) -> NDArray[np.uint8]:
    """uint8 [52, width, 3]: the events that go on, else the nearest window's best class, faint; its score; the time."""
    image = Image.new("RGB", (width, _STRIP), BACKGROUND)
    draw = ImageDraw.Draw(image)
    words = width - 2 * _MARGIN - 90
    write_text(draw, (width - _MARGIN - 70, 8), time, 16, FAINT, 80)
    if events:
        write_text(draw, (_MARGIN, 6), ", ".join(events), 20, INK, words)
    else:
        write_text(draw, (_MARGIN, 8), label if score else "–", 16, FAINT, words)
    draw.rectangle((_MARGIN, _STRIP - 14, width - _MARGIN, _STRIP - 8), TRACK)
    reach = round((width - 2 * _MARGIN) * score)
    if reach:
        draw.rectangle((_MARGIN, _STRIP - 14, _MARGIN + reach, _STRIP - 8), ACCENT if events else OTHER)
    return np.asarray(image)
