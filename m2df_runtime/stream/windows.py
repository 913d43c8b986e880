"""Windows over a recording: clips that overlap, each in memory, each read as any other clip is.

A window is all frames with start <= time < start + length. At the end of the recording the frames that no whole
window holds make a shorter one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.clips.limits import MAX_BYTES
from m2df_runtime.clips.source import DEFAULT_FPS, FrameSource, Picture
from m2df_runtime.errors import ClipError
from m2df_runtime.stream.frames import Frame

_SAME = 1e-6  # seconds: sums of rounded times differ by less, frames by more


class Window(FrameSource):
    """Part of a recording, as a clip.

    Attributes:
        start: Its first second.
        end: Its end, which belongs to the next window.
        frames: Its frames.
    """

    is_part = True

    def __init__(self, name: str, start: float, end: float, frames: tuple[Frame, ...]) -> None:
        self.name = f"{name}, {start:.2f} to {end:.2f} s"
        self.start, self.end, self.frames = start, end, frames
        self.n_frames = len(frames)
        self.times: NDArray[np.float64] = np.asarray([frame.time for frame in frames]) - start
        span = float(self.times[-1] - self.times[0])
        self.fps = (self.n_frames - 1) / span if span > 0 else DEFAULT_FPS

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


def cut(frames: Iterable[Frame], length: float, stride: float, name: str) -> Iterator[Window]:
    """The windows of a recording in order; holds the frames of one.

    Window k begins k strides after the first frame. Where the recording has no frame for longer than a window, those
    without any are left out.

    Args:
        frames: Frames with rising times.
        length: Seconds of a window.
        stride: Seconds from the start of one to the start of the next, at most `length`.
        name: What messages call the recording.

    Raises:
        ClipError: The frames of one window take too much memory.
    """
    held: deque[Frame] = deque()
    nbytes = number = 0
    first = covered = 0.0  # `covered`: end of the last window that was given
    for frame in frames:
        if not held and number == 0:
            first = covered = frame.time
        while held and frame.time >= first + number * stride + length - _SAME:
            start = first + number * stride
            nbytes -= _drop(held, start)
            if held:
                yield Window(name, start, start + length, tuple(held))
                covered = start + length
                number += 1
            else:  # the first window that holds the new frame
                number = max(number + 1, int((frame.time + _SAME - first - length) // stride) + 1)
        held.append(frame)
        nbytes += frame.picture.nbytes
        if nbytes > MAX_BYTES:
            reason = f"{len(held)} frames take {nbytes} bytes, one window may hold {MAX_BYTES}"
            raise ClipError(name, reason, "choose a shorter window, or scale the recording down")
    if not held:
        return
    last = held[-1].time
    frame_time = (last - held[0].time) / (len(held) - 1) if len(held) > 1 else 1 / DEFAULT_FPS
    start = first + number * stride
    if last + frame_time > covered + _SAME or number == 0:
        _drop(held, start)
        if held:
            yield Window(name, start, min(start + length, last + frame_time), tuple(held))


def _drop(held: deque[Frame], start: float) -> int:
    """Let go of frames before a time, and tell of how many bytes they were."""
    nbytes = 0
    while held and held[0].time < start - _SAME:
        nbytes += held.popleft().picture.nbytes
    return nbytes
