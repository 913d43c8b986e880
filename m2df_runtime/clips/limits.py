"""How large a clip may be, asked by every reader before it allocates anything.

A file of 66 kB can announce pictures of gigabytes. What is announced is compared with these bounds first; one line
names the file and the bound.
"""

from __future__ import annotations

import os
from pathlib import Path

from m2df_runtime.errors import ClipError, InputError

MAX_PIXELS_VARIABLE = "M2DF_MAX_PIXELS"
# 8192 x 8192: 8K video has 33 million pixels, photos of 48 and 64 megapixels go through. Decoding such a picture
# takes about 1 GB (Pillow holds 4 bytes a pixel, up to four times while an animation is put together).
MAX_PIXELS = 1 << 26
MAX_BYTES = 2 << 30  # of frames held at once: 86 pictures of 4K, 21 of 8K
# Frames of an animated picture follow from the ones before, so that the last one costs them all: at 150 million
# pixels a second these are two minutes. 8,000 frames of full HD.
MAX_ANIMATION_PIXELS = 1 << 34
_LEAST_FRAME = 1 << 14  # pixels that a frame counts for at least: a million frames of one pixel


def max_pixels() -> int:
    """The most pixels one picture may have: `$M2DF_MAX_PIXELS`, by default `MAX_PIXELS`.

    Raises:
        InputError: The variable is not a whole number above 0.
    """
    text = os.environ.get(MAX_PIXELS_VARIABLE, "").strip()
    if not text:
        return MAX_PIXELS
    if not (text.isascii() and text.isdigit() and len(text) < 19 and int(text)):
        raise InputError(f"{MAX_PIXELS_VARIABLE}={text[:40]!r} is not a number of pixels", "for example 100000000")
    return int(text)


def check_pixels(clip: Path | str, width: int, height: int) -> None:
    """Refuse pictures that are too large.

    Raises:
        ClipError: A picture of this size has more pixels than `max_pixels()`.
    """
    limit = max_pixels()
    if width * height > limit:
        raise ClipError(
            clip,
            f"{width}x{height} pixels is more than the limit of {limit}",
            f"{MAX_PIXELS_VARIABLE}={width * height} in the environment raises it",
        )


def check_bytes(clip: Path | str, frames: int, width: int, height: int) -> None:
    """Refuse to hold so many RGB frames at once.

    Raises:
        ClipError: Together they take more than `MAX_BYTES`.
    """
    size = frames * width * height * 3
    if size > MAX_BYTES:
        raise ClipError(
            clip,
            f"{frames} frames of {width}x{height} pixels take {size} bytes, more than the limit of {MAX_BYTES}",
            "read fewer at once, or scale the clip down",
        )


def check_animation(clip: Path | str, frames: int, width: int, height: int) -> None:
    """Refuse an animated picture whose frames are too many for their size.

    Raises:
        ClipError: Decoding all would make more than `MAX_ANIMATION_PIXELS`.
    """
    if frames * max(width * height, _LEAST_FRAME) > MAX_ANIMATION_PIXELS:
        raise ClipError(
            clip,
            f"more than {frames - 1} frames of {width}x{height} pixels are more than an animated picture may hold",
            "make a video of it",
        )
