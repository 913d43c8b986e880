"""Frames of animated GIF, PNG and WebP files by their headers: how many there are, for how long, and how far they go.

Pillow tells durations only by decoding every frame, which a small file can make cost minutes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from m2df_runtime.clips.limits import MAX_BYTES, check_animation, check_pixels
from m2df_runtime.errors import ClipError

STILL_SECONDS = 0.1  # browsers show a frame of duration 0 for 100 ms
_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_JUNK = 1 << 16  # bytes between the blocks of a GIF


@dataclass(frozen=True)
class Animation:
    """What the headers of an animated picture say.

    Attributes:
        seconds: Duration of every whole frame.
        cut: Whether the file ends within a frame.
        first: Place of the first frame for Pillow, which counts a PNG's picture for old readers as one.
        size: Bytes up to the end of the last whole frame.
    """

    seconds: list[float]
    cut: bool = False
    first: int = 0
    size: int = 0


def scan(file: BinaryIO, path: Path, most: int | None = None) -> Animation | None:
    """The frames of an animated GIF, PNG or WebP; None for a still and for other files. Moves the file's position.

    Args:
        file: The file.
        path: What errors call it.
        most: Look no further than so many frames.

    Raises:
        ClipError: The picture is larger or has more frames than the limits allow.
    """
    head = file.read(12)
    file.seek(0)
    scanner: Callable[[BinaryIO, Path, int | None], Animation] | None = None
    if head[:6] in (b"GIF87a", b"GIF89a"):
        scanner = _gif
    elif head[:8] == _PNG:
        scanner = _png
    elif head[:4] == b"RIFF" and head[8:] == b"WEBP":
        scanner = _webp
    try:
        found = scanner(file, path, most) if scanner else None
    except struct.error:  # the file ends within a header
        return None
    return found if found and found.seconds and (len(found.seconds) > 1 or found.first or found.cut) else None


def _gif(file: BinaryIO, path: Path, most: int | None) -> Animation:
    width, height, flags = struct.unpack("<6xHHB2x", file.read(13))
    _skip_colours(file, flags)
    seconds: list[float] = []
    delay = junk = 0
    while len(seconds) != most:
        mark = file.read(1)
        if mark in (b"", b";") or junk > _MOST_JUNK:
            return Animation(seconds, cut=mark not in (b"", b";"))
        if mark == b"!":
            control = file.read(1) == b"\xf9"
            first, whole = _blocks(file)
            if control and len(first) >= 3:
                delay = struct.unpack_from("<H", first, 1)[0]
        elif mark == b",":
            block = file.read(9)
            if len(block) < 9:
                return Animation(seconds, cut=True)
            left, top, across, down, flags = struct.unpack("<HHHHB", block)
            width, height = max(width, left + across), max(height, top + down)
            check_pixels(path, width, height)
            check_animation(path, len(seconds) + 1, width, height)
            _skip_colours(file, flags)
            file.read(1)  # size of the first codes
            _, whole = _blocks(file)
            if whole:
                seconds.append(delay / 100 if delay else STILL_SECONDS)
                delay = 0
        else:
            junk += 1
            continue
        if not whole:
            return Animation(seconds, cut=True)
    return Animation(seconds)


def _skip_colours(file: BinaryIO, flags: int) -> None:
    if flags & 0x80:
        file.read(3 << ((flags & 7) + 1))


def _blocks(file: BinaryIO) -> tuple[bytes, bool]:
    """The first of a GIF's data blocks, and whether they end before the file does."""
    first: bytes | None = None
    while True:
        size = file.read(1)
        if not size:
            return first or b"", False
        data = file.read(size[0])
        if len(data) < size[0]:
            return first or b"", False
        if not size[0]:
            return first or b"", True
        first = data if first is None else first


def _png(file: BinaryIO, path: Path, most: int | None) -> Animation:
    end = file.seek(0, 2)
    place = len(_PNG)
    width = height = promised = first = 0
    seconds: list[float] = []
    pending: float | None = None  # duration of the frame whose data follow
    while place + 12 <= end and len(seconds) != most:
        file.seek(place)
        length, kind = struct.unpack(">I4s", file.read(8))
        if place + 12 + length > end:
            break
        if kind == b"IHDR":
            width, height = struct.unpack(">II", file.read(8))
        elif kind == b"acTL":
            check_pixels(path, width, height)
            promised = struct.unpack(">I", file.read(4))[0]
        elif kind == b"IDAT" and not promised:
            return Animation([])
        elif kind == b"IDAT" and pending is None and not seconds:
            first = 1
        elif kind in (b"fcTL", b"IEND"):
            if pending is not None:
                seconds.append(pending)
                check_animation(path, len(seconds), width, height)
            if kind == b"IEND":
                return Animation(seconds[:promised], len(seconds) < promised, first)
            over, under = struct.unpack(">20xHH", file.read(24))
            pending = over / (under or 100) or STILL_SECONDS
        place += 12 + length
    return Animation(seconds[:promised], len(seconds) < promised, first)


def _webp(file: BinaryIO, path: Path, most: int | None) -> Animation:
    end = file.seek(0, 2)
    if end > MAX_BYTES:  # Pillow reads it whole
        raise ClipError(path, f"{end} bytes, a WebP file may have {MAX_BYTES}", "make a video of it")
    file.seek(4)
    cut = 8 + struct.unpack("<I", file.read(4))[0] > end
    width = height = 0
    seconds: list[float] = []
    place = whole = 12
    while place + 8 <= end and len(seconds) != most:
        file.seek(place)
        kind, length = struct.unpack("<4sI", file.read(8))
        if kind in (b"VP8 ", b"VP8L"):
            return Animation([])
        if kind == b"VP8X":
            block = file.read(10)
            width, height = (1 + int.from_bytes(block[at : at + 3], "little") for at in (4, 7))
        elif kind == b"ANMF" and place + 8 + length <= end:
            check_pixels(path, width, height)
            milliseconds = int.from_bytes(file.read(16)[12:15], "little")
            seconds.append(milliseconds / 1000 or STILL_SECONDS)
            check_animation(path, len(seconds), width, height)
            whole = place + 8 + length
        place += 8 + length + (length & 1)
    return Animation(seconds, cut, size=whole)
