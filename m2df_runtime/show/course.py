"""What a recording's windows and events were, kept for whoever draws it: scores of classes, ends of events."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.stream.events import Event, EventRules
from m2df_runtime.stream.stream import WindowAnswer

ROWS = 8  # classes that are drawn: those with the highest scores

_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600)  # seconds between marks
_MARKS = 12


class Course:
    """Collects while a recording is read.

    Args:
        name: Of the recording.
        rules: What made the events.

    Attributes:
        spans: Start and end of every window.
    """

    def __init__(self, name: str, rules: EventRules) -> None:
        self.name, self.rules = name, rules
        self.events: list[Event] = []
        self.spans: list[tuple[float, float]] = []
        self._scores: dict[str, list[tuple[int, float]]] = {}  # class to window and score, zeros left out

    def add(self, answer: WindowAnswer | None, events: Sequence[Event]) -> None:
        """One step of a stream."""
        if answer:
            for label, score in answer.scores.items():
                course = self._scores.setdefault(label, [])
                if score:
                    course.append((len(self.spans), score))
            self.spans.append((answer.start, answer.end))
        self.events += [event for event in events if event.type == "end"]

    @property
    def start(self) -> float:
        """First second."""
        return self.spans[0][0] if self.spans else 0.0

    @property
    def end(self) -> float:
        """Second at which it ends."""
        return self.spans[-1][1] if self.spans else 0.0

    @property
    def labels(self) -> list[str]:
        """All classes, those with the highest scores first."""
        best = {label: max((s for _, s in course), default=0.0) for label, course in self._scores.items()}
        return sorted(best, key=lambda label: (-best[label], label))

    def share(self, second: float) -> float:
        """Where a second lies in the recording, from 0 to 1."""
        return min(max((second - self.start) / max(self.end - self.start, 1e-9), 0.0), 1.0)

    def marks(self, most: int = _MARKS) -> list[float]:
        """Seconds at which an axis has marks."""
        span = self.end - self.start
        step = next((step for step in _STEPS if span / step <= most), _STEPS[-1])
        return [self.start + number * step for number in range(int(span / step) + 1)]

    def heights(self, label: str, columns: int) -> NDArray[np.float64]:
        """The highest score of a class at each of so many places from start to end.

        A window's score stands from half a stride before its middle to half after.
        """
        final = len(self.spans) - 1
        heights = np.zeros(columns)
        for window, score in self._scores[label]:
            around = (max(window - 1, 0), window, min(window + 1, final))
            before, middle, after = (sum(self.spans[place]) / 2 for place in around)
            first = self.start if window == 0 else (before + middle) / 2
            last = self.end if window == final else (middle + after) / 2
            left, right = (round(self.share(second) * (columns - 1)) for second in (first, last))
            heights[left : right + 1] = np.maximum(heights[left : right + 1], score)
        return heights

    def deciding(self, event: Event) -> tuple[float, float]:
        """Start and end of the window in which an event had its highest score."""
        inside = (
            self.spans[window]
            for window, score in self._scores[event.label]
            if score == event.top_score and self.spans[window][0] < event.end and self.spans[window][1] > event.start
        )
        return next(inside, (event.start, event.end))
