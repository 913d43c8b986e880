"""Frame features of clips: every clip decoded and encoded once for a model, here and in later runs."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import shutil
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
from m2df_train.cache.store import Float, Key, Segment, SegmentWriter, gather, read_segments
from m2df_train.data.clips import LabelledClip
from m2df_train.data.version import digest
from m2df_train.data.workers import ordered_map

_log = logging.getLogger(__name__)

Item = TypeVar("Item")
Pixels = NDArray[np.uint8]
Load = Callable[[LabelledClip, Sequence[int]], Pixels]

# A worker takes about a second to start, in which the parent reads this many views of clips.
_VIEWS_PER_WORKER = 16
_LINE_BYTES = 40  # at most, in a segment's index
_IDENTITY = re.compile(r"[0-9a-f]{32}")


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
        encode_clips: Callable[[Pixels], Float],
        identity: str,
        clips: Sequence[LabelledClip],
        load: Load,
        *,
        views: int = 1,
        workers: int,
        advance: Callable[[int], None] = lambda count: None,
        batch: int = 8,
    ) -> Encoded:
        """Features of clips, read and encoded where they are not kept already.

        A clip that cannot be read, or whose features are not finite, is named in a warning and left out; of several
        their number is said. What was encoded stays when the process is killed, up to its last second. Rows are the
        same for any number of workers.

        Args:
            encode_clips: Pixels uint8 [B, T, S, S, 3] to features float32 [B, T, D].
            identity: Stands for everything that makes the features of a clip, see `identity_of`.
            clips: The clips.
            load: Reads some views (V) of a clip, uint8 [V, T, S, S, 3]; it is sent to the workers.
            views: Views of every clip.
            workers: Processes that read clips at most; few clips are read here, as all are with 0.
            advance: Called with the number of clips finished since the last call.
            batch: Clips (B) for one call of `encode_clips`.

        Raises:
            InputError: There are no clips, or none that can be read.
        """
        if not clips:
            raise InputError("no clips to encode")
        started = time.perf_counter()
        store = None if self._folder is None else self._folder / digest(identity)[:32]
        rows = _Rows(store, self._make_room, f"these features are more than {self._bound}")
        names = [digest(clip.key)[:32] for clip in clips]
        try:
            missing = {
                number: views_missing
                for number, name in enumerate(names)
                if (views_missing := [view for view in range(views) if (name, view) not in rows])
            }
            advance(len(clips) - len(missing))
            failed: dict[int, str] = {}
            read = _readable(clips, missing, load, workers, failed, advance)
            with contextlib.closing(read):  # ends the workers where encoding is interrupted
                for part in _batches(read, batch):
                    features, problems = _finite(encode_clips, np.stack([pixels for _, _, pixels in part]))
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
            values = rows.collect([(names[number], view) for number in kept for view in range(views)])
        finally:
            rows.close()
        return Encoded(
            values.reshape(len(kept), views, *values.shape[1:]),
            kept,
            tuple(failed.values()),
            time.perf_counter() - started,
        )

    def _make_room(self, own: Path, count: int) -> int:
        """Delete identities, those not used for longest first, until `count` bytes fit; returns how many do."""
        folders = []
        for folder in own.parent.iterdir():
            try:
                if _IDENTITY.fullmatch(folder.name):
                    size = sum(entry.stat().st_size for entry in os.scandir(folder))
                    folders.append((folder.stat().st_mtime, size, folder))
            except OSError:  # another process was faster
                continue
        used = sum(size for _, size, _ in folders)
        others = [item for item in sorted(folders) if item[2] != own]
        if used - sum(size for _, size, _ in others) + count > self._limit:
            return 0
        for _, size, folder in others:
            if used + count <= self._limit:
                break
            shutil.rmtree(folder, ignore_errors=True)
            used -= size
        return max(0, self._limit - used)


class _Rows:
    """The rows of one call, wherever they are: found in segments, in the segment that is being written, in memory.

    Args:
        folder: The store, or None.
        make_room: Makes room for a number of bytes in a store, as far as there is; returns the bytes that fit.
        full: What to say where there is none.
    """

    def __init__(self, folder: Path | None, make_room: Callable[[Path, int], int], full: str) -> None:
        self._folder, self._make_room, self._full = folder, make_room, full
        self._room = 0  # bytes that may be written before the next look
        self._writer: SegmentWriter | None = None
        self._storing = folder is not None
        self._unsafe: list[tuple[Sequence[Key], Float]] = []  # written, but not on disk for certain
        self._memory: list[tuple[Sequence[Key], Float]] = []
        self._segments: list[Segment] = []
        if folder is not None and folder.is_dir():
            self._segments = read_segments(folder)
            with contextlib.suppress(OSError):
                os.utime(folder)
        self._known = {key for segment in self._segments for key in segment.keys}

    def __contains__(self, key: Key) -> bool:
        return key in self._known

    def add(self, keys: Sequence[Key], rows: Float) -> None:
        """Take rows [n, T, D]."""
        if not self._storing or self._folder is None:
            self._memory.append((keys, rows))
            return
        self._unsafe.append((keys, rows))
        try:
            if self._writer is None:
                self._writer = SegmentWriter(self._folder, *rows.shape[1:])
            if not self._has_room(rows.nbytes + _LINE_BYTES * len(keys)):
                self._stop(f"{self._folder.parent}: {self._full}")
            elif self._writer.add(keys, rows):
                self._unsafe = []
                self._room = 0  # others may have written too
        except OSError as error:
            self._stop(f"{self._folder}: features cannot be kept: {error.strerror}")

    def collect(self, keys: Sequence[Key]) -> Float:
        """Rows [n, T, D] of keys that are all there."""
        if self._writer is not None and self._storing:
            try:
                self._writer.flush()
            except OSError as error:
                self._stop(f"{self._folder}: features cannot be kept: {error.strerror}")
        tables = [(segment.keys, segment.rows) for segment in self._segments]
        if self._writer is not None and self._writer.keys:
            tables.append((self._writer.keys, self._writer.rows()))
        if self._memory:
            held = [key for part, _ in self._memory for key in part]
            tables.append((held, np.concatenate([rows for _, rows in self._memory])))
        places = {key: (number, row) for number, (part, _) in enumerate(tables) for row, key in enumerate(part)}
        return gather([places[key] for key in keys], {number: rows for number, (_, rows) in enumerate(tables)})

    def close(self) -> None:
        """Close the segment, with all that was added to it."""
        if self._writer is not None:
            if self._storing:
                with contextlib.suppress(OSError):  # the reason was told before, or nothing was collected
                    self._writer.flush()
            self._writer.close()

    def _has_room(self, count: int) -> bool:
        if count > self._room and self._folder is not None and self._writer is not None:
            self._writer.flush()
            self._unsafe = self._unsafe[-1:]
            self._room = self._make_room(self._folder, count)
        self._room -= count
        return self._room >= 0

    def _stop(self, reason: str) -> None:
        _log.warning("%s; the others stay in memory", reason)
        self._storing = False
        self._memory += self._unsafe
        self._unsafe = []


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
