"""What `m2df-eval` prints: lines and tables for people, records for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from m2df_train.evaluation.accuracy import Accuracy
from m2df_train.evaluation.clips import EpisodeOptions
from m2df_train.evaluation.compare import RESAMPLES, Comparison
from m2df_train.evaluation.models import Encoded
from m2df_train.evaluation.open_set import Measure, OpenSet

_CLIPS_SHOWN = 10


@dataclass(frozen=True)
class Measured:
    """Result of one model with one number of shots.

    Attributes:
        split: Split the clips are from; None where all of a folder is taken.
        encoded: The model and its features.
        accuracy: What was measured.
        excluded: Classes that were not drawn because they have too few clips, with their number.
        options: How the episodes were drawn.
        open_set: How known queries are told from unknown ones, where that was asked for.
    """

    split: str | None
    encoded: Encoded
    accuracy: Accuracy
    excluded: Mapping[str, int]
    options: EpisodeOptions
    open_set: OpenSet | None = None

    @property
    def title(self) -> str:
        """Which episodes, in words."""
        of = f"{self.split}, " if self.split else ""
        return f"{of}{self.accuracy.way}-way {self.accuracy.shot}-shot, {self.accuracy.episodes} episodes"


def record(result: Measured) -> dict[str, object]:
    """One model's result; keys are stable."""
    return {**_of_model(result), **_of_episodes(result)}


def comparison_record(a: Measured, b: Measured, comparison: Comparison) -> dict[str, object]:
    """Two models' results under `a` and `b`, and what lies between them."""
    return {
        "a": _of_model(a),
        "b": _of_model(b),
        "difference": comparison.difference,
        "interval": list(comparison.interval),
        "resamples": RESAMPLES,
        "gains": comparison.gains,
        "queries": {name: getattr(comparison, name) for name in ("both", "only_a", "only_b", "neither")},
        "clips": [asdict(change) for change in comparison.clips],
        **_of_episodes(a),
    }


def _of_model(result: Measured) -> dict[str, object]:
    subject, measured = result.encoded.subject, result.accuracy
    return {
        "model": str(subject.path),
        "accuracy": measured.accuracy,
        "ci95": measured.ci95,
        "per_class": measured.per_class,
        "confusion": measured.confusion,
        "backend": subject.backend,
        "precision": subject.precision,
        "encode_seconds": result.encoded.features.seconds,
        "episode_seconds": measured.seconds,
        **({"open_set": asdict(result.open_set)} if result.open_set else {}),
    }


def _of_episodes(result: Measured) -> dict[str, object]:
    measured, features = result.accuracy, result.encoded.features
    return {
        "way": measured.way,
        "shot": measured.shot,
        "query": measured.query,
        "episodes": measured.episodes,
        "seed": result.options.seed,
        "groups": result.options.groups,
        "split": result.split,
        "clips_used": len(features.names),
        "skipped": list(features.skipped),
        "excluded": dict(result.excluded),
    }


def lines(result: Measured, *, per_class: bool, confusion: bool) -> Iterator[str]:
    """One model's result in words."""
    yield f"{result.title}: {_value(result)}"
    if result.open_set:
        yield f"  {_open_set(result.open_set)}"
    if per_class:
        width = max(map(len, result.accuracy.per_class))
        for name, value in sorted(result.accuracy.per_class.items(), key=lambda item: -item[1]):
            yield f"  {name:{width}}  {value:6.2f} %"
    if confusion:
        yield from _confusion(result.accuracy.confusion)


def comparison_lines(a: Measured, b: Measured, comparison: Comparison, *, confusion: bool) -> Iterator[str]:
    """Two models' results in words."""
    low, high = comparison.interval
    yield f"{a.title}, the same for both models"
    for letter, result in (("A", a), ("B", b)):
        yield f"  {letter}  {result.encoded.subject.path}: {_value(result)}"
        if result.open_set:
            yield f"     {_open_set(result.open_set)}"
    yield f"  B - A: {comparison.difference:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f} over episodes"
    yield (
        f"  queries right under both {comparison.both}, A alone {comparison.only_a}, B alone {comparison.only_b},"
        f" neither {comparison.neither}"
    )
    width = max(map(len, [*comparison.gains, "class"]))
    yield f"  {'class':{width}}  {'A %':>7}  {'B %':>7}  {'B - A':>7}"
    for name, gain in sorted(comparison.gains.items(), key=lambda item: -item[1]):
        yield (f"  {name:{width}}  {a.accuracy.per_class[name]:7.2f}  {b.accuracy.per_class[name]:7.2f}  {gain:+7.2f}")
    yield from _changed_clips(comparison)
    if confusion:
        for letter, result in (("A", a), ("B", b)):
            yield f"  {letter}"
            yield from _confusion(result.accuracy.confusion)


def _changed_clips(comparison: Comparison) -> Iterator[str]:
    shown = comparison.clips[:_CLIPS_SHOWN]
    if not shown:
        yield "  no clip changed sides"
        return
    width = max(len(change.name) for change in shown)
    yield f"  {'query clip':{width}}  {'drawn':>6}  {'A right':>7}  {'B right':>7}"
    for change in shown:
        yield f"  {change.name:{width}}  {change.drawn:6}  {change.right_a:7}  {change.right_b:7}"
    if len(comparison.clips) > len(shown):
        yield f"  and {len(comparison.clips) - len(shown)} clips more with answers that differ (--json has all)"


def _value(result: Measured) -> str:
    measured, encoded = result.accuracy, result.encoded
    return (
        f"{measured.accuracy:.2f} ± {measured.ci95:.2f} %"
        f"  ({encoded.subject.backend} {encoded.subject.precision}, {len(encoded.features.names)} clips, encoding"
        f" {encoded.features.seconds:.1f} s, episodes {measured.seconds:.1f} s)"
    )


def _open_set(found: OpenSet) -> str:
    def shown(measure: Measure) -> str:
        return f"{measure.value:.1f} ({measure.low:.1f} to {measure.high:.1f})"

    return (
        f"of {found.unknown} unknown classes: AUROC {shown(found.auroc)}, answered at 95 % recall"
        f" {shown(found.false_positives)} %, OSCR {shown(found.oscr)} of at most {found.accuracy.value:.1f}"
    )


def _confusion(counts: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """A row per class: of its queries, the percentage taken for each class, whose number heads the column."""
    width, digits = max(map(len, counts)), len(str(len(counts)))
    yield "  % of a class's queries (row) by answer (column)"
    yield " " * (width + digits + 4) + "".join(f"{number:5}" for number in range(1, len(counts) + 1))
    for number, (name, row) in enumerate(counts.items(), start=1):
        total = sum(row.values())
        shares = "".join(f"{100 * count / total:5.0f}" if count else "    ." for count in row.values())
        yield f"  {number:{digits}} {name:{width}} {shares}"
