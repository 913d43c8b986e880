"""What a clip is to the rest of m2df: frames with times, read one at a time.

Reading yields pictures that convert themselves on demand: finding what moves in a 4K clip takes 33 small grey
frames, and holding 33 full ones would take 800 MB.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.clips.limits import check_bytes
from m2df_runtime.errors import ClipError, InputError

DEFAULT_FPS = 25.0
Made = TypeVar("Made")
Rectangle = tuple[int, int, int, int]
"""x, y, width, height in pixels of the upright picture."""


class Picture(ABC):
    """One frame, upright, converted when asked.

    A picture may be kept after its clip was read; it then holds its `nbytes` until it is dropped.

    Attributes:
        nbytes: Memory that keeping it takes.
    """

    nbytes: int = 0

    @abstractmethod
    def rgb(self) -> NDArray[np.uint8]:
        """uint8 [H, W, 3] in full size."""

    def grey(self, long_side: int | None = None) -> NDArray[np.uint8]:
        """uint8 [h, w], reduced by averaging areas where the long side is above `long_side` pixels."""
        return reduced(grey_of(self.rgb()), long_side)

    def made_once(self, make: Callable[[Picture], Made]) -> Made:
        """What a function makes of this picture; a picture that is held for several clips keeps it for all of them."""
        return make(self)


class FrameSource(ABC):
    """A clip whose frames can be read by index.

    Attributes:
        name: What messages call the clip.
        n_frames: Frames in the clip, at least 1.
        times: Presentation times in seconds from the clip's start, float64 [n], ascending; the first is 0 except in a
            window of a recording, which may begin between two frames.
        fps: Mean frames per second.
        is_part: Whether it is one of many parts of a recording: what is odd about it is not worth a warning for each.

    Examples:
        >>> import numpy as np
        >>> import m2df_runtime as m2df
        >>> from m2df_runtime.clips.source import ArrayPicture
        >>> class Fading(m2df.FrameSource):
        ...     n_frames, times, fps = 50, np.arange(50) / 25, 25.0
        ...     def pictures(self, indices):
        ...         return (ArrayPicture(np.full((120, 160, 3), 5 * index, np.uint8)) for index in indices)
        >>> Fading().read([0, 49]).shape
        (2, 120, 160, 3)
    """

    name: str = "the clip"
    n_frames: int
    times: NDArray[np.float64]
    fps: float
    is_part: bool = False

    @property
    def duration(self) -> float:
        """Seconds from the clip's start to its end: the last frame is on screen for a mean frame time."""
        return float(self.n_frames / self.fps)

    @abstractmethod
    def pictures(self, indices: NDArray[np.int64]) -> Iterator[Picture]:
        """One picture for each of distinct ascending indices, in that order.

        Raises:
            ClipError: A frame cannot be read.
        """

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Frames in the order asked (any order, repeats allowed), uint8 [M, H, W, 3] RGB.

        Raises:
            ClipError: A frame cannot be read, or all together are larger than `limits.MAX_BYTES`.
            IndexError: An index outside the clip.
        """
        chosen = checked_indices(indices, self.n_frames)
        wanted, places = np.unique(chosen, return_inverse=True)
        frames: NDArray[np.uint8] | None = None
        for place, picture in enumerate(self.pictures(wanted)):
            frame = picture.rgb()
            if frames is None:
                check_bytes(self.name, len(chosen), frame.shape[1], frame.shape[0])
                frames = np.empty((len(wanted), *frame.shape), dtype=np.uint8)
            frames[place] = frame
        if frames is None:
            raise ValueError("no frames are asked for")
        return frames if len(wanted) == len(chosen) and (places == np.arange(len(places))).all() else frames[places]


class ArrayPicture(Picture):
    """A frame that is in memory already, uint8 [H, W, 3]."""

    def __init__(self, frame: NDArray[np.uint8]) -> None:
        self._frame = frame

    def rgb(self) -> NDArray[np.uint8]:
        """See `Picture.rgb`."""
        return self._frame


class ArraySource(FrameSource):
    """Frames that are in memory already.

    Args:
        frames: uint8 [n, H, W, 3] RGB.
        fps: Frames per second.
    """

    def __init__(self, frames: NDArray[np.uint8], fps: float = DEFAULT_FPS) -> None:
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or frames.size == 0:
            raise InputError(f"frames must be uint8 [n, H, W, 3] with n >= 1, not {frames.dtype} {list(frames.shape)}")
        if fps <= 0:
            raise InputError(f"frames per second must be above 0, not {fps}")
        self._frames = frames
        self.n_frames = len(frames)
        self.fps = float(fps)
        self.times: NDArray[np.float64] = np.arange(self.n_frames) / self.fps

    def pictures(self, indices: NDArray[np.int64]) -> Iterator[Picture]:
        """See `FrameSource.pictures`."""
        for index in indices.tolist():
            yield ArrayPicture(self._frames[index])


class SeenThrough(FrameSource):
    """Another clip seen through something: it has that clip's name and times."""

    def __init__(self, source: FrameSource) -> None:
        self._source = source
        self.name, self.n_frames, self.times, self.fps = source.name, source.n_frames, source.times, source.fps
        self.is_part = source.is_part

    @property
    def duration(self) -> float:
        """See `FrameSource.duration`."""
        return self._source.duration


class CroppedSource(SeenThrough):
    """A clip seen through a rectangle, which is cut to the picture where it overhangs.

    Args:
        source: The clip.
        rectangle: x, y, width, height in pixels of the upright picture.
    """

    def __init__(self, source: FrameSource, rectangle: Rectangle) -> None:
        super().__init__(source)
        self._rectangle = rectangle

    def pictures(self, indices: NDArray[np.int64]) -> Iterator[Picture]:
        """See `FrameSource.pictures`. Raises ClipError where the rectangle lies outside the picture."""
        for picture in self._source.pictures(indices):
            yield CroppedPicture(picture, self._rectangle, self.name)


class CroppedPicture(Picture):
    """A picture seen through a rectangle, see `CroppedSource`; `name` is what errors call its clip."""

    def __init__(self, picture: Picture, rectangle: Rectangle, name: str) -> None:
        self._picture = picture
        self._rectangle = rectangle
        self._name = name
        self.nbytes = picture.nbytes

    def rgb(self) -> NDArray[np.uint8]:
        """See `Picture.rgb`. Raises ClipError where the rectangle lies outside the picture."""
        return self._cut(self._picture.rgb())

    def grey(self, long_side: int | None = None) -> NDArray[np.uint8]:
        """See `Picture.grey`. Raises as `rgb`."""
        return reduced(self._cut(self._picture.grey()), long_side)

    def _cut(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = frame.shape[:2]
        x, y, across, down = self._rectangle
        part = frame[max(y, 0) : max(y + down, 0), max(x, 0) : max(x + across, 0)]
        if part.size == 0:
            raise ClipError(
                self._name,
                f"region {x},{y},{across},{down} lies outside the {width}x{height} frame",
                "give x,y,width,height in pixels of the upright frame",
            )
        return np.ascontiguousarray(part)


def grey_of(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(299 R + 587 G + 114 B) / 1000 in OpenCV's fixed point, uint8 [H, W, 3] -> [H, W]."""
    import cv2

    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.uint8, copy=False)


def frame_rate(times: Sequence[float] | NDArray[np.float64], other: float) -> float:
    """Frames per second of frames at these seconds; `other` where that cannot be told, as of a single one."""
    span = float(times[-1] - times[0])
    return (len(times) - 1) / span if span > 0 else other


def reduced(frame: NDArray[np.uint8], long_side: int | None) -> NDArray[np.uint8]:
    """uint8 [H, W] or [H, W, 3] with a long side of at most `long_side` pixels; areas are averaged."""
    height, width = frame.shape[:2]
    if long_side is None or max(height, width) <= long_side:
        return frame
    import cv2

    size = reduced_size(width, height, long_side)
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def reduced_size(width: int, height: int, long_side: int | None) -> tuple[int, int]:
    """Width and height after a reduction to a long side of at most `long_side` pixels."""
    scale = 1.0 if long_side is None else min(1.0, long_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def fitted(frame: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A frame [h, w, 3] as large as it fits into `size` (width, height), black beside it: uint8 [height, width, 3]."""
    width, height = size
    if frame.shape[:2] == (height, width):
        return frame
    import cv2

    scale = min(width / frame.shape[1], height / frame.shape[0])
    inner = (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale)))
    shown = np.zeros((height, width, 3), dtype=np.uint8)
    top, left = (height - inner[1]) // 2, (width - inner[0]) // 2
    shown[top : top + inner[1], left : left + inner[0]] = cv2.resize(frame, inner, interpolation=cv2.INTER_AREA)
    return shown


def checked_indices(indices: Sequence[int] | NDArray[np.int64], n_frames: int) -> NDArray[np.int64]:
    """Frame indices as int64 [M], refused (IndexError) outside 0..n_frames-1."""
    chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
    if chosen.size and (chosen.min() < 0 or chosen.max() >= n_frames):
        raise IndexError(f"frame indices {chosen.min()}..{chosen.max()} outside 0..{n_frames - 1}")
    return chosen
