"""Writing frames as a video file that every player opens: H.264 in MP4, in the frames' own times."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.files import atomic_file

if TYPE_CHECKING:
    from av.video.stream import VideoStream

_TICKS = 90_000  # of a second: whole numbers for the frame times of films, television and cameras
# The first that this FFmpeg can write. With this preset x264 takes half of the time.
_CODECS = {"libx264": {"preset": "veryfast"}, "libopenh264": {}, "mpeg4": {"qscale": "5"}}


def write_video(path: Path, frames: Iterable[tuple[float, NDArray[np.uint8]]], fps: float) -> int:
    """Write frames, atomically; without any, nothing is written.

    Args:
        path: The file, MP4 whatever its name.
        frames: Seconds that rise, and frames of one size, uint8 [H, W, 3] RGB. A last odd row or column is left out.
        fps: About how many there are in a second.

    Returns:
        How many were written.

    Raises:
        OSError: The place cannot be written.
    """
    import av

    codec = next(name for name in _CODECS if name in av.codecs_available)
    ahead = iter(frames)
    begin = next(ahead, None)
    if begin is None:
        return 0
    first = begin[0]
    height, width = (max(side - side % 2, 2) for side in begin[1].shape[:2])
    with atomic_file(path) as file, av.open(cast(IO[bytes], file), "w", format="mp4") as container:
        added = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=_CODECS[codec])
        stream = cast("VideoStream", added)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, _TICKS)
        stream.codec_context.thread_count = 1
        count, last = 0, -1
        for time, picture in itertools.chain([begin], ahead):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
            last = frame.pts = max(round((time - first) * _TICKS), last + 1)
            frame.time_base = Fraction(1, _TICKS)
            container.mux(stream.encode(frame))
            count += 1
        container.mux(stream.encode(None))
    return count
