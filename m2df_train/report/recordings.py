"""The report of `m2df-eval --recordings`: what happens and what was found on one time line, each mistake as a strip.

A user sees in it why an event was found or missed before turning a threshold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from m2df_runtime import EventRules, __version__
from m2df_runtime.bounds import poisson_upper
from m2df_runtime.clips.source import FrameSource
from m2df_runtime.files import atomic_write
from m2df_runtime.progress import Progress, silent
from m2df_runtime.stream.events import clock
from m2df_train.evaluation.event_measures import (
    IOUS,
    FoundEvent,
    Outcome,
    Tally,
    TrueAction,
    Verdict,
    during,
    judge,
    matches,
)
from m2df_train.evaluation.event_tables import MeasuredEvents
from m2df_train.evaluation.recordings import ScoredRecording
from m2df_train.report.figures import picture
from m2df_train.report.template import environment

FRAMES = 6  # of a strip
STRIPS = 60  # of a page: about 2 MB
_COLUMNS = 1500  # of a curve of scores
_THUMB = (240, 180)  # pixels that a frame fits into
_REM_PER_MINUTE = 12.0  # width of a long recording's time line, which scrolls
_MARKS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)  # seconds between two
_REMS_PER_MARK = 5.0


@dataclass(frozen=True)
class _Mistake:
    """A span of a recording that is shown as a strip, and why."""

    recording: str
    span: TrueAction | FoundEvent
    title: str
    what: str
    weight: float


def report_on_recordings(
    path: Path,
    result: MeasuredEvents,
    recordings: Sequence[ScoredRecording],
    sources: Mapping[str, FrameSource],
    progress: Progress = silent,
) -> None:
    """Write the report of what one bank finds in recordings.

    Args:
        path: The HTML file; `check_report` tells beforehand whether it can be written.
        result: What was measured.
        recordings: What it was measured on.
        sources: Name of a recording to its frames, for the strips.
        progress: Shows the reading of frames.

    Raises:
        ClipError: A recording cannot be read any more.
        OSError: The file cannot be written.
    """
    judged = [_Judged.of(one, result.rules) for one in recordings]
    mistakes = [mistake for one in judged for mistake in one.mistakes()]
    shown = sorted(sorted(mistakes, key=lambda one: -one.weight)[:STRIPS], key=mistakes.index)
    with progress("report: frames of mistakes", len(shown)) as advance:
        strips = []
        for mistake in shown:
            frames = _strip(sources[mistake.recording], mistake.span)
            strips.append({"title": mistake.title, "what": mistake.what, "frames": frames})
            advance(1)
    total = result.measures.tally
    page = environment().get_template("recordings.html.j2")
    html = page.render(
        name=Path(result.bank).name,
        summary=_summary(result),
        ious=[f"{iou:g}" for iou in IOUS],
        classes=[("all", total.counts), *result.measures.per_class.items()],
        alarms=_alarms(total, result),
        recordings=[one.drawn() for one in judged],
        columns_of_score=_COLUMNS,
        strips=strips,
        left_out=_left_out(mistakes, shown),
        columns=FRAMES,
        narrow_columns=FRAMES // 2,
        version=__version__,
    )
    atomic_write(path, html.encode())


@dataclass(frozen=True)
class _Judged:
    """A recording, what happens in it, and what each event is."""

    recording: ScoredRecording
    outcome: Outcome
    found: Sequence[bool]
    verdicts: Sequence[Verdict]

    @classmethod
    def of(cls, recording: ScoredRecording, rules: EventRules) -> _Judged:
        outcome = recording.outcome(rules)
        matched = matches(outcome.truth, outcome.events, IOUS[0])
        found = [place in matched for place in range(len(outcome.truth))]
        return cls(recording, outcome, found, judge(outcome, matched))

    def mistakes(self) -> list[_Mistake]:
        """Actions that were missed and events that are none, in order of time."""
        name, mistakes = self.recording.name, []
        for action, found in zip(self.outcome.truth, self.found, strict=True):
            if not found:
                score, other = self._scores_in(action)
                beside = f", {other[0]} {other[1]:.2f}" if other else ""
                what = f"No event matches it. Best score in it: {action.label} {score:.2f}{beside}."
                mistakes.append(_Mistake(name, action, f"{name} {_at(action)}: {action.label} was missed", what, 1.0))
        for event, verdict in zip(self.outcome.events, self.verdicts, strict=True):
            if verdict != "right":
                what = {
                    "false alarm": "Nothing that was taught happens there.",
                    "mistaken": f"It is {' and '.join(sorted(during(event, self.outcome.truth)))}.",
                    "repeated": "The action is told twice, or the event lies beside it.",
                }[verdict]
                title = f"{name} {_at(event)}: {event.label} was told, {verdict}"
                mistakes.append(_Mistake(name, event, title, f"{what} Score {event.score:.2f}.", event.score))
        return sorted(mistakes, key=lambda one: one.span.start)

    def _scores_in(self, action: TrueAction) -> tuple[float, tuple[str, float] | None]:
        """The highest score of an action's class in windows around its time, and the highest of another class."""
        best: dict[str, float] = {}
        for window in self.recording.windows:
            if action.start <= (window.start + window.end) / 2 <= action.end:
                for label, score in window.scores.items():
                    best[label] = max(best.get(label, 0.0), score)
        own = best.pop(action.label, 0.0)
        other = max(best, key=lambda name: best[name], default=None)
        return own, (other, best[other]) if other is not None and best[other] > 0 else None

    def drawn(self) -> dict[str, Any]:
        """What the template shows of it."""
        seconds, truth, events = self.recording.seconds, self.outcome.truth, self.outcome.events
        width = max(56.0, _REM_PER_MINUTE * seconds / 60)
        step = next((s for s in _MARKS if width * s / max(seconds, 1e-9) >= _REMS_PER_MARK), _MARKS[-1])
        labels = sorted({*(action.label for action in truth), *(event.label for event in events)})
        return {
            "name": self.recording.name,
            "length": clock(seconds),
            "width": round(width + 9),  # and the names
            "rows": [{"label": label, "path": self._path(label), "spans": self._spans(label)} for label in labels],
            "marks": [
                {"left": 100 * place * step / seconds, "text": clock(place * step).removesuffix(".0")}
                for place in range(int(seconds / step) + 1)
            ],
        }

    def _spans(self, label: str) -> list[dict[str, Any]]:
        actions = [
            self._span(action, "true" if found else "true missed", f"{label} {_at(action)}")
            for action, found in zip(self.outcome.truth, self.found, strict=True)
            if action.label == label
        ]
        events = [
            self._span(
                event,
                "event" if verdict == "right" else "event wrong",
                f"{label} {_at(event)}, score {event.score:.2f}, {verdict}",
            )
            for event, verdict in zip(self.outcome.events, self.verdicts, strict=True)
            if event.label == label
        ]
        return actions + events

    def _span(self, span: TrueAction | FoundEvent, kind: str, title: str) -> dict[str, Any]:
        scale = 100 / self.recording.seconds
        return {"kind": kind, "left": scale * span.start, "width": scale * (span.end - span.start), "title": title}

    def _path(self, label: str) -> str:
        """The score of a class over the recording as an SVG path, of several windows at one place the highest."""
        heights = np.zeros(_COLUMNS)
        half = self.recording.stride / 2
        for window in self.recording.windows:
            score = window.scores.get(label, 0.0)
            if score:
                middle = (window.start + window.end) / 2
                first, last = (
                    min(max(int(_COLUMNS * at / self.recording.seconds), 0), _COLUMNS - 1)
                    for at in (middle - half, middle + half)
                )
                heights[first : last + 1] = np.maximum(heights[first : last + 1], score)
        corners = np.flatnonzero(np.diff(heights, prepend=0.0, append=0.0))
        parts = ["M0 1"]
        for place in corners.tolist():
            height = heights[place] if place < _COLUMNS else 0.0
            parts.append(f"H{place}V{1 - height:.3f}")
        return "".join([*parts, f"H{_COLUMNS}V1Z"])


def _strip(source: FrameSource, span: TrueAction | FoundEvent) -> list[dict[str, str]]:
    """Frames from the start of a span to its end, evenly in time."""
    wanted = np.searchsorted(source.times, np.linspace(span.start, span.end, FRAMES))
    indices = np.unique(np.clip(wanted, 0, source.n_frames - 1))
    return [
        {"picture": picture(_thumb(found.rgb())), "at": clock(float(source.times[index]))}
        for index, found in zip(indices.tolist(), source.pictures(indices), strict=True)
    ]


def _thumb(frame: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    image = Image.fromarray(frame)
    image.thumbnail(_THUMB)
    return np.asarray(image)


def _at(span: TrueAction | FoundEvent) -> str:
    return f"{clock(span.start)} to {clock(span.end)}"


def _summary(result: MeasuredEvents) -> list[tuple[str, str]]:
    rules = ", ".join(
        f"{name.replace('_', ' ')} {getattr(result.rules, name):g}" for name in ("enter", "leave", "merge_gap")
    )
    return [
        ("model", f"{result.model} ({result.backend} {result.precision})"),
        ("support clips", result.bank),
        ("recordings", f"{result.recordings}, together {clock(result.seconds)}"),
        ("windows", f"{result.window:g} s, one every {result.stride:g} s"),
        ("events", rules),
    ]


def _alarms(total: Tally, result: MeasuredEvents) -> str:
    others = (
        f"Other wrong events: {result.measures.mistaken} in an action of another class, "
        f"{result.measures.repeated} beside their action or twice."
    )
    if not total.background:
        return f"False alarms are not measured: there is no background. {others}"
    return (
        f"False alarms: {total.false_alarms} in {clock(total.background)} of background, "
        f"{total.false_alarms_per_hour:.1f} per hour, at most {poisson_upper(total.false_alarms, total.hours):.1f} "
        f"with 95 % confidence. {others}"
    )


def _left_out(mistakes: Sequence[_Mistake], shown: Sequence[_Mistake]) -> str:
    rest = len(mistakes) - len(shown)
    return f"{rest} more mistakes with lower scores have no strip; the time lines have all." if rest else ""
