"""Frames that a program gives: any iterator of times and pictures, such as another library's camera."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.clips.limits import check_pixels
from m2df_runtime.clips.source import Picture, fitted, grey_of, reduced
from m2df_runtime.errors import ClipError
from m2df_runtime.stream.sources.timed import TimedFrames


class GivenFrames(TimedFrames):
    """What an iterator yields, each a time in seconds and a frame, uint8 [H, W, 3] RGB or a `Picture`.

    All have the size of the first array; one of another shape is fitted in with black beside it, as in a video file.

    Args:
        pairs: The iterator. It is asked for one pair at a time, on the caller's thread.
        name: What messages and events call it.
    """

    def __init__(
        self, pairs: Iterable[tuple[float, NDArray[np.uint8] | Picture]], name: str = TimedFrames.name
    ) -> None:
        self._pairs = pairs
        self.name = name

    def frames(self) -> Iterator[tuple[float, Picture]]:
        """See `TimedFrames.frames`. Raises ClipError for what is neither a frame nor a `Picture`."""
        size: tuple[int, int] | None = None
        for number, pair in enumerate(self._pairs):
            try:
                time, frame = pair
                seconds = float(time)
            except (TypeError, ValueError):
                raise self._refused(number, "is not a time in seconds and a frame") from None
            if isinstance(frame, Picture):
                yield seconds, frame
                continue
            if not (
                isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3
            ):
                raise self._refused(number, "is not a picture, uint8 [H, W, 3]")
            if not frame.size:
                raise self._refused(number, "is empty")
            check_pixels(self.name, frame.shape[1], frame.shape[0])
            size = size or (frame.shape[1], frame.shape[0])
            yield seconds, HeldPicture(fitted(frame, size))

    def _refused(self, number: int, what: str) -> ClipError:
        return ClipError(self.name, f"frame {number + 1} {what}", "give pairs such as (0.04, frame)")


class HeldPicture(Picture):
    """A copy of a frame: whoever gave it may write the next one into the same memory."""

    def __init__(self, frame: NDArray[np.uint8]) -> None:
        self._frame = np.array(frame)
        self.nbytes = frame.nbytes

    def rgb(self) -> NDArray[np.uint8]:
        return self._frame

    def grey(self, long_side: int | None = None) -> NDArray[np.uint8]:
        return reduced(grey_of(self._frame), long_side)
