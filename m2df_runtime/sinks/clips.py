"""A clip of every event, in a folder that stays below a size: the oldest ones go first."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.clips.source import FrameSource
from m2df_runtime.errors import InputError
from m2df_runtime.sinks.held import HeldFrames, Holding
from m2df_runtime.sinks.names import fit
from m2df_runtime.sinks.sink import Sink
from m2df_runtime.sinks.video import write_video
from m2df_runtime.stream.events import Event
from m2df_runtime.stream.sources.timed import TimedFrames

_PREFIX = "event-"  # of the files that may be removed: what else lies in the folder is not ours
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([KMGT]?)B?", re.IGNORECASE)
_MOST_WAITING = 32  # clips of cameras
_MOST_BYTES = 1 << 27  # of their frames, most of which are held anyway

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
        self.path, self.before, self.after, self._keep = folder, before, after, keep

    def save(self, event: Event, recording: FrameSource) -> Path:
        """Write the clip of an event that has ended, then remove the oldest beyond what may be kept.

        Raises:
            OSError: The folder cannot be written.
            ClipError: The recording cannot be read.
        """
        path = self.path / f"{_PREFIX}{_name(event)}.mp4"
        write_video(path, _between(recording, event.start - self.before, event.end + self.after), recording.fps)
        self._make_room(path)
        return path

    def _make_room(self, newest: Path) -> None:
        if self._keep is None:
            return
        found = []
        for path in self.path.glob(f"{_PREFIX}*.mp4"):
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


def _name(event: Event) -> str:
    """Of a camera with its moment, since numbers begin anew with every start of the program."""
    zone = "" if event.zone is None else f"-{fit(event.zone)}"
    if event.start_time is None:
        camera = fit(Path(event.camera).stem)
    else:
        moment = datetime.fromtimestamp(event.start_time, timezone.utc)
        camera = f"{fit(event.camera)}-{moment:%Y%m%dT%H%M%SZ}"
    return f"{camera}{zone}-{event.id:04d}-{fit(event.label)}"


class LiveClips(Sink[tuple[Event, FrameSource]]):
    """Writes a clip of every event of cameras, on a thread of its own, from frames that are held as they come.

    A clip is at most 640 pixels wide or high, and has the last minute or more of a longer event.

    Args:
        folder: Where they are kept.
        tell: See `Sink`.

    Raises:
        OSError: The folder cannot be made.
    """

    done = "written"

    def __init__(self, folder: ClipFolder, tell: Callable[[str], None] | None = None) -> None:
        self._folder = folder
        self._held: dict[str, HeldFrames] = {}
        folder.path.mkdir(parents=True, exist_ok=True)
        super().__init__("clips", str(folder.path), _MOST_WAITING, most_bytes=_MOST_BYTES, tell=tell)

    def of(self, source: TimedFrames) -> TimedFrames:
        """The source to give to `Stream` in its place."""
        self._held[source.name] = held = HeldFrames(self._folder.before, self._folder.after, self._give)
        return Holding(source, held)

    def add(self, event: Event) -> None:
        """An event that has ended."""
        self._held[event.camera].ended(event)

    def _give(self, event: Event, frames: FrameSource, nbytes: int) -> None:
        self.put((event, frames), nbytes)

    def _deliver(self, item: tuple[Event, FrameSource]) -> None:
        self._folder.save(*item)
        self._settle()
