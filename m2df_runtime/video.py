"""What a clip is to the rest of m2df, and how a path becomes one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.errors import InputError
from m2df_runtime.image_sequences import (
    ANIMATED_SUFFIXES,
    IMAGE_SUFFIXES,
    AnimatedImage,
    FrameFolder,
    checked_indices,
    is_pattern,
)
from m2df_runtime.video_file import VideoFile

_DEFAULT_FPS = 25.0


class FrameSource(Protocol):
    """A clip whose frames can be read by index.

    Attributes:
        n_frames: Frames in the clip, at least 1.
        times: Presentation times in seconds from the first frame, float64 [n], ascending.
        fps: Mean frames per second.
    """

    n_frames: int
    times: NDArray[np.float64]
    fps: float

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Frames in the order asked (any order, repeats allowed), uint8 [M, H, W, 3] RGB."""
        ...


class ArraySource:
    """Frames that are in memory already.

    Args:
        frames: uint8 [n, H, W, 3] RGB.
        fps: Frames per second.
    """

    def __init__(self, frames: NDArray[np.uint8], fps: float = _DEFAULT_FPS) -> None:
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or frames.size == 0:
            raise InputError(f"frames must be uint8 [n, H, W, 3] with n >= 1, not {frames.dtype} {list(frames.shape)}")
        if fps <= 0:
            raise InputError(f"frames per second must be above 0, not {fps}")
        self._frames = frames
        self.n_frames = len(frames)
        self.fps = float(fps)
        self.times: NDArray[np.float64] = np.arange(self.n_frames) / self.fps

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Frames in the order asked, uint8 [M, H, W, 3]."""
        return self._frames[checked_indices(indices, self.n_frames)]


def open_source(path: Path | str) -> FrameSource:
    """Opens a clip: a video file, a folder of frames, a pattern like `frame_%04d.png`, or an animated picture.

    Raises:
        InputError: The clip is missing, empty, damaged beyond use, or holds no moving picture.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return FrameFolder.from_folder(path)
        if not path.exists():
            if is_pattern(path):
                return FrameFolder.from_pattern(path)
            raise InputError(f"{path}: no such file", hint="check the path")
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty", hint="copy or record it again")
    except OSError as error:
        raise InputError(f"{path}: cannot be opened: {error.strerror}") from error
    if path.suffix.lower() in IMAGE_SUFFIXES | ANIMATED_SUFFIXES:
        return AnimatedImage(path)
    return VideoFile(path)
