"""The newest frames of a camera, small and compressed in memory, from which clips of its events are made.

A recording can be read a second time. Of a camera what nobody held is gone.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.clips.source import DEFAULT_FPS, ArrayPicture, FrameSource, Picture, frame_rate, reduced
from m2df_runtime.errors import ClipError
from m2df_runtime.stream.events import Event
from m2df_runtime.stream.sources.timed import TimedFrames

_LONG_SIDE = 640  # pixels: 1.2 ms of a frame of 640 x 360, 8.1 ms of 1920 x 1080; about 20 kB each
_QUALITY = 85  # of JPEG
_MOST_BYTES = 1 << 25  # a minute or more of one camera

Jpeg = NDArray[np.uint8]


class HeldFrames:
    """Holds a camera's newest frames, and gives those of an event once all are there.

    Args:
        before: Seconds of a clip before its event.
        after: Seconds after it.
        give: Told event, frames and their bytes, on the thread that saw the last of them.
    """

    def __init__(self, before: float, after: float, give: Callable[[Event, FrameSource, int], None]) -> None:
        self._before, self._after, self._give = before, after, give
        self._frames: deque[tuple[float, Jpeg]] = deque()
        self._nbytes = 0
        self._over = False  # nothing comes after the newest frame
        self._ended: list[Event] = []  # whose last frames are to come
        self._holding = threading.Lock()

    def frame(self, time: float, picture: Picture) -> None:
        """The next frame; one that cannot be read is left out."""
        with suppress(ClipError):
            jpeg = _compressed(picture.rgb())
            with self._holding:
                if self._over:  # what comes now may have another size
                    self._frames.clear()
                    self._nbytes, self._over = 0, False
                self._frames.append((time, jpeg))
                self._nbytes += jpeg.nbytes
                while self._nbytes > _MOST_BYTES:
                    self._nbytes -= self._frames.popleft()[1].nbytes
        self._give_ended()

    def over(self) -> None:
        """The camera is lost, or was stopped: the frames of events that ended are as many as there will be."""
        with self._holding:
            self._over = True
        self._give_ended()

    def ended(self, event: Event) -> None:
        """An event whose clip is wanted."""
        with self._holding:
            self._ended.append(event)
        self._give_ended()

    def _give_ended(self) -> None:
        with self._holding:
            newest = self._frames[-1][0] if self._frames else -np.inf
            ready = [event for event in self._ended if self._over or event.end + self._after <= newest]
            self._ended = [event for event in self._ended if event not in ready]
            found = [(event, self._around(event)) for event in ready]
        for event, frames in found:
            if frames:
                self._give(event, _Frames(event.camera, frames), sum(jpeg.nbytes for _, jpeg in frames))

    def _around(self, event: Event) -> list[tuple[float, Jpeg]]:
        start, end = event.start - self._before, event.end + self._after
        return [(time, jpeg) for time, jpeg in self._frames if start <= time <= end]


class Holding(TimedFrames):
    """A source whose frames are held as they are read."""

    def __init__(self, source: TimedFrames, held: HeldFrames) -> None:
        self._source, self._held = source, held
        self.name, self.began = source.name, source.began
        self.any_thread, self.live = source.any_thread, source.live

    @property
    def dropped(self) -> dict[str, int]:
        """See `TimedFrames`."""
        return self._source.dropped

    def frames(self) -> Iterator[tuple[float, Picture]]:
        """See `TimedFrames.frames`."""
        try:
            for time, picture in self._source.frames():
                self._held.frame(time, picture)
                yield time, picture
        finally:
            self._held.over()

    def parts(self) -> Generator[TimedFrames]:
        """See `TimedFrames.parts`."""
        with closing(self._source.parts()) as parts:
            for part in parts:
                yield self if part is self._source else Holding(part, self._held)

    def stop(self) -> None:
        """See `TimedFrames.stop`."""
        self._source.stop()


class _Frames(FrameSource):
    """Held frames as a clip, in the camera's own seconds."""

    def __init__(self, name: str, frames: Sequence[tuple[float, Jpeg]]) -> None:
        self.name = name
        self.n_frames = len(frames)
        self.times = np.asarray([time for time, _ in frames])
        self.fps = frame_rate(self.times, DEFAULT_FPS)
        self._jpegs = [jpeg for _, jpeg in frames]

    def pictures(self, indices: NDArray[np.int64]) -> Iterator[Picture]:
        """See `FrameSource.pictures`."""
        import cv2

        for index in indices.tolist():
            frame = cv2.imdecode(self._jpegs[index], cv2.IMREAD_COLOR)
            assert frame is not None  # it was written by the same library
            yield ArrayPicture(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False))


def _compressed(frame: NDArray[np.uint8]) -> Jpeg:
    import cv2

    bgr = cv2.cvtColor(reduced(frame, _LONG_SIDE), cv2.COLOR_RGB2BGR)
    made: Jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
    return made
