"""A clip of every event, in a folder that stays below a size: the oldest ones go first."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.clips.source import FrameSource
from m2df_runtime.errors import InputError
from m2df_runtime.sinks.video import write_video
from m2df_runtime.stream.events import Event

_PREFIX = "event-"  # of the files that may be removed: what else lies in the folder is not ours
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([KMGT]?)B?", re.IGNORECASE)
_UNFIT = re.compile(r"[^\w.-]+")  # in a file's name
_LONGEST_NAME = 60  # characters of each part of one

_log = logging.getLogger(__name__)


def parse_size(text: str) -> int:
    """Bytes of `2GB`, `500 MB` or `1000000`.

    Raises:
        InputError: It is none of these.
    """
    found = _SIZE.fullmatch(text.strip())
    if not found or not float(found[1]):
        raise InputError(f"{text[:40]!r} is not a size", "for example 500MB or 2GB")
    return round(float(found[1]) * _UNITS[found[2].upper()])


class ClipFolder:
    """Keeps a clip of every event.

    Args:
        folder: Where; it is made.
        before: Seconds of the recording that a clip begins before its event.
        after: Seconds that it goes on after it.
        keep: Bytes that the clips of events in the folder may take together; None for any.
    """

    def __init__(self, folder: Path, before: float, after: float, keep: int | None) -> None:
        self._folder, self._before, self._after, self._keep = folder, before, after, keep

    def save(self, event: Event, recording: FrameSource) -> Path:
        """Write the clip of an event that has ended, then remove the oldest beyond what may be kept.

        Raises:
            OSError: The folder cannot be written.
            ClipError: The recording cannot be read.
        """
        name = f"{_PREFIX}{_fit(Path(event.camera).stem)}-{event.id:04d}-{_fit(event.label)}.mp4"
        path = self._folder / name
        write_video(path, _between(recording, event.start - self._before, event.end + self._after), recording.fps)
        self._make_room(path)
        return path

    def _make_room(self, newest: Path) -> None:
        if self._keep is None:
            return
        found = []
        for path in self._folder.glob(f"{_PREFIX}*.mp4"):
            with suppress(OSError):  # another process removed it
                info = path.lstat()
                found.append((path != newest, -info.st_mtime_ns, path, info.st_size))
        kept = 0
        for is_old, _, path, size in sorted(found):
            kept += size
            if kept > self._keep and is_old:
                with suppress(FileNotFoundError):
                    path.unlink()
            elif kept > self._keep:
                _log.warning("%s: this clip alone takes more than may be kept", path)


def _between(recording: FrameSource, start: float, end: float) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    inside = np.flatnonzero((recording.times >= start) & (recording.times <= end))
    if len(inside):
        for index, picture in zip(inside.tolist(), recording.pictures(inside), strict=True):
            yield float(recording.times[index]), picture.rgb()


def _fit(text: str) -> str:
    return _UNFIT.sub("_", text)[:_LONGEST_NAME].strip("._") or "_"
