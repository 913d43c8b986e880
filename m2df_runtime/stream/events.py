"""Events from the scores of windows, as pure code: what was done, from when to when.

Every class is followed by itself. An event begins where its score reaches `enter` and lasts while that stays at or
above `leave`; gaps, lengths and pauses are in seconds of the recording.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Literal

from m2df_runtime.bundle.prompt_texts import class_key
from m2df_runtime.errors import InputError, printable
from m2df_runtime.stream.zones import zone_name


@dataclass(frozen=True)
class EventRules:
    """When windows become an event.

    Attributes:
        enter: Score from which an event begins, in (0, 1].
        leave: Score below which it ends, at most `enter`.
        min_duration: Seconds that it must last before it is told. None: two windows must know it, unless there is but
            one; what a single window knows is mostly the change from one action to another.
        merge_gap: Seconds between two events of a class up to which they are one. Its end is told that much later.
        max_duration: Seconds after which it ends although it goes on; what follows is another event.
        cooldown: Seconds after its end in which no other of its class begins.
        update_every: Seconds between two updates of an event that goes on.

    Raises:
        InputError: A number that is none of these.

    Examples:
        >>> from m2df_runtime import EventRules
        >>> EventRules(enter=0.8, leave=0.5).merge_gap
        0.5
    """

    # On generated validation recordings, with 2, 3 and 5 clips of each action, 0.6 and 0.4 told a fifth more false
    # alarms than these, at about the same recall.
    enter: float = 0.7
    leave: float = 0.5
    min_duration: float | None = None
    merge_gap: float = 0.5
    max_duration: float = math.inf
    cooldown: float = 0.0
    update_every: float = 1.0

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if value is None and one.default is None:
                continue
            if not value >= 0 or (math.isinf(value) and one.name != "max_duration"):  # not a number, too
                raise InputError(f"{one.name} of events is {value}, which is not a number from 0 up")
        if not 0 < self.enter <= 1 or self.leave > self.enter:
            raise InputError(
                f"events enter at {self.enter} and leave at {self.leave}", "0 <= leave <= enter <= 1, and enter above 0"
            )
        if self.max_duration <= (self.min_duration or 0.0):
            raise InputError(
                f"events of at least {self.min_duration or 0} s cannot be at most {self.max_duration} s long",
                "max_duration must be above min_duration",
            )


@dataclass(frozen=True)
class WindowScores:
    """What one window says.

    Attributes:
        start: Its first second.
        end: The second at which it ends.
        scores: Class to score in [0, 1]; a class that is not in it has 0.
        distances: Class to distance.
    """

    start: float
    end: float
    scores: Mapping[str, float]
    distances: Mapping[str, float]


@dataclass(frozen=True)
class Event:
    """What is known of an event at the moment at which it is told.

    Attributes:
        type: `new` when it is told first, `update` while it goes on, `end` when it is over.
        id: Its number in the stream; the same in all that is told of it.
        camera: Name of the recording or camera.
        zone: Part of its picture; None for all of it.
        label: The class.
        score: Of its newest window.
        top_score: The highest of its windows.
        runner_up: The class that was next in the window of the highest score; None where there was none.
        distance: Of the class in that window.
        windows: How many windows made it.
        start: Second of the stream at which it begins.
        end: Second at which it ends, as far as it is known.
        start_time: The same as Unix seconds; None where the wall clock is not known, as of a file.
        end_time: The same of the end.

    Examples:
        >>> from m2df_runtime import Event
        >>> event = Event("end", 1, "door", None, "wave", 0.9, 0.95, "clap", -3.2, 7, 12.25, 15.75, None, None)
        >>> print(event.text())
        door: wave from 0:12.2 to 0:15.8, 95 %
        >>> event.record()["label"]
        'wave'
    """

    type: Literal["new", "update", "end"]
    id: int
    camera: str
    zone: str | None
    label: str
    score: float
    top_score: float
    runner_up: str | None
    distance: float
    windows: int
    start: float
    end: float
    start_time: float | None
    end_time: float | None

    def record(self) -> dict[str, object]:
        """The object that `m2df-run --window --json` prints; seconds to the millisecond."""
        return {name: round(v, 3) if name in _TIMES and v is not None else v for name, v in asdict(self).items()}

    def text(self) -> str:
        """The line that `m2df-run --window` prints at its end."""
        when = f"from {clock(self.start)} to {clock(self.end)}"
        return printable(f"{zone_name(self.camera, self.zone)}: {self.label} {when}, {100 * self.top_score:.0f} %")


def clock(seconds: float) -> str:
    """Seconds of a recording as people read them: 0:12.5, 1:02:05.4."""
    tenths = round(10 * seconds)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest / 10:04.1f}" if hours else f"{minutes}:{rest / 10:04.1f}"


_TIMES = ("start", "end", "start_time", "end_time")


@dataclass
class _Course:
    """An event of one class as it goes on."""

    label: str
    start: float
    end: float  # of the last window that held it
    score: float = 0.0
    top_score: float = 0.0
    runner_up: str | None = None
    distance: float = 0.0
    windows: int = 0
    fallen: bool = False  # below `leave` since
    id: int = 0  # 0 until it is told
    told: float = field(default=-math.inf)  # end as it was told last


class EventTracker:
    """Follows the windows of one recording.

    A window speaks for its middle: an action fills most of the windows that know it, and those reach beyond it on both
    sides. Of overlapping windows that is the middle half, of windows that only touch each other all.

    Args:
        rules: When windows become an event.
        length: Seconds of a window.
        stride: Seconds from one to the next.
        camera: Name of the recording.
        zone: Part of its picture; None for all of it.
        began: Wall clock of second 0, in Unix seconds.
        numbers: Of the events, from the next one on; those of all zones and parts of a camera go on in one row.
        labels: Classes that are told, whatever their capital letters; None tells all. The others are followed by
            nobody.
    """

    def __init__(
        self,
        rules: EventRules,
        length: float,
        stride: float,
        *,
        camera: str = "",
        zone: str | None = None,
        began: float | None = None,
        numbers: Iterator[int] | None = None,
        labels: Collection[str] | None = None,
    ) -> None:
        self._rules = rules
        self._stride = stride
        self._margin = min(length / 4, (length - stride) / 2)
        self._camera, self._zone, self._began = camera, zone, began
        self._numbers = numbers or itertools.count(1)
        self._labels = None if labels is None else frozenset(map(class_key, labels))
        self._courses: dict[str, _Course] = {}
        self._blocked: dict[str, float] = {}  # class to the second before which none begins
        self._last: tuple[float, WindowScores] | None = None  # the newest window, and the end of its middle
        self._fewest = 2  # windows that must know an event: 1 once the recording is known to have but one
        self._windows = 0

    def step(self, window: WindowScores) -> list[Event]:
        """What the next window tells; windows come in order."""
        start, end = self._middle(window)
        if self._last is None:
            start = window.start
        self._last = (end, window)
        self._windows += 1
        told: list[Event] = []
        for course in list(self._courses.values()):
            if start - course.end > self._rules.merge_gap:
                told += self._ended(course)
        known = [
            label for label, score in window.scores.items() if score >= self._rules.enter and self._tells_of(label)
        ]
        for label in sorted({*self._courses, *known}):
            told += self._followed(label, window, start, end)
        return told

    def finish(self) -> list[Event]:
        """What the end of the recording tells."""
        told: list[Event] = []
        self._fewest = min(2, self._windows)
        for course in list(self._courses.values()):
            if self._last is not None and course.end == self._last[0]:
                course.end = min(self._last[1].end, course.start + self._rules.max_duration)
            told += self._new(course)
            told += self._ended(course)
        return told

    def _tells_of(self, label: str) -> bool:
        return self._labels is None or class_key(label) in self._labels

    def _middle(self, window: WindowScores) -> tuple[float, float]:
        centre = (window.start + window.end) / 2
        return min(window.start + self._margin, centre), max(window.end - self._margin, centre)

    def _followed(self, label: str, window: WindowScores, start: float, end: float) -> Iterator[Event]:
        """One class in one window, of which `start` to `end` is the middle."""
        rules, score = self._rules, window.scores.get(label, 0.0)
        course = self._courses.get(label)
        if course is None:
            begin = max(start, self._blocked.get(label, -math.inf))
            if begin >= end:
                return
            course = self._courses[label] = _Course(label, begin, end)
        elif score < (rules.enter if course.fallen else rules.leave):
            course.score, course.fallen = score, True
            # What the next window could add would begin one stride later.
            if start + self._stride - course.end > rules.merge_gap:
                yield from self._ended(course)
            return
        course.score, course.fallen = score, False
        course.end = min(end, course.start + rules.max_duration)
        course.windows += 1
        if score > course.top_score:
            course.top_score, course.distance = score, window.distances[label]
            others = {other: value for other, value in window.scores.items() if other != label}
            course.runner_up = max(others, key=lambda other: others[other], default=None)
        if course.id:
            if course.end - course.told >= rules.update_every:
                yield self._event("update", course)
        else:
            yield from self._new(course)
        if course.end - course.start >= rules.max_duration:
            yield from self._ended(course)

    def _new(self, course: _Course) -> Iterator[Event]:
        least = self._rules.min_duration
        enough = course.windows >= self._fewest if least is None else course.end - course.start >= least
        if not course.id and enough:
            course.id = next(self._numbers)
            yield self._event("new", course)

    def _ended(self, course: _Course) -> Iterator[Event]:
        del self._courses[course.label]
        if course.id:
            self._blocked[course.label] = course.end + self._rules.cooldown
            yield self._event("end", course)

    def _event(self, kind: Literal["new", "update", "end"], course: _Course) -> Event:
        course.told = course.end
        return Event(
            type=kind,
            id=course.id,
            camera=self._camera,
            zone=self._zone,
            label=course.label,
            score=course.score,
            top_score=course.top_score,
            runner_up=course.runner_up,
            distance=course.distance,
            windows=course.windows,
            start=course.start,
            end=course.end,
            start_time=None if self._began is None else self._began + course.start,
            end_time=None if self._began is None else self._began + course.end,
        )
