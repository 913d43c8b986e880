"""Video files that tests make, and a second way to read them."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray


def moving_square(count: int, width: int = 64, height: int = 48) -> NDArray[np.uint8]:
    """Frames that differ from each other: a bright square walks over a gradient."""
    frames = np.empty((count, height, width, 3), dtype=np.uint8)
    ramp = np.linspace(30, 120, width).astype(np.uint8)
    for index in range(count):
        frames[index] = ramp[None, :, None]
        left = index * (width - 12) // max(count - 1, 1)
        frames[index, 8:24, left : left + 12] = [230, 220, 40]
    return frames


def write_video(
    path: Path,
    frames: NDArray[np.uint8],
    codec: str = "libx264",
    pixels: str = "yuv420p",
    stamps: Sequence[int] | None = None,
    rotation: int = 0,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Encodes frames; `stamps` are presentation times in milliseconds."""
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec} encoder")
    with av.open(str(path), "w", options=container_options or {}) as out:
        stream = out.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], pixels
        if rotation:
            if not hasattr(stream, "set_display_rotation"):
                pytest.skip("this PyAV cannot write a display matrix")
            stream.set_display_rotation(rotation)
        if stamps is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for index, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24").reformat(format=pixels)
            if stamps is not None:
                frame.pts, frame.time_base = stamps[index], Fraction(1, 1000)
            else:
                frame.pts, frame.time_base = index, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def decode_all(path: Path) -> NDArray[np.uint8]:
    """Independent full decode, in order of presentation."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def numbered(count: int, width: int = 160, height: int = 96) -> NDArray[np.uint8]:
    """Frames that carry their number in the top 16 rows, over a moving pattern; `number_of` reads it."""
    rng = np.random.default_rng(7)
    pattern = rng.integers(40, 216, (height // 8, width // 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    frames = np.stack([np.roll(pattern, 3 * index, axis=1) for index in range(count)])
    frames[:, :16] = 0
    for bit in range(10):
        on = (np.arange(count) >> bit & 1).astype(bool)
        frames[on, :16, 16 * bit : 16 * bit + 16] = 255
    return frames


def number_of(frame: NDArray[np.uint8]) -> int:
    """The number that a frame of `numbered` carries."""
    return sum(int(frame[4:12, 16 * bit + 4 : 16 * bit + 12].mean() > 127) << bit for bit in range(10))
