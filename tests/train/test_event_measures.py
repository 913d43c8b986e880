"""Measures of events against closed forms and a second way to count."""

from __future__ import annotations

import numpy as np
import pytest

from m2df_train.evaluation.event_compare import compare_events
from m2df_train.evaluation.event_measures import (
    IOUS,
    Counts,
    FoundEvent,
    Outcome,
    Tally,
    TrueAction,
    covered,
    matches,
    measure,
    tally,
    temporal_iou,
)


def event(start: float, end: float, label: str = "a", score: float = 0.5, told: float | None = None) -> FoundEvent:
    return FoundEvent(start, end, label, score, end if told is None else told)


def drawn(rng: np.random.Generator) -> Outcome:
    """Spans of whole seconds, which cells of a second can count."""

    def spans(count: int) -> list[tuple[int, int, str]]:
        starts = rng.integers(0, 50, count).tolist()
        return [(s, s + int(rng.integers(1, 10)), "ab"[int(rng.integers(2))]) for s in starts]

    truth = [TrueAction(*one) for one in spans(int(rng.integers(0, 8)))]
    scores = rng.choice([0.5, 0.7, 0.8, 0.9], 10).tolist()
    return Outcome(60, truth, [event(*one, score=scores[k]) for k, one in enumerate(spans(int(rng.integers(0, 10))))])


def cells(span: TrueAction | FoundEvent) -> set[int]:
    return set(range(int(span.start), int(span.end)))


def counted(outcome: Outcome, iou: float) -> list[int | None]:
    """The greedy assignment from a table of all pairs, seconds counted one by one."""
    table = np.full((len(outcome.events), len(outcome.truth)), -1.0)
    for row, found in enumerate(outcome.events):
        for column, action in enumerate(outcome.truth):
            if found.label == action.label:
                table[row, column] = len(cells(found) & cells(action)) / len(cells(found) | cells(action))
    order = sorted(range(len(outcome.events)), key=lambda row: outcome.events[row].start)
    order.sort(key=lambda row: outcome.events[row].score, reverse=True)
    result: list[int | None] = [None] * len(outcome.events)
    for row in order:
        if table.shape[1] and table[row].max() >= iou:
            result[row] = int(table[row].argmax())
            table[:, result[row]] = -1
    return result


def test_matches_equal_those_of_a_second_way_to_count() -> None:
    rng, some = np.random.default_rng(0), 0
    for _ in range(300):
        outcome = drawn(rng)
        for iou in IOUS:
            found = matches(outcome.truth, outcome.events, iou)
            assert found == counted(outcome, iou)
            some += sum(index is not None for index in found)
        everywhere = set().union(*(cells(action) for action in outcome.truth))
        assert covered(outcome.truth, 60) == len(everywhere)
        assert covered(outcome.truth, 30) == len(everywhere & set(range(30)))
        total = tally(outcome)
        assert total.background == 60 - len(everywhere)
        assert sum((tally(one) for one in (outcome, outcome)), Tally()).counts[0].true == 2 * len(outcome.truth)
    assert some > 100


def test_the_better_score_takes_an_action_and_the_other_event_repeats_it() -> None:
    truth = [TrueAction(10, 20, "a")]
    events = [event(10, 20, score=0.6), event(12, 20, score=0.9)]
    assert matches(truth, events, 0.5) == [None, 0]
    found = measure([Outcome(100, truth, events)])
    assert found.tally.counts == (Counts(1, 2, 1), Counts(1, 2, 1))
    assert (found.repeated, found.mistaken, found.tally.false_alarms, found.tally.background) == (1, 0, 0, 90)


def test_iou_is_shared_time_over_covered_time() -> None:
    assert temporal_iou(event(0, 10), event(5, 15)) == pytest.approx(1 / 3)
    assert temporal_iou(event(0, 10), event(0, 10)) == 1
    assert temporal_iou(event(0, 5), event(5, 10)) == temporal_iou(event(0, 1), event(5, 6)) == 0
    truth, events = [TrueAction(0, 10, "a")], [event(0, 4)]
    assert (matches(truth, events, 0.4), matches(truth, events, 0.41)) == ([0], [None])
    assert matches(truth, [event(0, 10, "b")], 0.1) == [None]


def test_wrong_events_are_told_apart_by_what_goes_on_in_their_middle() -> None:
    truth = [TrueAction(10, 20, "a"), TrueAction(40, 50, "b")]
    events = [
        event(10, 20, told=12.5),  # right
        event(42, 48, "a"),  # in an action of another class
        event(60, 70, "a"),  # a false alarm
        event(30, 46, "b", told=38),  # right at 0.3, as 6 of 20 seconds are shared
        event(5, 11, "b"),  # its middle is before the action
    ]
    found = measure([Outcome(3600 + 20, truth, events)])
    assert (found.mistaken, found.repeated, found.tally.false_alarms) == (1, 0, 2)
    assert sorted(found.delays) == [-2.0, 2.5]
    assert (found.tally.hours, found.tally.false_alarms_per_hour) == (1, 2)
    assert [counts.matched for counts in found.tally.counts] == [2, 1]
    assert found.per_class == {
        "a": (Counts(1, 3, 1), Counts(1, 3, 1)),
        "b": (Counts(1, 2, 1), Counts(1, 2, 0)),
    }


def test_shares_of_nothing_are_none() -> None:
    assert (Counts().f1, Counts().precision, Counts().recall) == (None, None, None)
    assert (Counts(2, 0, 0).f1, Counts(0, 2, 0).f1, Counts(2, 0, 0).recall) == (0, 0, 0)
    counts = Counts(8, 5, 4)
    precision, recall = 4 / 5, 4 / 8
    assert counts.f1 == pytest.approx(2 * precision * recall / (precision + recall))
    assert Tally().false_alarms_per_hour is None


def test_two_are_compared_on_the_same_actions() -> None:
    truth = [TrueAction(0, 10, "a"), TrueAction(20, 30, "a"), TrueAction(40, 50, "b")]
    a = [Outcome(60, truth, [event(0, 10), event(20, 30)])] * 6
    b = [Outcome(60, truth, [event(0, 10), event(40, 50, "b"), event(55, 60)])] * 6
    found = compare_events(a, b)
    assert (found.both, found.only_a, found.only_b, found.neither) == (6, 6, 6, 0)
    assert found.difference == pytest.approx(4 / 6 - 4 / 5)
    assert found.interval == pytest.approx((found.difference, found.difference))  # all recordings are alike
    assert compare_events(a[:2], b[:2]).interval is None
    mixed = compare_events([*a, *b], [*b, *b])
    low, high = mixed.interval or (0, 0)
    assert low < mixed.difference < high < 1e-9
