"""Why the events of a recording are what they are, as a page: the time line, and the windows that decided them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.clips.source import FrameSource, Picture, Rectangle, frame_rate
from m2df_runtime.match.matcher import Matcher
from m2df_runtime.show.alignment_figure import Strip
from m2df_runtime.show.course import ROWS, Course
from m2df_runtime.show.explain import decision, distances, how_to_read, lead_sentence, strips
from m2df_runtime.show.explanation import explanation
from m2df_runtime.show.filmstrip import display_spec
from m2df_runtime.show.page import MAX_BYTES, bar, block, row, table, text, whole_page
from m2df_runtime.stream.events import Event, clock

_COLUMNS = 480  # of a class's scores: less than a pixel each on a phone
_RISE = 48  # pixels of a score of 1
_MARKS = 6
_SPARE = 50_000  # bytes of a page that are kept for its end
_SAME = 1e-6  # seconds: sums of rounded times differ by less


def explain_recording(course: Course, recording: FrameSource, matcher: Matcher, roi: Rectangle | None) -> str:
    """A page of a recording's events: one HTML file without scripts and links, at most 2 MB.

    The window that decided an event is read and answered once more.

    Args:
        course: Of the whole recording.
        recording: It.
        matcher: What answered its windows.
        roi: As it was when they were answered.

    Raises:
        ClipError: The recording cannot be read.
    """
    name, number = Path(course.name).name, len(course.events)
    count = f"{number} event{'' if number == 1 else 's'} in {clock(course.end)}"
    first = [f"<header><small>{text(name)}</small><h1>{count}</h1></header>", *_timeline(course), _table(course)]
    size, sections = sum(len(part.encode()) for part in first), {}
    for event in sorted(course.events, key=lambda event: -event.top_score):
        section = "\n".join(_event(event, course, recording, matcher, roi))
        size += len(section.encode())
        if size > MAX_BYTES - _SPARE:
            break
        sections[event.id] = section
    rest = number - len(sections)
    if rest:
        first.append(f'<p class="note">A page has at most 2 MB: {rest} events with lower scores are only listed.</p>')
    last = [how_to_read()] if sections else []
    return whole_page(f"{name}: {count}", [*first, *(sections[key] for key in sorted(sections)), *last])


def _timeline(course: Course) -> Iterator[str]:
    """Scores of the classes over time, with thresholds and events."""
    rules, labels = course.rules, course.labels
    least = "two windows know it" if rules.min_duration is None else f"it has lasted {rules.min_duration:g} s"
    yield (
        f'<p class="lead">An event of an action begins where its score reaches {rules.enter:g}, the upper dashed line, '
        f"and lasts until it falls below {rules.leave:g}, the lower one. It is told when {least}; what is shorter is "
        "not told. A score is the probability of the action in a "
        "window of the recording, and 0 where the window is unknown or nothing moves.</p><figure>"
    )
    for label in labels[:ROWS]:
        heights = course.heights(label, _COLUMNS)
        found = [event for event in course.events if event.label == label]
        places = np.linspace(course.start, course.end, _COLUMNS)
        inside = np.any([(places >= one.start) & (places <= one.end) for one in found], axis=0) if found else False
        shapes = [f'<rect class="track" width="100%" height="{_RISE}"/>', _area(heights, np.asarray(inside))]
        for threshold in (rules.enter, rules.leave):
            y = _RISE * (1 - threshold)
            shapes.append(f'<line class="level" x1="0" x2="100%" y1="{y:g}" y2="{y:g}"/>')
        spans = [(100 * course.share(one.start), 100 * course.share(one.end)) for one in found]
        shapes += [block("accent", start, max(end, start + 0.3), _RISE + 3, 5) for start, end in spans]
        times = ", ".join(f"{clock(one.start)} to {clock(one.end)}" for one in found) or "no event"
        yield row(text(label), bar(f"{label}: {times}", shapes, "tall"), f"{heights.max():.0%}")
    marks = (
        f'<text x="{100 * course.share(second):.2f}%" y="14" text-anchor="{"middle" if place else "start"}">'
        f"{clock(second)}</text>"
        for place, second in enumerate(course.marks(_MARKS))
    )
    yield row("", bar("Time", marks), "")
    left = len(labels) - ROWS
    more = f" {left} actions with lower scores are not drawn." if left > 0 else ""
    yield f"<figcaption>On the right: the highest score of each action. Below: its events.{more}</figcaption></figure>"


def _area(heights: NDArray[np.float64], inside: NDArray[np.bool_]) -> str:
    """Scores as columns, those of events in another colour."""
    drawn = []
    for kind, shown in (("other", np.where(inside, 0.0, heights)), ("accent", np.where(inside, heights, 0.0))):
        edges = [0, *(np.flatnonzero(np.diff(shown)) + 1).tolist(), len(shown)]
        runs = ((start, end, float(shown[start])) for start, end in itertools.pairwise(edges))
        steps = "".join(f"M{start} 100V{100 * (1 - height):.0f}H{end}V100z" for start, end, height in runs if height)
        drawn.append(f'<path class="{kind}" d="{steps}"/>' if steps else "")
    size = f'width="100%" height="{_RISE}" viewBox="0 0 {len(heights)} 100" preserveAspectRatio="none"'
    return f"<svg {size}>{''.join(drawn)}</svg>"


def _table(course: Course) -> str:
    if not course.events:
        return "<p>No score was high enough for long enough to be an event.</p>"
    rows = [
        [text(one.label), clock(one.start), clock(one.end), f"{one.top_score:.0%}", text(one.runner_up or "")]
        for one in sorted(course.events, key=lambda one: one.start)
    ]
    return table(("event", "from", "to", "highest score", "second there"), rows)


def _event(
    event: Event, course: Course, recording: FrameSource, matcher: Matcher, roi: Rectangle | None
) -> Iterator[str]:
    """Why an event is what it is: the window of its highest score."""
    window = _Part(recording, *course.deciding(event))
    look = display_spec(matcher.model.bundle.manifest.clip)
    found = explanation(matcher.predict(window, roi=roi, look=look), matcher)
    yield f"<section><h2>{text(event.label)}, {clock(event.start)} to {clock(event.end)}</h2>"
    windows = f"of its {event.windows} windows the one" if event.windows > 1 else "the only window"
    yield (
        f"<p>The window from {clock(window.start)} to {clock(window.end)} decided: {windows} with the highest score, "
        f"{event.top_score:.0%}. {lead_sentence(found)}</p>"
    )
    if found.problem:
        yield f'<p class="note">{text(found.problem)}.</p>'
    query = Strip.of(f"window{event.id}", found.prediction.frames, look.frames)
    yield query.symbol()
    yield from strips(found, found.best, query, f"clip{event.id}")
    yield from decision(found)
    yield from distances(found)
    yield "</section>"


class _Part(FrameSource):
    """A window of a recording, as a clip whose frames are read when they are asked for."""

    is_part = True

    def __init__(self, recording: FrameSource, start: float, end: float) -> None:
        self.start, self.end = start, end
        self.name = f"{recording.name}, {start:.2f} to {end:.2f} s"
        inside = (recording.times >= start - _SAME) & (recording.times < end - _SAME)
        self._indices = np.flatnonzero(inside)
        self.n_frames = len(self._indices)
        self.times: NDArray[np.float64] = recording.times[self._indices] - start
        self.fps = frame_rate(self.times, recording.fps)
        self._recording = recording

    @property
    def duration(self) -> float:
        """See `FrameSource.duration`."""
        return self.end - self.start

    def pictures(self, indices: NDArray[np.int64]) -> Iterator[Picture]:
        """See `FrameSource.pictures`."""
        return self._recording.pictures(self._indices[indices])
