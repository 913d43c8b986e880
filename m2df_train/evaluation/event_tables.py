"""What `m2df-eval --recordings` prints: lines for people, records for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from m2df_runtime import EventRules
from m2df_runtime.bounds import poisson_upper
from m2df_train.evaluation.event_compare import EventComparison
from m2df_train.evaluation.event_measures import IOUS, Counts, EventMeasures, Tally, measure
from m2df_train.evaluation.event_tuning import Choice, Tuned, at_recalls
from m2df_train.evaluation.recordings import ScoredRecording

_TUNED = ("enter", "leave", "min_duration", "merge_gap")
_TRADE_SHOWN = 10


@dataclass(frozen=True)
class MeasuredEvents:
    """What one bank finds in the recordings.

    Attributes:
        model: The bundle.
        bank: The support clips.
        backend: Engine in use.
        precision: Precision in use.
        recordings: How many were looked at.
        seconds: How long they are together.
        window: Seconds of a window.
        stride: Seconds from one to the next.
        rules: When windows become an event.
        measures: What was measured.
        at_recalls: Recall to what has the fewest false alarms there; None where it is not reached.
    """

    model: str
    bank: str
    backend: str
    precision: str
    recordings: int
    seconds: float
    window: float
    stride: float
    rules: EventRules
    measures: EventMeasures
    at_recalls: Mapping[float, Choice | None]

    @classmethod
    def of(
        cls, recordings: Sequence[ScoredRecording], rules: EventRules, subject: tuple[str, str, str, str]
    ) -> MeasuredEvents:
        """Measure what rules make of recordings, at least one.

        Args:
            recordings: As one bank sees them, all through the same windows.
            rules: When windows become an event.
            subject: Whose they are: model, bank, backend and precision.
        """
        return cls(
            *subject,
            len(recordings),
            sum(one.seconds for one in recordings),
            recordings[0].window,
            recordings[0].stride,
            rules,
            measure([one.outcome(rules) for one in recordings]),
            at_recalls(recordings, rules),
        )


def record(result: MeasuredEvents) -> dict[str, object]:
    """One bank's result; keys are stable, shares are between 0 and 1, times are seconds."""
    found = result.measures
    return {
        "model": result.model,
        "bank": result.bank,
        "backend": result.backend,
        "precision": result.precision,
        "recordings": result.recordings,
        "seconds": round(result.seconds, 3),
        "window": result.window,
        "stride": result.stride,
        "rules": _rules(result.rules),
        "events": _counts(found.tally.counts),
        "per_class": {label: _counts(counts) for label, counts in found.per_class.items()},
        "delay": _delays(found.delays),
        "mistaken": found.mistaken,
        "repeated": found.repeated,
        **_alarms(found.tally),
        "at_recall": {f"{recall:g}": choice and _choice(choice) for recall, choice in result.at_recalls.items()},
    }


def tuned_record(tuned: Tuned) -> dict[str, object]:
    """What is proposed, and the trade."""
    return {
        "proposed": _choice(tuned.best),
        "f1_of_rules_chosen_on_other_recordings": tuned.others and _f1s(tuned.others),
        "trade": [_choice(choice) for choice in tuned.trade],
    }


def comparison_record(a: MeasuredEvents, b: MeasuredEvents, found: EventComparison) -> dict[str, object]:
    """Two results under `a` and `b`, and what lies between them."""
    return {"a": record(a), "b": record(b), **asdict(found)}


def lines(result: MeasuredEvents) -> Iterator[str]:
    """One bank's result in words."""
    yield _title(result)
    yield from _found(result)
    yield from _classes(result.measures)


def tuned_lines(tuned: Tuned, base: MeasuredEvents) -> Iterator[str]:
    """The proposal and the trade in words."""
    yield f"proposed: {_options(tuned.best.rules)}"
    now, best = base.measures.tally.counts[0].f1, tuned.best.tally.counts[0].f1
    yield f"  F1 at IoU {IOUS[0]:g}: {_percent(best)} with these, {_percent(now)} with those in use"
    if tuned.others is None:
        yield "  measured on the recording that they were chosen on; with several, each is measured on its own"
    else:
        elsewhere = tuned.others.counts[0].f1
        yield f"  where each recording's are chosen on the others: {_percent(elsewhere)}"
        if (elsewhere or 0.0) < (now or 0.0):
            yield "  keep those in use, and annotate more: what was chosen on some recordings did worse on the others"
    yield "   recall  false alarms per hour       F1  options"
    shown = tuned.trade if len(tuned.trade) <= _TRADE_SHOWN else _thinned(tuned.trade)
    for choice in shown:
        counts = choice.tally.counts[0]
        yield (
            f"  {_percent(counts.recall):>7}  {_rate(choice.tally):>21}  {_percent(counts.f1):>7}"
            f"  {_options(choice.rules)}"
        )


def comparison_lines(a: MeasuredEvents, b: MeasuredEvents, found: EventComparison) -> Iterator[str]:
    """Two results in words."""
    for letter, result in (("A", a), ("B", b)):
        yield f"{letter}  {_title(result)}"
        yield from _found(result)
    difference = f"B - A: F1 at IoU {IOUS[0]:g} {100 * found.difference:+.1f} points"
    if found.interval is not None:
        low, high = (100 * value for value in found.interval)
        difference += f", 95 % interval {low:+.1f} to {high:+.1f} over recordings"
    yield difference
    yield (
        f"  actions found by both {found.both}, A alone {found.only_a}, B alone {found.only_b}, neither {found.neither}"
    )
    names = sorted({*a.measures.per_class, *b.measures.per_class})
    width = max(map(len, [*names, "class"]))
    yield f"  {'class':{width}}  {'A F1':>7}  {'B F1':>7}"
    for name in names:
        both = (one.measures.per_class.get(name, (Counts(),))[0].f1 for one in (a, b))
        yield f"  {name:{width}}" + "".join(f"  {_percent(value):>7}" for value in both)


def _title(result: MeasuredEvents) -> str:
    return (
        f"{result.model}, {result.bank}: {result.recordings} recording{'' if result.recordings == 1 else 's'}, "
        f"{result.seconds / 60:.1f} min, windows of {result.window:g} s every {result.stride:g} s "
        f"({result.backend} {result.precision})"
    )


def _found(result: MeasuredEvents) -> Iterator[str]:
    found = result.measures
    if not found.tally.counts[0].true:
        yield f"  nothing is said to happen in them: all of the {found.tally.counts[0].found} events are false alarms"
        yield _alarm_line(found.tally)
        return
    for iou, counts in zip(IOUS, found.tally.counts, strict=True):
        yield (
            f"  at IoU {iou:g}: F1 {_percent(counts.f1)}, precision {_percent(counts.precision)}, recall "
            f"{_percent(counts.recall)}: {counts.matched} of {counts.true} actions, {counts.found} events"
        )
    yield _alarm_line(found.tally)
    yield f"  other wrong events: {found.mistaken} in an action of another class, {found.repeated} beside or twice"
    for recall, choice in result.at_recalls.items():
        reached = (
            f"{_rate(choice.tally)} false alarms per hour, with --enter {choice.rules.enter:g} --leave "
            f"{choice.rules.leave:.3g}"
            if choice
            else "not reached"
        )
        yield f"  at {100 * recall:.0f} % recall: {reached}"
    if delay := _delays(found.delays):
        yield (
            f"  told {delay['median']:.1f} s after an action begins (median; one in ten more than {delay['p90']:.1f} s)"
        )


def _alarm_line(total: Tally) -> str:
    if not total.background:
        return "  false alarms: not measured, there is no background"
    return (
        f"  false alarms: {total.false_alarms} in {total.hours:.2f} h of background, {_rate(total)} per hour, "
        f"at most {poisson_upper(total.false_alarms, total.hours):.1f} with 95 % confidence"
    )


def _classes(found: EventMeasures) -> Iterator[str]:
    width = max(map(len, [*found.per_class, "class"]))
    head = "".join(f"  {f'F1 at {iou:g}':>9}" for iou in IOUS)
    yield f"  {'class':{width}}  actions  events{head}  precision   recall"
    for label, counts in found.per_class.items():
        first = counts[0]
        values = "".join(f"  {_percent(one.f1):>9}" for one in counts)
        yield (
            f"  {label:{width}}  {first.true:7}  {first.found:6}{values}  {_percent(first.precision):>9}"
            f"  {_percent(first.recall):>7}"
        )


def _thinned(trade: Sequence[Choice]) -> list[Choice]:
    """About as many as are shown, evenly from the highest recall to the lowest."""
    places = np.unique(np.linspace(0, len(trade) - 1, _TRADE_SHOWN).round().astype(int))
    return [trade[place] for place in places.tolist()]


def _options(rules: EventRules) -> str:
    return " ".join(f"--{name.replace('_', '-')} {getattr(rules, name):g}" for name in _TUNED)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _rate(total: Tally) -> str:
    rate = total.false_alarms_per_hour
    return "-" if rate is None else f"{rate:.1f}"


def _rules(rules: EventRules) -> dict[str, float | None]:
    values = {name: value for name, value in asdict(rules).items() if name != "update_every"}
    return {name: None if value == float("inf") else value for name, value in values.items()}


def _counts(counts: Sequence[Counts]) -> dict[str, object]:
    return {
        f"iou_{iou:g}": {
            **asdict(one),
            "precision": _rounded(one.precision),
            "recall": _rounded(one.recall),
            "f1": _rounded(one.f1),
        }
        for iou, one in zip(IOUS, counts, strict=True)
    }


def _f1s(total: Tally) -> dict[str, float | None]:
    return {f"iou_{iou:g}": _rounded(one.f1) for iou, one in zip(IOUS, total.counts, strict=True)}


def _alarms(total: Tally) -> dict[str, object]:
    return {
        "false_alarms": total.false_alarms,
        "background_hours": round(total.hours, 4),
        "false_alarms_per_hour": _rounded(total.false_alarms_per_hour),
        "false_alarms_per_hour_at_most": _rounded(poisson_upper(total.false_alarms, total.hours))
        if total.background
        else None,
    }


def _choice(choice: Choice) -> dict[str, object]:
    return {
        "rules": _rules(choice.rules),
        "recall": _rounded(choice.tally.counts[0].recall),
        "f1": _f1s(choice.tally),
        **_alarms(choice.tally),
    }


def _delays(delays: Sequence[float]) -> dict[str, float] | None:
    if not delays:
        return None
    return {name: round(float(np.percentile(delays, at)), 3) for name, at in (("median", 50), ("p90", 90))}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
