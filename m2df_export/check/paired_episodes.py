"""Two sides' answers to the same episodes: agreement, the paired difference, and the clips that flipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from m2df_export.check.compare import ROUNDING, Gates
from m2df_train.evaluation.accuracy import summary
from m2df_train.evaluation.compare import compare
from m2df_train.evaluation.episode_run import Answers


@dataclass(frozen=True)
class Flip:
    """A query clip with answers that differ: how many of how many."""

    name: str
    flipped: int
    drawn: int


@dataclass(frozen=True)
class EpisodeResult:
    """Episodes of an engine and of the reference.

    Attributes:
        agreement: Share of queries with the same top-1 answer.
        accuracy: In percent.
        reference_accuracy: In percent.
        difference: Of the two, in percentage points.
        interval: Its 95 % bootstrap interval over episodes.
        flips: Clips with answers that differ, the most often first.
        problem: Why this is out of tolerance; None where it is not.
    """

    agreement: float
    accuracy: float
    reference_accuracy: float
    difference: float
    interval: tuple[float, float]
    flips: tuple[Flip, ...]
    problem: str | None


def compare_answers(actual: Answers, expected: Answers, names: Sequence[str], gates: Gates) -> EpisodeResult:
    """Compare the answers of an engine with the reference's, both to the same episodes; `names` are the clips'."""
    compared = compare(expected, actual, names)
    different = actual.predicted != expected.predicted
    drawn = np.bincount(actual.query.ravel(), minlength=len(names))
    flipped = np.bincount(actual.query[different], minlength=len(names))
    counts = zip(names, flipped.tolist(), drawn.tolist(), strict=True)
    flips = [Flip(name, count, of) for name, count, of in counts if count]
    agreement = 1.0 - float(different.mean())
    problem = None
    if gates.agreement is not None and agreement < gates.agreement:
        problem = f"top-1 agreement {agreement:.1%}, needed {gates.agreement:.1%}"
    elif gates.accuracy_drop is not None and -compared.difference / 100 > gates.accuracy_drop + ROUNDING:
        problem = f"accuracy drops by {-compared.difference:.1f} points, allowed {100 * gates.accuracy_drop:.1f}"
    return EpisodeResult(
        agreement=agreement,
        accuracy=summary(actual).accuracy,
        reference_accuracy=summary(expected).accuracy,
        difference=compared.difference,
        interval=compared.interval,
        flips=tuple(sorted(flips, key=lambda flip: (-flip.flipped, flip.name))),
        problem=problem,
    )
