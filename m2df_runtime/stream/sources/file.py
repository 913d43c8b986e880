"""A clip or recording that is a file, or anything else whose frames can be read by index."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from m2df_runtime.clips.opening import open_source
from m2df_runtime.clips.source import FrameSource, Picture
from m2df_runtime.stream.sources.timed import TimedFrames


class FileFrames(TimedFrames):
    """All frames of a clip in order.

    Args:
        clip: A path (video file, frame folder, pattern or animated picture), or a `FrameSource`.

    Raises:
        ClipError: It cannot be opened.
    """

    any_thread = True

    def __init__(self, clip: Path | str | FrameSource) -> None:
        self._source = clip if isinstance(clip, FrameSource) else open_source(clip)
        self.name = self._source.name

    def frames(self) -> Iterator[tuple[float, Picture]]:
        """See `TimedFrames.frames`."""
        for index, picture in enumerate(self._source.pictures(np.arange(self._source.n_frames))):
            yield float(self._source.times[index]), picture
