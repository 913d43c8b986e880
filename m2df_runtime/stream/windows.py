"""Windows over a recording: clips that overlap, each in memory, each read as any other clip is.

A window is all frames with start <= time < start + length. At the end of the recording the frames that no whole
window holds make a shorter one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.clips.limits import MAX_BYTES
from m2df_runtime.clips.source import DEFAULT_FPS, FrameSource, Picture, frame_rate
from m2df_runtime.errors import ClipError
from m2df_runtime.stream.frames import Frame
from m2df_runtime.stream.zones import zone_name

_SAME = 1e-6  # seconds: sums of rounded times differ by less, frames by more


class Window(FrameSource):
    """Part of a recording, as a clip.

    Attributes:
        start: Its first second.
        end: Its end, which belongs to the next window.
        frames: Its frames.
        zone: Part of the picture that they show; None for all of it.
        overdue: Seconds by which the first frame after it came later than frames usually do.
    """

    is_part = True

    def __init__(
        self,
        name: str,
        start: float,
        end: float,
        frames: tuple[Frame, ...],
        zone: str | None = None,
        known: float | None = None,
    ) -> None:
        self.name = f"{zone_name(name, zone)}, {start:.2f} to {end:.2f} s"
        self.zone = zone
        self.start, self.end, self.frames = start, end, frames
        self.n_frames = len(frames)
        self.times: NDArray[np.float64] = np.asarray([frame.time for frame in frames]) - start
        self.fps = frame_rate(self.times, DEFAULT_FPS)
        self.overdue = 0.0 if known is None else max(0.0, known - end - 1 / self.fps)

    @property
    def duration(self) -> float:
        """Seconds from start to end."""
        return self.end - self.start

    @property
    def still(self) -> bool:
        """Whether nothing moves in it."""
        return not any(frame.moved for frame in self.frames)

    def pictures(self, indices: NDArray[np.int64]) -> Iterator[Picture]:
        """See `FrameSource.pictures`."""
        return (self.frames[index].picture for index in indices.tolist())


class WindowCutter:
    """Cuts a recording into windows as its frames come; holds the frames of one.

    Window k begins k strides after the first frame. Where the recording has no frame for longer than a window, those
    without any are left out.

    Args:
        length: Seconds of a window.
        stride: Seconds from the start of one to the start of the next, at most `length`.
        name: What messages call the recording.
        zone: Part of the picture that the frames show.
    """

    def __init__(self, length: float, stride: float, name: str, zone: str | None = None) -> None:
        self._length, self._stride, self._name, self._zone = length, stride, name, zone
        self._held: deque[Frame] = deque()
        self._nbytes = self._number = 0
        self._first = self._covered = 0.0  # `_covered`: end of the last window that was given

    def add(self, frame: Frame) -> Iterator[Window]:
        """The windows that end before a frame; frames have rising times.

        Raises:
            ClipError: The frames of one window take too much memory. They are let go of; windows after them may fit.
        """
        if not self._held and self._number == 0:
            self._first = self._covered = frame.time
        while self._held and frame.time >= self._start() + self._length - _SAME:
            start = self._start()
            self._drop(start)
            if self._held:
                yield self._window(start, start + self._length, frame.time)
                self._covered = start + self._length
                self._number += 1
            else:  # the first window that holds the new frame
                passed = int((frame.time + _SAME - self._first - self._length) // self._stride) + 1
                self._number = max(self._number + 1, passed)
        self._held.append(frame)
        self._nbytes += frame.picture.nbytes
        if self._nbytes > MAX_BYTES:
            reason = f"{len(self._held)} frames take {self._nbytes} bytes, one window may hold {MAX_BYTES}"
            self._held.clear()
            self._nbytes = 0
            self._number = int((frame.time - self._first) // self._stride) + 1
            raise ClipError(self._name, reason, "choose a shorter window, or scale the recording down")

    def finish(self) -> Iterator[Window]:
        """The frames at the end that no whole window holds, as a shorter one."""
        held, start = self._held, self._start()
        if not held:
            return
        last = held[-1].time
        frame_time = (last - held[0].time) / (len(held) - 1) if len(held) > 1 else 1 / DEFAULT_FPS
        if last + frame_time > self._covered + _SAME or self._number == 0:
            self._drop(start)
            if held:
                yield self._window(start, min(start + self._length, last + frame_time))

    def _start(self) -> float:
        """Of the next window."""
        return self._first + self._number * self._stride

    def _window(self, start: float, end: float, known: float | None = None) -> Window:
        return Window(self._name, start, end, tuple(self._held), self._zone, known)

    def _drop(self, start: float) -> None:
        """Let go of frames before a time."""
        while self._held and self._held[0].time < start - _SAME:
            self._nbytes -= self._held.popleft().picture.nbytes


def _raise(zone: str | None, error: ClipError) -> None:
    raise error


def cut(
    frames: Iterable[Sequence[Frame | ClipError]],
    length: float,
    stride: float,
    name: str,
    zones: Sequence[str | None] = (None,),
    refused: Callable[[str | None, ClipError], None] = _raise,
) -> Iterator[Window]:
    """The windows of a recording, those of each zone in order, see `WindowCutter`.

    Args:
        frames: As `kept_frames` gives them, one for each zone, with rising times.
        length: Seconds of a window.
        stride: Seconds from one to the next.
        name: What messages call the recording.
        zones: Names of the zones; None is the whole picture.
        refused: Told of a zone's frame that cannot be used; where it returns, the others are.

    Raises:
        ClipError: A frame cannot be used, or those of one window take too much memory.
    """
    cutters = {zone: WindowCutter(length, stride, name, zone) for zone in zones}
    for each in frames:
        for (zone, cutter), frame in zip(cutters.items(), each, strict=True):
            try:
                if isinstance(frame, ClipError):
                    raise frame
                yield from cutter.add(frame)
            except ClipError as error:
                refused(zone, error)
    for cutter in cutters.values():
        yield from cutter.finish()
