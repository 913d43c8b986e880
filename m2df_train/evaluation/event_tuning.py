"""Choosing the rules of events on annotated recordings, and what each choice trades for what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from m2df_runtime import EventRules
from m2df_train.evaluation.event_measures import Tally, tally
from m2df_train.evaluation.recordings import ScoredRecording

RECALLS = (0.8, 0.9)  # at which false alarms are told
_ENTERS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_LEAVES = (0.4, 0.7, 1.0)  # as a part of enter
_DURATIONS = (0.0, 0.55, 0.8, 1.1)  # of a window: one alone speaks for its middle half
_GAPS = (0.0, 0.25, 0.5, 1.0)  # of a window
_SWEEP = 40  # values of enter at which recalls are looked for


@dataclass(frozen=True)
class Choice:
    """Rules, and what they give on all recordings."""

    rules: EventRules
    tally: Tally


@dataclass(frozen=True)
class Tuned:
    """What was found for some recordings.

    Attributes:
        best: The highest F1 at IoU 0.3; of equal ones the highest at 0.5.
        trade: Choices that have fewer false alarms than every one of a higher recall, the highest recall first.
        others: What is found where the rules of each recording are chosen on the other ones; None with one recording.
            `best` is measured on what it was chosen on.
    """

    best: Choice
    trade: tuple[Choice, ...]
    others: Tally | None


def candidates(window: float, base: EventRules) -> list[EventRules]:
    """Rules to be tried with windows of that many seconds; what is not tuned is as in `base`."""
    return [
        replace(
            base,
            enter=enter,
            leave=round(enter * leave, 3),
            min_duration=round(duration * window, 2),
            merge_gap=round(gap * window, 2),
        )
        for enter, leave, duration, gap in product(_ENTERS, _LEAVES, _DURATIONS, _GAPS)
        if duration * window < base.max_duration
    ]


def tune(
    recordings: Sequence[ScoredRecording], base: EventRules, advance: Callable[[int], None] = lambda _count: None
) -> Tuned:
    """Try all candidates on annotated recordings.

    Args:
        recordings: With windows of the same length.
        base: Rules in use.
        advance: Called after each candidate.
    """
    rules = candidates(recordings[0].window, base)
    tallies = []  # of each candidate, by recording
    for one in rules:
        tallies.append([tally(recording.outcome(one)) for recording in recordings])
        advance(1)
    totals = [sum(own, Tally()) for own in tallies]
    best = max(range(len(rules)), key=lambda place: _quality(totals[place]))
    others = Tally()
    for number in range(len(recordings)):
        rest = [sum((own for at, own in enumerate(each) if at != number), Tally()) for each in tallies]
        chosen = max(range(len(rules)), key=lambda place: _quality(rest[place]))
        others += tallies[chosen][number]
    choices = [Choice(one, total) for one, total in zip(rules, totals, strict=True)]
    return Tuned(choices[best], _trade(choices), others if len(recordings) > 1 else None)


def at_recalls(recordings: Sequence[ScoredRecording], rules: EventRules) -> dict[float, Choice | None]:
    """The fewest false alarms at each of `RECALLS` or more, where `enter` alone moves and `leave` in proportion."""
    swept = []
    for enter in np.linspace(1 / _SWEEP, 1, _SWEEP).tolist():
        moved = replace(rules, enter=enter, leave=min(enter * rules.leave / rules.enter, enter))
        swept.append(Choice(moved, sum((tally(one.outcome(moved)) for one in recordings), Tally())))
    found: dict[float, Choice | None] = {}
    for recall in RECALLS:
        reached = [one for one in swept if (one.tally.counts[0].recall or 0.0) >= recall]
        found[recall] = min(reached, key=lambda one: one.tally.false_alarms, default=None)
    return found


def _quality(total: Tally) -> tuple[float, ...]:
    """What is to be high: F1 at each IoU in turn, then few false alarms."""
    return (*(counts.f1 or 0.0 for counts in total.counts), -total.false_alarms)


def _trade(choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """Choices that no other beats in both, one for each number of matches."""
    best: dict[int, Choice] = {}
    for one in choices:
        matched = one.tally.counts[0].matched
        if matched and (matched not in best or _cheaper(one.tally, best[matched].tally)):
            best[matched] = one
    kept: list[Choice] = []
    for matched in sorted(best, reverse=True):
        if not kept or best[matched].tally.false_alarms < kept[-1].tally.false_alarms:
            kept.append(best[matched])
    return tuple(kept)


def _cheaper(one: Tally, other: Tally) -> bool:
    """Whether of two with as many matches the first has fewer false alarms, or else a higher quality."""
    return (-one.false_alarms, *_quality(one)) > (-other.false_alarms, *_quality(other))
