"""A clip on its way to the graphs: its pixels as the model sees them, and what reading them took.

Reading needs no model, so other processes may do it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import av  # noqa: F401 - its 70 ms of loading are not decoding time
import numpy as np
from numpy.typing import NDArray

from m2df_runtime.clips.opening import open_source
from m2df_runtime.clips.source import CroppedSource, FrameSource, Made, Picture, Rectangle, SeenThrough
from m2df_runtime.pixels.load import load_clip
from m2df_runtime.pixels.spec import ClipSpec
from m2df_runtime.pixels.thumbnails import WatchedClip, shown_frames

_log = logging.getLogger(__name__)


class TimedSource(SeenThrough):
    """A clip that adds up the seconds spent opening it, decoding its frames and converting them."""

    def __init__(self, clip: Path | str | FrameSource) -> None:
        self.seconds = 0.0
        with self._timed():
            source = clip if isinstance(clip, FrameSource) else open_source(clip)
        super().__init__(source)

    def pictures(self, indices: NDArray[np.int64]) -> Iterator[Picture]:
        """See `FrameSource.pictures`."""
        pictures = self._source.pictures(indices)
        while True:
            with self._timed():
                picture = next(pictures, None)
            if picture is None:
                return
            yield _TimedPicture(picture, self._timed)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = perf_counter()
        yield
        self.seconds += perf_counter() - start


class _TimedPicture(Picture):
    def __init__(self, picture: Picture, timed: Callable[[], AbstractContextManager[None]]) -> None:
        self._picture = picture
        self._timed = timed
        self.nbytes = picture.nbytes

    def rgb(self) -> NDArray[np.uint8]:
        with self._timed():
            return self._picture.rgb()

    def grey(self, long_side: int | None = None) -> NDArray[np.uint8]:
        with self._timed():
            return self._picture.grey(long_side)

    def made_once(self, make: Callable[[Picture], Made]) -> Made:
        with self._timed():
            return self._picture.made_once(make)


@dataclass(frozen=True)
class ReadClip:
    """A clip that was read.

    Attributes:
        name: Its path as it was given, or its name.
        pixels: What the model sees, uint8 [T, S, S, 3].
        decode: Milliseconds of opening and decoding.
        preprocess: Milliseconds from decoded frames to pixels.
        frames: Frames to look at, uint8 [T, S', S', 3]; None unless they were asked for.
        seconds: How long the clip lasts.
        single: Whether it is one picture, which is answered although it shows no action.
    """

    name: str
    pixels: NDArray[np.uint8]
    decode: float
    preprocess: float
    frames: NDArray[np.uint8] | None
    seconds: float
    single: bool = False


def read_clip(
    clip: Path | str | FrameSource, spec: ClipSpec, *, roi: Rectangle | None = None, look: ClipSpec | None = None
) -> ReadClip:
    """Read a clip as a model sees it.

    Args:
        clip: A path, or a clip that was opened.
        spec: The model's preprocessing.
        roi: x, y, width, height in pixels of the upright picture, cut out first.
        look: How `frames` are to look; None for none.

    Raises:
        ClipError: It cannot be read, or the rectangle lies outside it.
    """
    start = perf_counter()
    source = TimedSource(clip)
    seen = source if roi is None else CroppedSource(source, roi)
    watched = None if look is None else WatchedClip(seen, look)
    pixels = load_clip(watched or seen, spec)
    decode, loaded = 1000 * source.seconds, 1000 * (perf_counter() - start)
    frames = shown_frames(watched.small, look) if watched and look else None
    single = source.n_frames == 1
    if single and not isinstance(clip, FrameSource):  # of frames in memory the caller knows how many
        _log.warning("%s: one picture, which shows no action (name a video, or a folder of frames)", clip)
    named = source.name if isinstance(clip, FrameSource) else os.fspath(clip)
    return ReadClip(named, pixels, decode, loaded - decode, frames, source.duration, single)
