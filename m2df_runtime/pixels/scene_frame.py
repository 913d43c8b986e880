"""A small grey frame with all that follows from it alone: windows that overlap share frames, and compute it once."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.clips.source import Picture

SCENE_SIDE = 320  # motion is found, and motion channels are computed, at no more than this long side
_SMALL_SIDE = 64  # pixels of the long side at which shifts are looked for
_THUMB = (24, 18)  # pixels at which a still camera is told: sensor noise averages away
_BLUR = 3  # pixels: sensor noise would hide the movement of a faint background

Slopes = tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]


class SceneFrame:
    """A grey frame; what else is asked of it is computed once and kept.

    Args:
        grey: uint8 [h, w].
    """

    def __init__(self, grey: NDArray[np.uint8]) -> None:
        self.grey = grey

    @classmethod
    def of(cls, picture: Picture) -> SceneFrame:
        """The frame at which motion of a picture is found. Raises ClipError where the picture cannot be read."""
        return cls(picture.grey(SCENE_SIDE))

    @property
    def nbytes(self) -> int:
        """Memory that it takes when all was asked: the blurred and the halved frame, and small ones as float32."""
        return 9 * self.grey.nbytes // 4 + 18 * _SMALL_SIDE**2

    @cached_property
    def halved(self) -> NDArray[np.uint8]:
        """uint8 [h // 2, w // 2]."""
        return halved(self.grey)

    @cached_property
    def blurred(self) -> NDArray[np.uint8]:
        """uint8 [h, w]."""
        import cv2

        return cv2.blur(self.grey, (_BLUR, _BLUR)).astype(np.uint8, copy=False)

    @cached_property
    def small(self) -> NDArray[np.float32]:
        """The blurred frame with a long side of at most 64 pixels, float32."""
        import cv2

        height, width = self.grey.shape
        scale = min(1.0, _SMALL_SIDE / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        return cv2.resize(self.blurred, size, interpolation=cv2.INTER_AREA).astype(np.float32)

    @cached_property
    def levels(self) -> tuple[NDArray[np.float32], ...]:
        """The small frame, from coarse to fine."""
        import cv2

        size = (self.small.shape[1] // 2, self.small.shape[0] // 2)
        coarse = cv2.resize(self.small, size, interpolation=cv2.INTER_AREA)
        return coarse.astype(np.float32, copy=False), self.small

    @cached_property
    def thumb(self) -> NDArray[np.float32]:
        """Tiny, float32 [18, 24]."""
        import cv2

        return cv2.resize(self.small, _THUMB, interpolation=cv2.INTER_AREA).astype(np.float32, copy=False)

    @cached_property
    def slopes(self) -> Slopes:
        """Change per pixel of each level, downwards and across."""
        pairs = [np.gradient(level) for level in self.levels]
        return tuple((np.asarray(down), np.asarray(across)) for down, across in pairs)


def halved(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [h, w] -> [h // 2, w // 2]."""
    import cv2

    height, width = grey.shape
    return cv2.resize(grey, (width // 2, height // 2), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
