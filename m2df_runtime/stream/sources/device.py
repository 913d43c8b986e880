"""Cameras of this machine, through OpenCV."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.clips.source import fitted
from m2df_runtime.stream.sources.given import HeldPicture
from m2df_runtime.stream.sources.live import LiveFrames, Shown, SourceLost, SourceState


class DeviceFrames(LiveFrames):
    """A camera of this machine by its number. Its frames have no stamps: they are of when they come.

    How old they are is not asked: the driver is told to hold one, and whatever does not obey has room for a few.

    Args:
        number: 0 for the first.
        on_state: See `LiveFrames`.
        capture: Opens it: `cv2.VideoCapture`, or what behaves like it.
        name: What messages and events call it.
    """

    def __init__(
        self,
        number: int,
        on_state: Callable[[SourceState], None] | None = None,
        *,
        capture: Callable[[int], Any] | None = None,
        name: str | None = None,
    ) -> None:
        self._number, self._capture = number, capture or _opened
        super().__init__(name or f"camera {number}", on_state)

    @contextmanager
    def connected(self) -> Iterator[Iterator[Shown]]:
        """See `LiveFrames.connected`."""
        capture = self._capture(self._number)
        try:
            if not capture.isOpened():
                raise SourceLost("not found", "no such camera, or another program has it")
            yield _frames(capture)
        finally:
            capture.release()


def _frames(capture: Any) -> Generator[Shown]:  # noqa: ANN401 - cv2 has no types
    """Frames as they come, all in the size of the first."""
    size: tuple[int, int] | None = None
    while True:
        read, frame = capture.read()
        if not read or frame is None or not frame.size:
            raise SourceLost("closed", "it gives no frame")
        colour: NDArray[np.uint8] = frame if frame.ndim == 3 else np.repeat(frame[..., None], 3, axis=2)
        size = size or (colour.shape[1], colour.shape[0])
        yield Shown(None, HeldPicture(fitted(np.ascontiguousarray(colour[..., ::-1]), size)))


def _opened(number: int) -> Any:  # noqa: ANN401
    import cv2

    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # two lines for each try
    try:
        capture = cv2.VideoCapture(number)
    finally:
        cv2.utils.logging.setLogLevel(level)
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest frame, where the driver can do that
    return capture
