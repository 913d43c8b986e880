"""Recordings under evaluation: the scores of their windows, computed once, and the events that rules make of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from m2df_runtime import EventRules, Matcher, Stream
from m2df_runtime.clips.source import FrameSource
from m2df_runtime.stream.events import EventTracker, WindowScores
from m2df_train.evaluation.event_measures import FoundEvent, Outcome, TrueAction


@dataclass(frozen=True)
class ScoredRecording:
    """One recording as one bank sees it.

    Attributes:
        name: Of the recording.
        seconds: How long it is.
        truth: What happens in it.
        windows: Scores of its windows, in order.
        window: Seconds of a window.
        stride: Seconds from one to the next.
    """

    name: str
    seconds: float
    truth: Sequence[TrueAction]
    windows: Sequence[WindowScores]
    window: float
    stride: float

    def called(self, names: Mapping[str, str]) -> ScoredRecording:
        """The same with classes of other names, and without events of the classes that `names` lacks."""

        def renamed(values: Mapping[str, float]) -> dict[str, float]:
            return {names[label]: value for label, value in values.items() if label in names}

        windows = [replace(one, scores=renamed(one.scores), distances=renamed(one.distances)) for one in self.windows]
        return replace(self, windows=windows)

    def outcome(self, rules: EventRules) -> Outcome:
        """The events that rules make of the windows, as the stream would tell them."""
        tracker = EventTracker(rules, self.window, self.stride)
        told: dict[int, float] = {}
        found: list[FoundEvent] = []
        for window in (*self.windows, None):
            now = self.seconds if window is None else window.end
            for event in tracker.finish() if window is None else tracker.step(window):
                told.setdefault(event.id, now)
                if event.type == "end":
                    found.append(FoundEvent(event.start, event.end, event.label, event.top_score, told[event.id]))
        return Outcome(self.seconds, self.truth, found)


def scored(
    matcher: Matcher,
    source: FrameSource,
    name: str,
    truth: Sequence[TrueAction],
    *,
    window: float | None = None,
    stride: float | None = None,
    advance: Callable[[int], None] = lambda _seconds: None,
) -> ScoredRecording:
    """Look at a recording through windows.

    Args:
        matcher: Answers them.
        source: The recording.
        name: What results call it.
        truth: What happens in it.
        window: Seconds of a window; None as `Stream` has it.
        stride: Seconds from one to the next; None as `Stream` has it.
        advance: Called with the whole seconds that were looked at since the last call.

    Raises:
        InputError: A window or stride that is none, or a bank of one class.
        ClipError: The recording cannot be read.
    """
    stream = Stream(matcher, source, window=window, stride=stride)
    windows: list[WindowScores] = []
    reached = 0
    with closing(stream.steps()) as steps:
        for step in steps:
            if answer := step.answer:
                windows.append(answer.window_scores())
                advance(int(answer.end) - reached)
                reached = int(answer.end)
    return ScoredRecording(name, source.duration, truth, windows, stream.window, stream.stride)
