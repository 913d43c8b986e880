"""A clip's frames for people to look at, kept small while the model's are read: drawing decodes nothing again."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m2df_runtime.clips.source import FrameSource, Picture, SeenThrough, grey_of, reduced
from m2df_runtime.pixels.load import chosen_frames, load_uncropped
from m2df_runtime.pixels.resize_and_crop import centred
from m2df_runtime.pixels.spec import ClipSpec

_LONG_SIDE = 640  # of what is kept: 8 frames take 6 MB, those of a 4K clip would take 200
_QUALITY = 80  # 8 frames of 112 pixels take about 15 kB


def shown_frames(source: FrameSource, look: ClipSpec) -> NDArray[np.uint8]:
    """Frames of a clip to be drawn, uint8 [T, S, S, 3]. Raises ClipError where they cannot be read."""
    return centred(load_uncropped(source, look, chosen_frames(source, look)), look.size)


def strip_jpeg(frames: NDArray[np.uint8]) -> bytes:
    """Frames [T, S, S, 3] side by side, as a JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(list(frames), axis=1)).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def to_look_at(spec: ClipSpec, side: int) -> ClipSpec:
    """A model's sampling and region with frames in natural colours, `side` pixels wide and high."""
    short = spec.short_side and max(side, round(spec.short_side * side / spec.size))
    changes = {"size": side, "short_side": short, "channels": "rgb", "antialias": True, "interpolation": "bicubic"}
    return spec.model_copy(update=changes)


class WatchedClip(SeenThrough):
    """A clip of which small frames are kept while it is read.

    Args:
        source: The clip.
        look: Which of its frames will be drawn, as `shown_frames` chooses them.
    """

    def __init__(self, source: FrameSource, look: ClipSpec) -> None:
        super().__init__(source)
        self._drawn = set(chosen_frames(source, look).tolist())
        self._kept: dict[int, _SmallPicture] = {}

    def pictures(self, indices: NDArray[np.int64]) -> Iterator[Picture]:
        """See `FrameSource.pictures`."""
        for index, picture in zip(indices.tolist(), self._source.pictures(indices), strict=True):
            kept = self._kept.setdefault(index, _SmallPicture(index in self._drawn))
            kept.keep(picture)
            yield _WatchedPicture(picture, kept)

    @property
    def small(self) -> FrameSource:
        """What was read of the clip, to be read again without decoding."""
        return _SmallClip(self, self._kept)


class _SmallClip(SeenThrough):
    def __init__(self, clip: WatchedClip, kept: dict[int, _SmallPicture]) -> None:
        super().__init__(clip)
        self._kept = kept

    def pictures(self, indices: NDArray[np.int64]) -> Iterator[Picture]:
        return (self._kept[index] for index in indices.tolist())


class _SmallPicture(Picture):
    """A frame in colour where it is drawn, and the grey reductions that were asked for."""

    def __init__(self, drawn: bool) -> None:
        self._drawn = drawn
        self._colour: NDArray[np.uint8] | None = None
        self.greys: dict[int, NDArray[np.uint8]] = {}

    def keep(self, picture: Picture) -> None:
        if self._drawn and self._colour is None:
            self._colour = reduced(picture.rgb(), _LONG_SIDE)

    def rgb(self) -> NDArray[np.uint8]:
        assert self._colour is not None  # asked of frames that are drawn alone
        return self._colour

    def grey(self, long_side: int | None = None) -> NDArray[np.uint8]:
        found = None if long_side is None else self.greys.get(long_side)
        return reduced(grey_of(self.rgb()), long_side) if found is None else found


class _WatchedPicture(Picture):
    def __init__(self, picture: Picture, kept: _SmallPicture) -> None:
        self._picture = picture
        self._kept = kept
        self.nbytes = picture.nbytes

    def rgb(self) -> NDArray[np.uint8]:
        return self._picture.rgb()

    def grey(self, long_side: int | None = None) -> NDArray[np.uint8]:
        grey = self._picture.grey(long_side)
        if long_side is not None:  # a whole grey frame is as large as the frame
            self._kept.greys[long_side] = grey
        return grey
