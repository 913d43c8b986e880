"""What a stream reads: frames one after the other, each with its time, and never a second time."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator

from m2df_runtime.clips.source import DEFAULT_FPS, Picture
from m2df_runtime.errors import ClipError

_RESTART = 1.0  # seconds back in time from which a clock has begun anew; less is a frame that comes late

_log = logging.getLogger(__name__)


class TimedFrames(ABC):
    """A recording as it is read: from its first frame to its last.

    Attributes:
        name: What messages and events call it.
        began: Wall clock of second 0, in Unix seconds; None where nobody knows, as in a file.
        any_thread: Whether it may be read on another thread than the caller's.
        live: Whether it goes on whether it is read or not; it may be read on another thread, too.
        dropped: Frames that were not looked at, by cause.
    """

    name: str = "the stream"
    began: float | None = None
    any_thread: bool = False
    live: bool = False

    @property
    def dropped(self) -> dict[str, int]:
        return {}

    @abstractmethod
    def frames(self) -> Iterator[tuple[float, Picture]]:
        """Second and picture of every frame.

        Raises:
            ClipError: A frame cannot be read.
        """

    def parts(self) -> Generator[TimedFrames]:
        """What is read without a break, one after the other: a camera that was lost goes on in another part."""
        yield self

    def stop(self) -> None:  # noqa: B027 - only what waits for frames must be woken
        """Give no more frames, from any thread, also to those who wait for one. A source stays stopped."""


class RisingTimes:
    """A recording's frames with times that rise, whatever its clock does.

    A frame that is not later than the one before is left out; one that is more than a second earlier begins a new
    clock, which goes on one frame time after the old one.

    Attributes:
        left_out: Frames that came late or twice.
        restarts: How often the clock began anew.
    """

    def __init__(self, source: TimedFrames) -> None:
        self._source = source
        self.left_out = self.restarts = 0

    def __iter__(self) -> Iterator[tuple[float, Picture]]:
        """Like `TimedFrames.frames`. Raises ClipError, also for a time that is no number."""
        last: float | None = None
        added, interval = 0.0, 1 / DEFAULT_FPS
        for raw, picture in self._source.frames():
            if not math.isfinite(raw):
                raise ClipError(self._source.name, f"a frame has the time {raw}", "give seconds that rise")
            time = float(raw) + added
            if last is not None and time < last - _RESTART:
                self.restarts += 1
                added += last + interval - time
                time = last + interval
            elif last is not None and time <= last:
                self.left_out += 1
                continue
            if last is not None:
                interval = time - last
            last = time
            yield time, picture
        if self.left_out or self.restarts:
            _log.warning(
                "%s: %d frames that are not later than the one before were left out; its clock began anew %d times",
                self._source.name,
                self.left_out,
                self.restarts,
            )
