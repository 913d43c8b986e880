"""Frame features of clips: every clip decoded and encoded once for a model, here and in later runs."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.errors import ClipError, InputError
from m2df_runtime.pixels.spec import PIXELS_VERSION
from m2df_runtime.progress import unseen
from m2df_train.cache.store import Float, Rows
from m2df_train.data.cache_keys import digest
from m2df_train.data.clips import LabelledClip
from m2df_train.data.workers import ordered_map

_log = logging.getLogger(__name__)

Item = TypeVar("Item")
Pixels = NDArray[np.uint8]
Load = Callable[[LabelledClip, Sequence[int]], Pixels]

# A worker takes about a second to start, in which the parent reads this many views of clips.
_VIEWS_PER_WORKER = 16


@dataclass(frozen=True)
class Encoding:
    """How clips become features.

    Attributes:
        encode: Pixels uint8 [B, T, S, S, 3] to features float32 [B, T, D].
        identity: Stands for everything that makes the features of a clip, see `identity_of`.
        load: Reads some views (V) of a clip, uint8 [V, T, S, S, 3]; it is sent to the workers.
        views: Views of every clip.
        batch: Clips (B) for one call of `encode`.
    """

    encode: Callable[[Pixels], Float]
    identity: str
    load: Load
    views: int = 1
    batch: int = 8


@dataclass(frozen=True)
class Encoded:
    """Encoded clips.

    Attributes:
        values: float32 [n, views, T, D], memory-mapped where they lie on disk in this order.
        kept: Positions of the n clips among those that were asked for.
        skipped: One line for each clip that cannot be read.
        seconds: Wall time of decoding and encoding.
    """

    values: Float
    kept: tuple[int, ...]
    skipped: tuple[str, ...]
    seconds: float


def identity_of(*parts: str) -> str:
    """What features depend on besides the clip: the parts (weights, preprocessing, ...) and the version of pixels."""
    return digest(f"pixels {PIXELS_VERSION}", *parts)


class FeatureCache:
    """Features by clip and view, in a folder for each identity; several processes may use it at once.

    The folders together keep to `limit_bytes`: those not used for longest go first, and where the features at hand
    are more than that alone, or the disk is full, the rest stay in memory. Of several processes that write at once
    each may go beyond by a second's writing of the others.

    Args:
        folder: Where; None keeps nothing beyond a call.
        limit_bytes: Bound of all files together; 0 keeps nothing.
        bound: What says so to the user, for the warning that it is reached.
    """

    def __init__(self, folder: Path | None, limit_bytes: int, bound: str = "its bound") -> None:
        self._folder = folder if limit_bytes > 0 else None
        self._limit = limit_bytes
        self._bound = bound

    @property
    def lasting(self) -> bool:
        """Whether anything is kept beyond a call."""
        return self._folder is not None

    def encode(
        self,
        way: Encoding,
        clips: Sequence[LabelledClip],
        *,
        workers: int,
        advance: Callable[[int], None] = unseen,
    ) -> Encoded:
        """Features of clips, read and encoded where they are not kept already.

        A clip that cannot be read, or whose features are not finite, is named in a warning and left out; of several
        their number is said. What was encoded stays when the process is killed, up to its last second. Rows are the
        same for any number of workers.

        Args:
            way: How.
            clips: The clips.
            workers: Processes that read clips at most; few clips are read here, as all are with 0.
            advance: Called with the number of clips finished since the last call.

        Raises:
            InputError: There are no clips, or none that can be read.
        """
        if not clips:
            raise InputError("no clips to encode")
        started = time.perf_counter()
        store = None if self._folder is None else self._folder / digest(way.identity)[:32]
        rows = Rows(store, self._limit, self._bound)
        names = [digest(clip.key)[:32] for clip in clips]
        try:
            missing = {
                number: views_missing
                for number, name in enumerate(names)
                if (views_missing := [view for view in range(way.views) if (name, view) not in rows])
            }
            advance(len(clips) - len(missing))
            failed: dict[int, str] = {}
            read = _readable(clips, missing, way.load, workers, failed, advance)
            with contextlib.closing(read):  # ends the workers where encoding is interrupted
                for part in _batches(read, way.batch):
                    features, problems = _finite(way.encode, np.stack([pixels for _, _, pixels in part]))
                    for place, problem in problems.items():
                        _name_failure(failed, part[place][0], f"{clips[part[place][0]].name}: {problem}")
                    good = [place for place in range(len(part)) if place not in problems]
                    if good:
                        keys = [(names[part[place][0]], part[place][1]) for place in good]
                        rows.add(keys, features[good] if problems else features)
            kept = tuple(number for number in range(len(clips)) if number not in failed)
            if len(failed) > 1:  # of one, its own line says it
                _log.warning("%d of %d clips are left out, for the reasons above", len(failed), len(clips))
            if not kept:
                raise InputError(f"none of the {len(clips)} clips can be read", "the lines above name the reasons")
            values = rows.collect([(names[number], view) for number in kept for view in range(way.views)])
        finally:
            rows.flush()  # what was encoded before an error is kept too
        return Encoded(
            values.reshape(len(kept), way.views, *values.shape[1:]),
            kept,
            tuple(failed.values()),
            time.perf_counter() - started,
        )


def _readable(
    clips: Sequence[LabelledClip],
    missing: Mapping[int, Sequence[int]],
    load: Load,
    workers: int,
    failed: dict[int, str],
    advance: Callable[[int], None],
) -> Generator[tuple[int, int, Pixels], None, None]:
    """(clip, view, pixels) in order; clips that cannot be read are named and put into `failed`."""
    count = sum(map(len, missing.values()))
    tasks = ((clips[number], views) for number, views in missing.items())
    results = ordered_map(partial(_attempt, load), tasks, min(workers, len(missing), count // _VIEWS_PER_WORKER))
    for (number, views), result in zip(missing.items(), results, strict=True):
        if isinstance(result, str):
            _name_failure(failed, number, result)
        else:
            for view, pixels in zip(views, result, strict=True):
                yield number, view, pixels
        advance(1)


def _name_failure(failed: dict[int, str], number: int, problem: str) -> None:
    if number not in failed:  # of several views the first one tells
        failed[number] = problem
        _log.warning("%s; skipped", problem)


def _finite(encode_clips: Callable[[Pixels], Float], pixels: Pixels) -> tuple[Float, dict[int, str]]:
    """Features [B, T, D], and what is wrong with those of the clips that have none that can be used."""
    try:
        features = encode_clips(pixels)
    except ClipError as error:  # of the first such clip; there may be more
        if len(pixels) == 1:
            return np.empty(0, np.float32), {0: error.reason}
        return _one_by_one(encode_clips, pixels)
    finite = np.isfinite(features).all(axis=(1, 2))
    return features, {int(place): "the model gives features that are not finite" for place in np.flatnonzero(~finite)}


def _one_by_one(encode_clips: Callable[[Pixels], Float], pixels: Pixels) -> tuple[Float, dict[int, str]]:
    found = [_finite(encode_clips, clip[None]) for clip in pixels]
    problems = {place: problem[0] for place, (_, problem) in enumerate(found) if problem}
    good = [features[0] for features, problem in found if not problem]
    whole = np.zeros((len(pixels), *good[0].shape) if good else (len(pixels), 0, 0), np.float32)
    for place, (features, problem) in enumerate(found):
        if not problem:
            whole[place] = features[0]
    return whole, problems


def _attempt(load: Load, task: tuple[LabelledClip, Sequence[int]]) -> Pixels | str:
    """Pixels, or why there are none."""
    try:
        return load(*task)
    except ClipError as error:
        return str(error)


def _batches(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while part := list(itertools.islice(items, size)):
        yield part
