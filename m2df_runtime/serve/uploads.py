"""What clients send, as files in a folder of the server's own: nothing of a client's becomes a path."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from m2df_runtime.clips.listing import VIDEO_SUFFIXES
from m2df_runtime.clips.pictures import ANIMATED_SUFFIXES
from m2df_runtime.errors import printable, shortened
from m2df_runtime.serve.problems import Refused

_UNFIT = re.compile(r"[^\w-]+")
_LONGEST = 60  # characters of a name
_MOST_FRAMES = 2000
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Received:
    """A clip that a client sent.

    Attributes:
        name: What it is called: the client's name for it, as far as that is one.
        said: What messages call it: the client's name for it.
        path: The file; None of frames.
        frames: JPEG files; none of a file.
        times: Seconds of each.
    """

    name: str
    said: str
    path: Path | None
    frames: tuple[Path, ...] = ()
    times: tuple[float, ...] = ()


def safe_name(name: str | None, other: str) -> str:
    """A client's name of a file without whatever could be a path: letters, numbers, `-` and `_`, and a known suffix.

    Args:
        name: As it came.
        other: The stem where nothing is left of it.
    """
    base = _base(name)
    stem, dot, suffix = base.rpartition(".")
    known = f".{suffix.lower()}" if dot else ""
    kept = _UNFIT.sub("_", stem if dot else base).strip("_-")[:_LONGEST]
    return f"{kept or other}{known if known in VIDEO_SUFFIXES | ANIMATED_SUFFIXES else '.mp4'}"


def _base(name: str | None) -> str:
    return re.split(r"[/\\]", name or "")[-1]


def received_file(file: IO[bytes], name: str | None, folder: Path, number: int = 1) -> Received:
    """Write one uploaded file into a folder.

    Raises:
        Refused: It is empty.
        OSError: The disk is full.
    """
    called = safe_name(name, f"clip-{number}")
    said = shortened(printable(_base(name)), _LONGEST) or called
    place = folder / f"{number}"
    place.mkdir()
    path = place / called
    with path.open("xb") as target:
        shutil.copyfileobj(file, target, _BLOCK)
    if not path.stat().st_size:
        raise Refused(422, "clip", f"{said}: the file is empty", "record it again")
    return Received(called, said, path)


def received_frames(files: Sequence[IO[bytes]], times: str | None, folder: Path, stem: str) -> Received:
    """Write the frames of a browser's recording into a folder.

    Args:
        files: JPEG pictures in their order.
        times: A JSON list of as many rising seconds.
        folder: Where.
        stem: What the recording is to be called.

    Raises:
        Refused: The times do not fit.
        OSError: The disk is full.
    """
    seconds = checked_times(times, len(files))
    place = folder / "frames"
    place.mkdir()
    paths = []
    for number, file in enumerate(files):
        path = place / f"{number:05d}.jpg"
        with path.open("xb") as target:
            shutil.copyfileobj(file, target, _BLOCK)
        paths.append(path)
    return Received(f"{stem}.mp4", f"{stem}.mp4", None, tuple(paths), seconds)


def checked_times(text: str | None, count: int) -> tuple[float, ...]:
    """Rising seconds, from 0.

    Raises:
        Refused: They are none, or not as many as there are frames.
    """
    hint = "send as many rising seconds as frames, such as [0, 0.066, 0.133]"
    if count > _MOST_FRAMES:
        raise Refused(413, "too_large", f"{count} frames are more than {_MOST_FRAMES}", "send fewer, or a video")
    try:
        found = json.loads(text or "")
    except (ValueError, RecursionError):
        raise Refused(422, "input", "times is no JSON list of seconds", hint) from None
    numbers = isinstance(found, list) and all(type(one) in (int, float) and abs(one) < 1e9 for one in found)
    if not numbers or len(found) != count or not all(map(math.isfinite, found)):
        raise Refused(422, "input", f"times is no list of {count} seconds", hint)
    if any(later <= earlier for earlier, later in itertools.pairwise(found)):
        raise Refused(422, "input", "times do not rise", hint)
    return tuple(float(one - found[0]) for one in found)
