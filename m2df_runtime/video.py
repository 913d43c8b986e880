"""How a path becomes a clip."""

from __future__ import annotations

from pathlib import Path

from m2df_runtime.errors import InputError
from m2df_runtime.image_sequences import (
    ANIMATED_SUFFIXES,
    IMAGE_SUFFIXES,
    AnimatedImage,
    FrameFolder,
    is_pattern,
)
from m2df_runtime.source import FrameSource
from m2df_runtime.video_file import VideoFile


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
