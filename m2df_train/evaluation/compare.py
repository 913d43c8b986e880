"""Two models on the same episodes: the paired difference, where it comes from, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2df_train.evaluation.accuracy import summary
from m2df_train.evaluation.episode_run import Answers

RESAMPLES = 10_000


@dataclass(frozen=True)
class ClipChange:
    """A query clip on which the models differ: how often it was drawn, and right under A and under B.

    Attributes:
        name: `class/clip`.
        drawn: Episodes it was a query of.
        right_a: Of these, with a right answer of A.
        right_b: The same of B.
        gained: Right under B alone.
        lost: Right under A alone.
    """

    name: str
    drawn: int
    right_a: int
    right_b: int
    gained: int
    lost: int


@dataclass(frozen=True)
class Comparison:
    """Model B against model A; differences are B - A, in percentage points.

    Attributes:
        difference: Of the accuracies.
        interval: Its 95 % bootstrap interval over episodes. It says how much depends on the draw of
            episodes from these clips, not what other clips or classes would give.
        gains: Difference of every class.
        both: Queries both models answered rightly.
        only_a: Queries only A did.
        only_b: Queries only B did.
        neither: Queries neither did.
        clips: Clips with an answer that differs, those with the largest balance of gained and lost first.
    """

    difference: float
    interval: tuple[float, float]
    gains: dict[str, float]
    both: int
    only_a: int
    only_b: int
    neither: int
    clips: tuple[ClipChange, ...]


def compare(a: Answers, b: Answers, names: Sequence[str], *, seed: int = 0, resamples: int = RESAMPLES) -> Comparison:
    """Compare two models' answers to the same episodes.

    Args:
        a: Answers of model A.
        b: Answers of model B.
        names: Name of every clip.
        seed: Seed of the bootstrap.
        resamples: How many resamples of the episodes.

    Raises:
        ValueError: The episodes are not the same.
    """
    if a.names != b.names or not np.array_equal(a.classes, b.classes) or not np.array_equal(a.query, b.query):
        raise ValueError("the answers belong to different episodes")
    right_a, right_b = a.right, b.right
    of_a, of_b = summary(a), summary(b)
    gained = right_b.sum(axis=(1, 2)) - right_a.sum(axis=(1, 2))  # queries per episode, [E]
    return Comparison(
        difference=of_b.accuracy - of_a.accuracy,
        interval=_interval(gained, right_a[0].size, seed, resamples),
        gains={name: of_b.per_class[name] - value for name, value in of_a.per_class.items()},
        both=int((right_a & right_b).sum()),
        only_a=int((right_a & ~right_b).sum()),
        only_b=int((right_b & ~right_a).sum()),
        neither=int((~right_a & ~right_b).sum()),
        clips=_changes(a.query, right_a, right_b, names),
    )


def _interval(gained: NDArray[np.int64], queries: int, seed: int, resamples: int) -> tuple[float, float]:
    """95 % percentile interval of the mean of `gained / queries`, in points: episodes are drawn with replacement.

    An episode's gain is one of few whole numbers, and how often each is drawn is multinomial: the same
    distribution as drawing the episodes one by one, without 10,000 times 10,000 draws.
    """
    values, counts = np.unique(gained, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(gained), counts / len(gained), size=resamples)
    means = 100 * (drawn @ values) / (len(gained) * queries)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _changes(
    query: NDArray[np.int64], right_a: NDArray[np.bool_], right_b: NDArray[np.bool_], names: Sequence[str]
) -> tuple[ClipChange, ...]:
    def count(chosen: NDArray[np.bool_]) -> list[int]:
        found: list[int] = np.bincount(query[chosen], minlength=len(names)).tolist()
        return found

    columns = (
        count(np.ones_like(right_a)),
        count(right_a),
        count(right_b),
        count(right_b & ~right_a),
        count(right_a & ~right_b),
    )
    rows = (ClipChange(name, *numbers) for name, *numbers in zip(names, *columns, strict=True))
    changed = [row for row in rows if row.gained or row.lost]
    return tuple(sorted(changed, key=lambda row: (-abs(row.gained - row.lost), -row.gained - row.lost, row.name)))
