"""Episodes: which clips are support and which are query, for training and evaluation alike.

Episode `i` depends on the seed and on `i` alone, so episodes may be drawn in any order and by any
number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.errors import InputError

# Fair coins first; a partition that gives many shots to one side is rare among them, so later attempts
# draw the share of the support side as well (20 groups, 18 shots: 1 in 5,000 becomes 1 in 10).
_FAIR_ATTEMPTS = 16
_MAX_ATTEMPTS = 10_000


@dataclass(frozen=True)
class EpisodeIndices:
    """One episode as positions in the list of clips.

    Attributes:
        classes: int64 [W], positions in `EpisodeSampler.classes`.
        support: int64 [W, K].
        query: int64 [W, Q].
    """

    classes: NDArray[np.int64]
    support: NDArray[np.int64]
    query: NDArray[np.int64]


class EpisodeSampler:
    """Draws episodes from labelled clips.

    With `groups` (the person or recording each clip shows), every episode first divides the groups at
    random into a support side and a query side, and only classes with `shot` clips on the one and
    `query` clips on the other can be drawn: no group is ever support and query of one episode.

    Args:
        labels: Class name of every clip.
        groups: Group of every clip, or None.
        way: Classes per episode (W).
        shot: Support clips per class (K).
        query: Query clips per class (Q).
        seed: Non-negative seed.

    Attributes:
        classes: All class names, in order of first appearance.
        excluded: Classes that can never be drawn, with the number of their clips.

    Raises:
        InputError: An option out of range, or fewer than `way` classes have clips enough.
    """

    def __init__(
        self,
        labels: Sequence[str],
        *,
        way: int,
        shot: int,
        query: int = 1,
        seed: int = 0,
        groups: Sequence[str] | None = None,
    ) -> None:
        for name, value, least in (("way", way, 2), ("shot", shot, 1), ("query", query, 1), ("seed", seed, 0)):
            if value < least:
                raise InputError(f"{name} must be at least {least}, not {value}")
        if groups is not None and len(groups) != len(labels):
            raise InputError(f"{len(groups)} groups for {len(labels)} clips")
        self.way, self.shot, self.query, self.seed = way, shot, query, seed
        self.classes = tuple(dict.fromkeys(labels))
        place = {name: position for position, name in enumerate(self.classes)}
        owner = np.array([place[label] for label in labels], dtype=np.int64)
        self._clips = [np.flatnonzero(owner == position) for position in range(len(self.classes))]
        self._group = None if groups is None else _positions(groups)
        # Without groups every clip is a group of its own, which asks for shot + query clips.
        self._counts = _group_table(owner, np.arange(len(labels)) if self._group is None else self._group)
        self._possible = np.array([_divisible(counts, shot, query) for counts in self._counts], dtype=bool)
        self.excluded = {
            name: len(clips)
            for name, clips, possible in zip(self.classes, self._clips, self._possible, strict=True)
            if not possible
        }
        self._require_enough_classes(grouped=groups is not None)

    def episode(self, index: int) -> EpisodeIndices:
        """Episode `index` (0, 1, ...).

        Raises:
            InputError: No division of the groups leaves `way` classes.
        """
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, index]))
        if self._group is None:
            drawn = rng.choice(np.flatnonzero(self._possible), self.way, replace=False)
            picks = [rng.permutation(self._clips[c])[: self.shot + self.query] for c in drawn]
            return _episode(drawn, [p[: self.shot] for p in picks], [p[self.shot :] for p in picks])
        on_support, usable = self._divide(rng)
        drawn = rng.choice(usable, self.way, replace=False)
        support, query = [], []
        for clips in (self._clips[c] for c in drawn):
            side = on_support[self._group[clips]]  # (clips of the class,)
            support.append(rng.permutation(clips[side])[: self.shot])
            query.append(rng.permutation(clips[~side])[: self.query])
        return _episode(drawn, support, query)

    def episodes(self, count: int, start: int = 0) -> Iterator[EpisodeIndices]:
        """Episodes `start` to `start + count - 1`."""
        return (self.episode(index) for index in range(start, start + count))

    def _divide(self, rng: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Groups on the support side, bool [G], and the classes that can then be drawn."""
        totals = self._counts.sum(axis=1)
        for attempt in range(_MAX_ATTEMPTS):
            share = 0.5 if attempt < _FAIR_ATTEMPTS else rng.random()
            on_support: NDArray[np.bool_] = np.less(rng.random(self._counts.shape[1]), share)
            near = self._counts @ on_support  # (classes,) clips on the support side
            usable = np.flatnonzero((near >= self.shot) & (totals - near >= self.query))
            if len(usable) >= self.way:
                return on_support, usable
        raise InputError(
            f"no division of the {self._counts.shape[1]} groups leaves {self.way} classes with {self.shot} support"
            f" and {self.query} query clips",
            "use fewer classes, shots or queries, or a coarser group",
        )

    def _require_enough_classes(self, *, grouped: bool) -> None:
        usable = len(self.classes) - len(self.excluded)
        if usable >= self.way:
            return
        needed = f"{self.shot} support and {self.query} query clips" + (" from different groups" if grouped else "")
        few = ", ".join(f"{name!r} has {count}" for name, count in list(self.excluded.items())[:5])
        more = f" and {len(self.excluded) - 5} more" if len(self.excluded) > 5 else ""
        raise InputError(
            f"{self.way}-way episodes need {self.way} classes with {needed}, {usable} found"
            + (f"; too few clips: {few}{more}" if few else ""),
            "add clips or classes, or lower --way, --shot or --query",
        )


def _episode(
    classes: NDArray[np.int64], support: list[NDArray[np.int64]], query: list[NDArray[np.int64]]
) -> EpisodeIndices:
    return EpisodeIndices(classes, np.stack(support), np.stack(query))


def _positions(groups: Sequence[str]) -> NDArray[np.int64]:
    """Position of every clip's group among the distinct groups."""
    place = {name: position for position, name in enumerate(dict.fromkeys(groups))}
    return np.array([place[group] for group in groups], dtype=np.int64)


def _group_table(owner: NDArray[np.int64], group: NDArray[np.int64]) -> NDArray[np.int64]:
    """Clips per class and group, int64 [classes, groups]."""
    counts = np.zeros((int(owner.max(initial=-1)) + 1, int(group.max(initial=-1)) + 1), dtype=np.int64)
    np.add.at(counts, (owner, group), 1)
    return counts


def _divisible(counts: NDArray[np.int64], shot: int, query: int) -> bool:
    """Whether some division of groups of these sizes leaves `shot` clips on one side and `query` on the other."""
    reachable = 1  # bit s: some set of groups holds exactly s clips
    for count in counts.tolist():
        reachable |= reachable << count
    total = int(counts.sum())
    return any(reachable >> size & 1 for size in range(shot, total - query + 1))
