"""How a path becomes a clip."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from m2df_runtime.clips.picture_files import UnknownPicture
from m2df_runtime.clips.pictures import (
    ANIMATED_SUFFIXES,
    IMAGE_SUFFIXES,
    AnimatedImage,
    FrameFolder,
    is_pattern,
    is_picture,
    is_video,
)
from m2df_runtime.clips.source import FrameSource
from m2df_runtime.clips.video_file import VideoFile
from m2df_runtime.errors import ClipError
from m2df_runtime.regular_files import irregular


def open_source(path: Path | str) -> FrameSource:
    """Opens a clip: a video file, a folder of frames, a pattern like `frame_%04d.png`, or an animated picture.

    Raises:
        ClipError: The clip is missing, empty, no file, damaged beyond use, or holds no moving picture.
    """
    path = Path(path)
    try:
        info = os.stat(path)
        if stat.S_ISDIR(info.st_mode):
            return FrameFolder.from_folder(path)
        kind = irregular(info.st_mode)
        if kind:
            raise ClipError(path, f"{kind}, not a file", "save the clip to a file and name that")
        if info.st_size == 0:
            raise ClipError(path, "the file is empty", "copy or record it again")
        if path.suffix.lower() in IMAGE_SUFFIXES | ANIMATED_SUFFIXES and not is_video(path):
            return _picture(path)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a zero byte in the name
        if is_pattern(path):
            return FrameFolder.from_pattern(path)
        raise ClipError(path, "no such file", "check the path") from error
    except OSError as error:
        raise ClipError(path, f"cannot be opened: {error.strerror}") from error
    return VideoFile(path)


def _picture(path: Path) -> FrameSource:
    """A picture file, or what FFmpeg finds in one that is no picture."""
    try:
        return AnimatedImage(path)
    except UnknownPicture as unknown:
        if is_picture(path):  # a damaged one; FFmpeg would say more of it
            raise
        try:
            return VideoFile(path)
        except ClipError:
            raise unknown from None
