"""Measures of found events against true actions, as pure code.

An event matches a true action of its label whose temporal IoU with it is high enough: one to one, greedily, the event
with the highest score first. False alarms are events that match nothing and lie where nothing happens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

IOUS = (0.3, 0.5)
"""Temporal IoU at which an event matches; delays and false alarms are told at the first."""

Verdict = Literal["right", "false alarm", "mistaken", "repeated"]
"""It matches an action, lies where nothing happens, in an action of another class, or beside or twice in its own."""


@dataclass(frozen=True)
class TrueAction:
    """What really happens, in seconds of its recording."""

    start: float
    end: float
    label: str


@dataclass(frozen=True)
class FoundEvent:
    """What was found.

    Attributes:
        start: First second.
        end: Last second.
        label: The class.
        score: By which events are ordered.
        told: Second of the recording at which it was told first.
    """

    start: float
    end: float
    label: str
    score: float
    told: float


@dataclass(frozen=True)
class Outcome:
    """One recording: its length in seconds, what happens in it, and what was found."""

    seconds: float
    truth: Sequence[TrueAction]
    events: Sequence[FoundEvent]


@dataclass(frozen=True)
class Counts:
    """How many actions there are, how many events were found, and how many of these match.

    Shares are None where there is nothing to be a share of.
    """

    true: int = 0
    found: int = 0
    matched: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.true + other.true, self.found + other.found, self.matched + other.matched)

    @property
    def precision(self) -> float | None:
        """Share of events that match."""
        return self.matched / self.found if self.found else None

    @property
    def recall(self) -> float | None:
        """Share of actions that are matched."""
        return self.matched / self.true if self.true else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of both; 0 where only one side has any."""
        return 2 * self.matched / (self.true + self.found) if self.true + self.found else None


@dataclass(frozen=True)
class Tally:
    """What adds up over recordings.

    Attributes:
        counts: For each of `IOUS`, those of all classes.
        false_alarms: Events that match nothing at the first of `IOUS` and whose middle is in no action.
        background: Seconds in which nothing happens.
    """

    counts: tuple[Counts, ...] = field(default_factory=lambda: (Counts(),) * len(IOUS))
    false_alarms: int = 0
    background: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return Tally(counts, self.false_alarms + other.false_alarms, self.background + other.background)

    @property
    def hours(self) -> float:
        """Of background."""
        return self.background / 3600

    @property
    def false_alarms_per_hour(self) -> float | None:
        """Of background; None where there is none."""
        return self.false_alarms / self.hours if self.background else None


@dataclass(frozen=True)
class EventMeasures:
    """Of some recordings together.

    Attributes:
        tally: Counts over all classes, false alarms and background.
        per_class: Class to its counts at each of `IOUS`.
        delays: Of each matched event, at the first of `IOUS`: seconds from its action's start to when it was told;
            negative where it was told before.
        mistaken: Events that match nothing and whose middle is in an action of another label only.
        repeated: Other events that match nothing: twice the same action, or beside it.
    """

    tally: Tally
    per_class: dict[str, tuple[Counts, ...]]
    delays: tuple[float, ...]
    mistaken: int
    repeated: int


def temporal_iou(a: TrueAction | FoundEvent, b: TrueAction | FoundEvent) -> float:
    """Seconds that two spans share, over the seconds that they cover together."""
    shared = min(a.end, b.end) - max(a.start, b.start)
    return shared / (max(a.end, b.end) - min(a.start, b.start)) if shared > 0 else 0.0


def matches(truth: Sequence[TrueAction], events: Sequence[FoundEvent], iou: float) -> list[int | None]:
    """Index of the action that each event matches, or None.

    Events choose in order of their score, of equal ones the earlier first; each takes the free action of its label
    with the highest IoU, if that is `iou` or more.
    """
    found: list[int | None] = [None] * len(events)
    free = set(range(len(truth)))
    for place in sorted(range(len(events)), key=lambda one: (-events[one].score, events[one].start)):
        event = events[place]
        near = [
            (-value, index)
            for index in free
            if truth[index].label == event.label and (value := temporal_iou(truth[index], event)) >= iou
        ]
        if near:
            found[place] = min(near)[1]
            free.remove(min(near)[1])
    return found


def judge(outcome: Outcome, matched: Sequence[int | None]) -> list[Verdict]:
    """What each event is, from the action that it matches."""

    def verdict(event: FoundEvent, index: int | None) -> Verdict:
        if index is not None:
            return "right"
        if labels := during(event, outcome.truth):
            return "repeated" if event.label in labels else "mistaken"
        return "false alarm"

    return [verdict(event, index) for event, index in zip(outcome.events, matched, strict=True)]


def tally(outcome: Outcome) -> Tally:
    """What one recording adds to the tally of all."""
    found = [matches(outcome.truth, outcome.events, iou) for iou in IOUS]
    counts = tuple(
        Counts(len(outcome.truth), len(outcome.events), sum(index is not None for index in one)) for one in found
    )
    alarms = judge(outcome, found[0]).count("false alarm")
    return Tally(counts, alarms, outcome.seconds - covered(outcome.truth, outcome.seconds))


def measure(outcomes: Sequence[Outcome]) -> EventMeasures:
    """Measures over all recordings."""
    per_class: dict[str, tuple[Counts, ...]] = {}
    delays: list[float] = []
    mistaken = repeated = 0
    for one in outcomes:
        found = [matches(one.truth, one.events, iou) for iou in IOUS]
        for label in sorted({*(action.label for action in one.truth), *(event.label for event in one.events)}):
            own = [event.label == label for event in one.events]
            counts = tuple(
                Counts(
                    sum(action.label == label for action in one.truth),
                    sum(own),
                    sum(mine and index is not None for mine, index in zip(own, at, strict=True)),
                )
                for at in found
            )
            before = per_class.get(label, (Counts(),) * len(IOUS))
            per_class[label] = tuple(a + b for a, b in zip(before, counts, strict=True))
        verdicts = judge(one, found[0])
        repeated += verdicts.count("repeated")
        mistaken += verdicts.count("mistaken")
        delays += [
            event.told - one.truth[index].start
            for event, index in zip(one.events, found[0], strict=True)
            if index is not None
        ]
    total = sum((tally(one) for one in outcomes), Tally())
    return EventMeasures(total, dict(sorted(per_class.items())), tuple(delays), mistaken, repeated)


def covered(truth: Iterable[TrueAction], seconds: float) -> float:
    """How many of the first `seconds` some action takes; what several take counts once."""
    total, reached = 0.0, 0.0
    for action in sorted(truth, key=lambda one: one.start):
        start, end = max(action.start, reached), min(action.end, seconds)
        if end > start:
            total += end - start
            reached = end
    return total


def during(event: FoundEvent, truth: Iterable[TrueAction]) -> set[str]:
    """Labels of the actions that go on in the middle of an event."""
    middle = (event.start + event.end) / 2
    return {action.label for action in truth if action.start <= middle <= action.end}
