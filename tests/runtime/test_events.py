"""Events from scores: hand-made cases, and a second way to find them that sees all windows at once."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2df_runtime import Event, EventRules
from m2df_runtime.errors import InputError
from m2df_runtime.stream.events import EventTracker, WindowScores, clock

LENGTH, STRIDE = 2.0, 0.5
EXACT = {"min_duration": 0.0, "merge_gap": 0.0}


def track(scores: list[float] | list[dict[str, float]], begins: list[float] | None = None, **rules: Any) -> list[Event]:
    """Events of windows of 2 s, one every 0.5 s unless told when they begin; a number is the score of `a`."""
    tracker = EventTracker(EventRules(**{**EXACT, **rules}), LENGTH, STRIDE, camera="door", began=1000.0)
    told: list[Event] = []
    for number, found in enumerate(scores):
        each = found if isinstance(found, dict) else {"a": found, "b": 0.1}
        start = STRIDE * number if begins is None else begins[number]
        told += tracker.step(WindowScores(start, start + LENGTH, each, {label: -1.0 - each[label] for label in each}))
    return told + tracker.finish()


def spans(events: list[Event], kind: str = "end") -> list[tuple[float, float]]:
    return [(event.start, event.end) for event in events if event.type == kind]


def test_an_event_begins_at_enter_and_lasts_until_leave() -> None:
    told = track([0.1, 0.5, 0.7, 0.5, 0.9, 0.45, 0.2, 0.5, 0.1, 0.1], enter=0.6, leave=0.4)
    # Windows 2 to 5 hold it; the middle of window k is from k / 2 + 0.5 to k / 2 + 1.5.
    assert spans(told) == [(1.5, 4.0)]
    first, last = told[0], told[-1]
    assert (first.type, first.id, first.start, first.end, first.windows) == ("new", 1, 1.5, 2.5, 1)
    assert (last.type, last.id, last.windows, last.top_score, last.score) == ("end", 1, 4, 0.9, 0.5)
    assert (last.runner_up, last.distance) == ("b", -1.9)
    assert (last.camera, last.zone, last.start_time, last.end_time) == ("door", None, 1001.5, 1004.0)
    assert [event.type for event in told] == ["new", "update", "end"]


@pytest.mark.parametrize(
    ("scores", "rules", "expected"),
    [
        ([0.0] * 5, {}, []),
        ([0.59] * 5, {}, []),
        ([1.0] * 5, {}, [(0.0, 4.0)]),  # from the first second of the recording to its last
        ([0, 1, 0, 0, 0, 0], {}, [(1.0, 2.0)]),
        ([0, 1, 0, 1, 0, 0], {}, [(1.0, 3.0)]),  # their middles touch
        ([0, 1, 0, 0, 1, 0, 0], {}, [(1.0, 2.0), (2.5, 3.5)]),
        ([0, 1, 0, 0, 1, 0, 0], {"merge_gap": 0.5}, [(1.0, 3.5)]),
        ([0, 1, 0, 0, 0.5, 0, 0], {"merge_gap": 0.5}, [(1.0, 2.0)]),  # what fell must enter again
        ([0, 1, 0, 1, 1, 0, 0, 0], {"min_duration": 1.2}, [(1.0, 3.5)]),
        ([0, 1, 0, 0, 0, 1, 1, 0, 0], {"min_duration": 1.2}, [(3.0, 4.5)]),
        ([1, 0, 0, 0, 0, 0], {"min_duration": 1.2}, [(0.0, 1.5)]),
        ([0, 1, 1, 1, 1, 1, 1, 0, 0], {"max_duration": 2.0}, [(1.0, 3.0), (3.0, 4.5)]),
        ([0, 1, 1, 1, 1, 1, 1, 0, 0], {"max_duration": 2.0, "cooldown": 1.0}, [(1.0, 3.0), (4.0, 4.5)]),
        ([0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 0], {"cooldown": 1.8}, [(1.0, 2.0), (4.0, 5.0)]),
        ([0, 0, 0, 0, 0, 1], {}, [(3.0, 4.5)]),  # open at the end: until the end
    ],
)
def test_rules(scores: list[float], rules: dict[str, float], expected: list[tuple[float, float]]) -> None:
    assert spans(track(scores, **rules)) == expected


def test_an_event_ends_where_the_recording_has_a_gap() -> None:
    told = track([1.0, 1.0, 1.0, 1.0], begins=[0.0, 0.5, 60.0, 60.5])
    assert spans(told) == [(0.0, 2.0), (60.5, 62.5)]


def test_every_class_is_followed_by_itself() -> None:
    both = [{"a": 0.9, "b": 0.0}, {"a": 0.5, "b": 0.0}, {"a": 0.45, "b": 0.7}, {"a": 0.0, "b": 0.8}, {}, {}, {}]
    told = track(both, enter=0.6, leave=0.4)
    assert [(e.label, e.type, e.id) for e in told if e.type != "update"] == [
        ("a", "new", 1), ("b", "new", 2), ("a", "end", 1), ("b", "end", 2)
    ]  # fmt: skip
    assert {e.label: (e.start, e.end) for e in told if e.type == "end"} == {"a": (0.0, 2.5), "b": (1.5, 3.0)}
    (only,) = (e for e in track([{"a": 1.0}] * 2) if e.type == "end")
    assert only.runner_up is None


def test_two_windows_must_know_an_event_unless_there_is_but_one() -> None:
    assert spans(track([0, 1, 0, 0, 0, 1, 1, 0, 0], min_duration=None)) == [(3.0, 4.5)]
    assert spans(track([1, 0, 0, 0, 0, 1], min_duration=None)) == []
    assert spans(track([1], min_duration=None)) == [(0.0, 2.0)]
    new, *_ = track([0, 1, 1, 0, 0], min_duration=None)
    assert (new.type, new.windows, new.end) == ("new", 2, 2.5)


def test_updates_come_at_most_as_often_as_asked() -> None:
    ends = [event.end for event in track([1.0] * 20, update_every=2.0) if event.type != "end"]
    assert ends == [1.5, 3.5, 5.5, 7.5, 9.5]
    assert not spans(track([1.0] * 20, update_every=100.0), "update")


def test_a_shorter_window_at_the_end_counts_to_its_end() -> None:
    tracker = EventTracker(EventRules(**EXACT), LENGTH, STRIDE)
    tracker.step(WindowScores(0.0, 2.0, {"a": 1.0}, {"a": 0.0}))
    tracker.step(WindowScores(0.5, 2.2, {"a": 1.0}, {"a": 0.0}))
    assert spans(tracker.finish()) == [(0.0, 2.2)]
    tracker = EventTracker(EventRules(**EXACT), LENGTH, STRIDE)  # a recording of a fifth of a second
    tracker.step(WindowScores(0.0, 0.2, {"a": 1.0}, {"a": 0.0}))
    assert spans(tracker.finish()) == [(0.0, 0.2)]


def offline(scores: np.ndarray, rules: EventRules) -> list[tuple[float, float]]:
    """Events by a second way: the middles of held windows, joined over gaps; no `max_duration`, no `cooldown`."""
    held, on = [], False
    for score in scores:
        on = score >= (rules.leave if on else rules.enter)
        held.append(on)
    runs: list[list[float]] = []
    for number in np.flatnonzero(held):
        start, end = 0.5 * number + 0.5, 0.5 * number + 1.5
        start, end = (0.0 if number == 0 else start), (end + 0.5 if number == len(scores) - 1 else end)
        if runs and start - runs[-1][1] <= rules.merge_gap:
            runs[-1][1] = end
        else:
            runs.append([start, end])
    return [(start, end) for start, end in runs if end - start >= rules.min_duration]


@given(
    scores=st.lists(st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]), min_size=1, max_size=40),
    merge_gap=st.sampled_from([0.0, 0.4, 0.5, 1.7]),
    min_duration=st.sampled_from([0.0, 1.25, 2.0]),
)
def test_events_are_those_found_with_all_windows_at_hand(
    scores: list[float], merge_gap: float, min_duration: float
) -> None:
    rules = EventRules(merge_gap=merge_gap, min_duration=min_duration)
    told = track(scores, merge_gap=merge_gap, min_duration=min_duration)
    assert spans(told) == offline(np.asarray(scores), rules)


@given(
    scores=st.lists(st.sampled_from([0.0, 0.5, 0.7, 1.0]), min_size=1, max_size=60),
    skips=st.lists(st.sampled_from([0.5, 0.5, 0.5, 3.0, 100.0]), min_size=60, max_size=60),
    rules=st.fixed_dictionaries(
        {"merge_gap": st.sampled_from([0.0, 1.0]), "cooldown": st.sampled_from([0.0, 1.3])},
        optional={"max_duration": st.sampled_from([0.7, 2.0, 3.1]), "min_duration": st.sampled_from([0.5, 0.6])},
    ),
)
def test_what_is_told_is_always_in_order(scores: list[float], skips: list[float], rules: dict[str, float]) -> None:
    begins = np.cumsum(skips)[: len(scores)].tolist()
    told = track(scores, begins=begins, **rules)
    by_id: dict[int, list[Event]] = {}
    for event in told:
        assert event.end - event.start <= rules.get("max_duration", math.inf) + 1e-9
        assert event.start < event.end and event.score <= event.top_score
        by_id.setdefault(event.id, []).append(event)
    assert list(by_id) == list(range(1, len(by_id) + 1))
    for course in by_id.values():
        assert [event.type for event in course] == ["new", *["update"] * (len(course) - 2), "end"]
        assert all(a.end <= b.end for a, b in itertools.pairwise(course))
        assert course[-1].end - course[-1].start >= rules.get("min_duration", 0.0) - 1e-9
    ends = spans(told)
    assert all(b[0] - a[1] >= rules["cooldown"] - 1e-9 for a, b in itertools.pairwise(ends))


def test_times_are_written_as_people_read_them() -> None:
    assert [clock(s) for s in (0, 9.96, 59.96, 61.25, 3599.94, 3725.44)] == [
        "0:00.0", "0:10.0", "1:00.0", "1:01.2", "59:59.9", "1:02:05.4"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"enter": 0.3, "leave": 0.4}, "enter at 0.3 and leave at 0.4"),
        ({"enter": 1.2}, "enter at 1.2"),
        ({"enter": 0.0, "leave": 0.0}, "enter above 0"),
        ({"merge_gap": -1.0}, "merge_gap of events is -1.0"),
        ({"cooldown": math.nan}, "cooldown of events is nan"),
        ({"cooldown": math.inf}, "cooldown of events is inf"),
        ({"min_duration": 3.0, "max_duration": 2.0}, "at least 3.0 s cannot be at most 2.0 s"),
        ({"max_duration": 0.0}, "at least 0 s cannot be at most 0.0 s"),
    ],
)
def test_rules_that_make_no_sense_are_refused(rules: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EventRules(**rules)
