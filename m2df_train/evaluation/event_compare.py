"""Two banks or bundles on the same recordings: the difference, how sure it is, and which actions only one finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from m2df_train.evaluation.event_measures import IOUS, Outcome, matches, tally

_RESAMPLES = 10_000
_FEWEST = 5  # recordings, of which resampling tells something


@dataclass(frozen=True)
class EventComparison:
    """B against A at the first IoU.

    Attributes:
        difference: Of the F1 over all recordings, B - A.
        interval: Its 95 % bootstrap interval over recordings; None where they are too few to tell.
        both: Actions that both found.
        only_a: Actions that A alone found.
        only_b: Actions that B alone found.
        neither: Actions that nobody found.
    """

    difference: float
    interval: tuple[float, float] | None
    both: int
    only_a: int
    only_b: int
    neither: int


def compare_events(a: Sequence[Outcome], b: Sequence[Outcome], seed: int = 0) -> EventComparison:
    """Compare what two found in the same recordings, in the same order."""
    pairs: list[tuple[bool, bool]] = []
    for one, other in zip(a, b, strict=True):
        found = [{*matches(side.truth, side.events, IOUS[0])} for side in (one, other)]
        pairs += [(index in found[0], index in found[1]) for index in range(len(one.truth))]
    sides = [np.array([_row(outcome) for outcome in side]) for side in (a, b)]
    everything = np.arange(len(a))[None]
    difference = float((_f1(sides[1], everything) - _f1(sides[0], everything))[0])
    interval = None
    if len(a) >= _FEWEST:
        drawn = np.random.default_rng(seed).integers(0, len(a), (_RESAMPLES, len(a)))
        low, high = np.percentile(_f1(sides[1], drawn) - _f1(sides[0], drawn), [2.5, 97.5])
        interval = (float(low), float(high))
    return EventComparison(
        difference,
        interval,
        pairs.count((True, True)),
        pairs.count((True, False)),
        pairs.count((False, True)),
        pairs.count((False, False)),
    )


def _row(outcome: Outcome) -> tuple[int, int]:
    counts = tally(outcome).counts[0]
    return 2 * counts.matched, counts.true + counts.found


def _f1(rows: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """F1 of recordings drawn [R, N], from rows [N, 2] of its two terms; 0 where there is nothing."""
    upper, lower = rows[drawn].sum(axis=1).T
    return np.asarray(upper / np.maximum(lower, 1))
