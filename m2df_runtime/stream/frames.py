"""What is kept of a recording's frames: as little as any window over them can ask for.

Of a frame that is seen in motion channels alone that is the small grey scene; of one that is seen whole and in colour,
the scaled picture. Both are what `load_clip` itself would make first, so that a window's pixels are those of a clip.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.clips.source import CroppedPicture, Made, Picture, reduced
from m2df_runtime.errors import ClipError
from m2df_runtime.pixels.resize_and_crop import scaled
from m2df_runtime.pixels.scene_frame import SCENE_SIDE, SceneFrame
from m2df_runtime.pixels.spec import ClipSpec
from m2df_runtime.stream.zones import Zone, rectangle

_BLOCK = 8  # pixels of the scene whose mean is compared: sensor noise averages away
_STILL = 4.0  # grey levels by which no block differs where nothing moves; codecs let blocks breathe by 1 to 3
_APART = 0.3  # seconds between two frames that are compared: somebody slow has moved by then


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame of a recording.

    Attributes:
        number: Its place in the recording.
        time: Seconds of the recording.
        picture: What is kept of it.
        moved: Whether something moved shortly before it.
    """

    number: int
    time: float
    picture: Picture
    moved: bool


def kept_frames(
    frames: Iterable[tuple[float, Picture]], spec: ClipSpec, name: str, zones: Sequence[Zone | None]
) -> Generator[list[Frame | ClipError]]:
    """Frames with what windows need of them, each cut to every zone; None is the whole picture.

    A ClipError stands where a zone lies outside of the picture, or the frame cannot be read.
    """
    needs_grey = spec.channels != "rgb" or spec.region == "motion"
    needs_colour = spec.channels != "motion"
    watches = [MotionWatch() for _ in zones]

    def kept(number: int, time: float, whole: _Shared, zone: Zone | None, watch: MotionWatch) -> Frame | ClipError:
        try:
            picture = whole if zone is None else CroppedPicture(whole, rectangle(zone, *whole.size), name)
            grey = picture.grey(SCENE_SIDE)
            moved = watch.moved(time, grey)
            if needs_grey:
                return Frame(number, time, _Scene(grey, picture if needs_colour else None), moved)
            return Frame(number, time, _Colour(scaled(picture.rgb(), None, spec)), moved)
        except ClipError as error:
            return error

    for number, (time, picture) in enumerate(frames):
        whole = _Shared(picture, len(zones))
        found = [kept(number, time, whole, zone, watch) for zone, watch in zip(zones, watches, strict=True)]
        whole.let_go()
        yield found


class _Shared(Picture):
    """A picture that is converted once for all zones, as long as they are cut out of it.

    Each of so many zones that hold it holds an equal share of its bytes.
    """

    def __init__(self, picture: Picture, zones: int) -> None:
        self._picture = picture
        self._rgb: NDArray[np.uint8] | None = None
        self._grey: NDArray[np.uint8] | None = None
        self._held = True
        self.nbytes = picture.nbytes // zones

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        height, width = self.grey().shape
        return width, height

    def rgb(self) -> NDArray[np.uint8]:
        if not self._held:
            return self._picture.rgb()
        if self._rgb is None:
            self._rgb = self._picture.rgb()
        return self._rgb

    def grey(self, long_side: int | None = None) -> NDArray[np.uint8]:
        if long_side is not None or not self._held:
            return self._picture.grey(long_side)
        if self._grey is None:
            self._grey = self._picture.grey()
        return self._grey

    def let_go(self) -> None:
        """Hold nothing besides the picture from now on."""
        self._rgb = self._grey = None
        self._held = False


class _Scene(Picture):
    """The small grey scene with what is made of it, and the picture itself where colours are seen."""

    def __init__(self, grey: NDArray[np.uint8], colour: Picture | None) -> None:
        self._grey = grey
        self._colour = colour
        self._made: dict[Callable[[Picture], Any], Any] = {}
        self.nbytes = SceneFrame(grey).nbytes + (colour.nbytes if colour else 0)

    def rgb(self) -> NDArray[np.uint8]:
        assert self._colour is not None  # asked where the spec has colours
        return self._colour.rgb()

    def grey(self, long_side: int | None = None) -> NDArray[np.uint8]:
        return reduced(self._grey, long_side)

    def made_once(self, make: Callable[[Picture], Made]) -> Made:
        if make not in self._made:  # two windows at once may both make it: either will do
            self._made[make] = make(self)
        return cast(Made, self._made[make])


class _Colour(Picture):
    """A picture that is scaled already: scaled once more, it stays as it is."""

    def __init__(self, frame: NDArray[np.uint8]) -> None:
        self._frame = frame
        self.nbytes = frame.nbytes

    def rgb(self) -> NDArray[np.uint8]:
        return self._frame


class MotionWatch:
    """Tells of each frame whether the picture differs from the one a third of a second before."""

    def __init__(self) -> None:
        self._earlier: tuple[float, NDArray[np.float32]] | None = None
        self._moved = False

    def moved(self, time: float, grey: NDArray[np.uint8]) -> bool:
        if self._earlier is not None and time - self._earlier[0] < _APART:
            return self._moved
        import cv2

        height, width = (max(1, round(side / _BLOCK)) for side in grey.shape)
        blocks = cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
        if self._earlier is not None:
            change = blocks - self._earlier[1]
            change -= np.median(change)  # of exposure
            self._moved = bool(np.abs(change).max() > _STILL)
        self._earlier = (time, blocks)
        return self._moved
