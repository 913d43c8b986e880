"""Decoded frames on disk, so that a clip which comes again in many episodes is decoded once."""

from __future__ import annotations

import fcntl
import io
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.files import atomic_write, sweep_dead
from m2df_runtime.pixels.spec import PIXELS_VERSION
from m2df_train.data.cache_keys import digest

_log = logging.getLogger(__name__)

_SUFFIX = ".frames"
_COUNTER = ".bytes"
_DIGITS = 20  # of the counter at most
_CLOCK_SECONDS = 1.0  # file times lag behind the clock, by a tick or by what a file server's is off


@dataclass(frozen=True)
class StoredFrames:
    """Some frames of a clip, ready to be cut.

    Attributes:
        frames: uint8 [M, h, w, 3], memory-mapped where they come from the cache.
        at: Their indices in the clip, int64 [M], ascending.
        times: Seconds of all frames of the clip, float64 [n].
        fps: Frames per second of the clip.
    """

    frames: NDArray[np.uint8]
    at: NDArray[np.int64]
    times: NDArray[np.float64]
    fps: float


class FrameCache:
    """A folder of decoded frames, one file per clip and way of making them.

    Several processes may share one folder. Where it is full, files that no process has used since this
    object was made give way, oldest first; if that is not enough, the clip is not kept. (Giving way to
    whatever came last would rewrite a cache that is smaller than the data without ever finding a clip in it.)
    Together the processes keep to the bound up to a clip each.

    Args:
        folder: Where; created when the first clip is kept.
        limit_bytes: Bound of all files together.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._started = time.time() - _CLOCK_SECONDS
        self._closed = False  # full, or a disk that cannot be written
        self._used: set[str] = set()

    def frames(self, key: str, recipe: str, make: Callable[[], StoredFrames]) -> StoredFrames:
        """The frames of a clip, from the cache or made and kept.

        Args:
            key: `LabelledClip.key`.
            recipe: How they are made, besides what `PIXELS_VERSION` stands for.
            make: Makes them; what it raises passes through and nothing is kept.
        """
        file = self._folder / (digest(key, recipe, f"pixels {PIXELS_VERSION}")[:40] + _SUFFIX)
        found = self._read(file)
        if found is None:
            found = make()
            self._keep(file, found)
        return found

    def _read(self, file: Path) -> StoredFrames | None:
        try:
            with file.open("rb") as opened:
                found = _unpacked(opened)
            if file.name not in self._used:
                self._used.add(file.name)
                with suppress(OSError):  # frames in a place that is read-only are as good
                    os.utime(file)
        except (OSError, ValueError, EOFError):
            return None
        return found

    def _keep(self, file: Path, made: StoredFrames) -> None:
        if self._closed:
            return
        data = _packed(made)
        try:
            if self._reserve(len(data)):
                atomic_write(file, data, sweep=False)
                self._used.add(file.name)
            else:
                self._closed = True
        except OSError as error:
            self._closed = True
            _log.warning("%s: no more frames are kept: %s", self._folder, error.strerror)

    def _reserve(self, count: int) -> bool:
        """Count `count` bytes as used, after making room for them; False where there is none."""
        with self._counter() as counter:
            written = counter.read(_DIGITS)
            used = int(written) if written.isdigit() else None  # a new file, or a damaged one
            if used is None or used + count > self._limit:
                used = self._make_room(count)
            fits = used + count <= self._limit
            counter.seek(0)
            counter.truncate()
            counter.write(str(used + count if fits else used).encode())
        return fits

    @contextmanager
    def _counter(self) -> Iterator[BinaryIO]:
        """The file that holds the number of bytes in use, locked."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(os.open(self._folder / _COUNTER, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file

    def _make_room(self, count: int) -> int:
        """Count the bytes in use, and delete what nobody uses until `count` more fit; returns the bytes in use then."""
        sweep_dead(self._folder)
        files: list[tuple[float, int, Path]] = []
        for entry in os.scandir(self._folder):
            try:
                stat = entry.stat()
                if entry.name == _COUNTER:
                    continue
            except OSError:  # another process was faster
                continue
            files.append((stat.st_mtime, stat.st_size, Path(entry.path)))
        used = sum(size for _, size, _ in files)
        for modified, size, path in sorted(files):
            if used + count <= self._limit or modified >= self._started:
                break
            if path.suffix == _SUFFIX:
                path.unlink(missing_ok=True)
                used -= size
        return used


def _packed(made: StoredFrames) -> bytes:
    """Three arrays in NumPy's format, one after the other; the frames come last."""
    buffer = io.BytesIO()
    for array in (np.concatenate([[made.fps], made.times]), made.at, np.ascontiguousarray(made.frames)):
        np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _unpacked(file: BinaryIO) -> StoredFrames:
    """Raises ValueError or EOFError where the file is not whole."""
    head = np.load(file, allow_pickle=False)
    at = np.load(file, allow_pickle=False)
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype != np.uint8:
        raise ValueError(f"frames of type {dtype}")
    frames = np.memmap(file, np.uint8, "r", file.tell(), shape)
    return StoredFrames(frames, at, head[1:], float(head[0]))
