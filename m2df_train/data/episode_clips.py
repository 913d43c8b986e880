"""Pixels of training episodes: clips are read, changed at random and put together while the model computes.

Which clips an episode has and how they are changed depends on the seed and its number alone, whatever the
number of processes that read or train. A clip that cannot be read is replaced by another one of its class.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.errors import ClipError, InputError
from m2df_train.data.augment import Augmentation, Role, training_pixels
from m2df_train.data.clips import LabelledClip
from m2df_train.data.episodes import EpisodeIndices, EpisodeSampler
from m2df_train.data.frame_cache import FrameCache
from m2df_train.data.workers import ordered_map

_log = logging.getLogger(__name__)

_CLIP_RANDOMNESS, _SPARE_RANDOMNESS = 11, 12  # keep the streams of random numbers of an episode apart


@dataclass(frozen=True)
class EpisodePixels:
    """An episode's clips.

    Attributes:
        drawn: Which clips they are.
        support: uint8 [W * K, T, S, S, 3], in the order of `drawn.support`.
        query: uint8 [W * Q, T, S, S, 3].
    """

    drawn: EpisodeIndices
    support: NDArray[np.uint8]
    query: NDArray[np.uint8]


@dataclass(frozen=True)
class _Wanted:
    """One clip of an episode: its place there, and the clips that may take it, the drawn one first."""

    episode: int
    place: int
    role: Role
    candidates: tuple[int, ...]


@dataclass(frozen=True)
class _Loaded:
    """A clip that could be read, its position in the list, and why those before it could not."""

    clip: int
    pixels: NDArray[np.uint8]
    failures: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Loader:
    """What worker processes run."""

    clips: tuple[LabelledClip, ...]
    options: Augmentation
    seed: int
    cache: FrameCache | None

    def __call__(self, wanted: _Wanted) -> _Loaded:
        failures: list[tuple[str, str]] = []
        for position in wanted.candidates:
            clip = self.clips[position]
            rng = np.random.default_rng([self.seed, _CLIP_RANDOMNESS, wanted.episode, wanted.place, len(failures)])
            try:
                pixels = training_pixels(clip, self.options, rng, role=wanted.role, cache=self.cache)
            except ClipError as error:
                failures.append((clip.name, str(error)))
                continue
            return _Loaded(position, pixels, tuple(failures))
        raise InputError(
            f"class {self.clips[wanted.candidates[0]].label!r} has too few clips that can be read; {failures[0][1]}",
            "repair or remove them",
        )


class EpisodeClips:
    """Training episodes as pixels.

    Args:
        clips: Clips of the training classes.
        samplers: Episode `n` is drawn by number `n` modulo their number; all have one seed.
        options: How clips are changed at random.
        cache: Decoded frames on disk.
        workers: Processes that read clips.
    """

    def __init__(
        self,
        clips: Sequence[LabelledClip],
        samplers: Sequence[EpisodeSampler],
        options: Augmentation,
        *,
        cache: FrameCache | None,
        workers: int,
    ) -> None:
        self._samplers = samplers
        self._labels = np.array([clip.label for clip in clips])
        self._workers = workers
        self._load = _Loader(tuple(clips), options, samplers[0].seed, cache)
        self._reported: set[str] = set()

    def stream(self, numbers: Sequence[int]) -> Iterator[EpisodePixels]:
        """The episodes of these numbers in their order, read ahead.

        Raises:
            InputError: A class has no clip left that can be read.
        """
        wanted = chain.from_iterable(self._wanted(number, self._drawn(number)) for number in numbers)
        loaded = ordered_map(self._load, wanted, self._workers)
        for number in numbers:
            drawn = self._drawn(number)
            clips = list(islice(loaded, drawn.support.size + drawn.query.size))
            self._report(clips)
            used = np.array([clip.clip for clip in clips])
            support, query = used[: drawn.support.size], used[drawn.support.size :]
            yield EpisodePixels(
                replace(drawn, support=support.reshape(drawn.support.shape), query=query.reshape(drawn.query.shape)),
                np.stack([clip.pixels for clip in clips[: drawn.support.size]]),
                np.stack([clip.pixels for clip in clips[drawn.support.size :]]),
            )

    def _drawn(self, number: int) -> EpisodeIndices:
        return self._samplers[number % len(self._samplers)].episode(number)

    def _wanted(self, number: int, drawn: EpisodeIndices) -> Iterator[_Wanted]:
        """The clips of an episode, supports first. Those left over in a class are dealt to its places as spares."""
        rng = np.random.default_rng([self._load.seed, _SPARE_RANDOMNESS, number])
        shots, count = drawn.support.shape[1], drawn.support.shape[1] + drawn.query.shape[1]
        own = np.concatenate([drawn.support, drawn.query], axis=1)  # (W, K + Q)
        spares = [rng.permutation(np.setdiff1d(self._of_class(clips[0]), clips)) for clips in own]
        order = [(c, k) for c in range(len(own)) for k in range(shots)]
        order += [(c, k) for c in range(len(own)) for k in range(shots, count)]
        for place, (c, k) in enumerate(order):
            # A place's own share of the spares first, so that two places do not take the same one.
            dealt = [*spares[c][k::count], *(clip for n, clip in enumerate(spares[c]) if n % count != k)]
            candidates = (int(own[c, k]), *map(int, dealt))
            yield _Wanted(number, place, "support" if k < shots else "query", candidates)

    def _of_class(self, clip: int) -> NDArray[np.int64]:
        return np.flatnonzero(self._labels == self._labels[clip])

    def _report(self, clips: Sequence[_Loaded]) -> None:
        for name, reason in chain.from_iterable(clip.failures for clip in clips):
            if name not in self._reported:
                self._reported.add(name)
                _log.warning("clip %s is left out: %s", name, reason)
