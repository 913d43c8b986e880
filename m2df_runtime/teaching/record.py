"""A clip recorded from a file or a network stream, without the still ends that somebody needs to walk into place."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.clips.limits import check_bytes, check_pixels
from m2df_runtime.clips.opening import open_source
from m2df_runtime.clips.source import ArrayPicture, fitted
from m2df_runtime.errors import ClipError, InputError, first_line
from m2df_runtime.pixels.load import SCENE_SIDE
from m2df_runtime.sinks.video import write_video
from m2df_runtime.stream.frames import MotionWatch

if TYPE_CHECKING:
    from av.container import InputContainer

STREAM_SECONDS = 3.0  # of a stream, where nothing else is said
_KEPT_STILL = 0.3  # seconds before the first movement and after the last, which are part of an action
_NOTICED = 0.3  # seconds after which MotionWatch notices at the latest that something moves, or moves no more
_PATIENCE = 10.0  # seconds without an answer from the network
# No "file": what a server sends must not make FFmpeg read files of this machine.
_PROTOCOLS = "http,https,tcp,tls,udp,rtp,rtsp,rtmp,srtp,hls,crypto,httpproxy"
_USER = re.compile(r"//[^/@]*@")

Timed = tuple[float, NDArray[np.uint8]]


def record(source: Path | str, target: Path, *, seconds: float | None = None, trim: bool = True) -> float:
    """Write a clip of what a file or stream shows.

    Args:
        source: A path, or a URL that FFmpeg opens.
        target: The MP4 to write.
        seconds: How long to look; None for all of a file, and for 3 s of a stream.
        trim: Cut off the ends in which nothing moves.

    Returns:
        Seconds of the clip.

    Raises:
        ClipError: The source cannot be read, or takes too much memory.
        InputError: A camera, or nothing moves.
        OSError: The target cannot be written.
    """
    frames = _held(source, seconds)
    if trim:
        frames = _moving(_shown(source), frames)
    span = frames[-1][0] - frames[0][0]
    fps = (len(frames) - 1) / span if span > 0 else 25.0
    write_video(target, frames, fps)
    return span


def _held(source: Path | str, seconds: float | None) -> list[Timed]:
    """The frames of a source, at least one."""
    name, text = _shown(source), os.fspath(source)
    if text.isdecimal() and not os.path.exists(text):
        raise InputError(f"camera {text}: cameras are not in this version", "record from a file or a URL")
    if text.startswith("file:"):
        raise InputError(f"{name}: a URL of a file", "name the file itself")
    if "://" in text:
        last = STREAM_SECONDS if seconds is None else seconds
        timed = _of_stream(text, name)
    else:
        last = np.inf if seconds is None else seconds
        timed = _of_file(text)
    held: list[Timed] = []
    for time, frame in timed:
        if held and time > last:
            break
        check_bytes(name, len(held) + 1, frame.shape[1], frame.shape[0])
        held.append((time, frame if not held else fitted(frame, held[0][1].shape[1::-1])))
    if not held:
        raise ClipError(name, "no frame can be decoded")
    return held


def _of_file(path: str) -> Iterator[Timed]:
    clip = open_source(path)
    pictures = clip.pictures(np.arange(clip.n_frames))
    return ((float(time), picture.rgb()) for time, picture in zip(clip.times, pictures, strict=True))


def _of_stream(url: str, name: str) -> Iterator[Timed]:
    import av

    try:
        with av.open(url, timeout=_PATIENCE, options={"protocol_whitelist": _PROTOCOLS}) as container:
            yield from _decoded(container, name)
    except (av.error.FFmpegError, OSError) as error:
        reason = _USER.sub("//", (error.strerror if isinstance(error, OSError) else None) or first_line(error))
        raise ClipError(name, reason, "check the address, and whether it is reachable") from None


def _decoded(container: InputContainer, name: str) -> Iterator[Timed]:
    if not container.streams.video:
        raise ClipError(name, "no pictures in it, only sound or text")
    stream = container.streams.video[0]
    check_pixels(name, stream.codec_context.width, stream.codec_context.height)
    first = None
    for number, frame in enumerate(container.decode(stream)):
        time = number / 25 if frame.time is None else frame.time
        first = time if first is None else first
        yield time - first, frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)


def _moving(name: str, frames: list[Timed]) -> list[Timed]:
    """Frames from shortly before the first movement to shortly after the last."""
    watch = MotionWatch()
    times = [time for time, frame in frames if watch.moved(time, ArrayPicture(frame).grey(SCENE_SIDE))]
    if not times:
        raise InputError(f"{name}: nothing moves in it", "--no-trim records it all the same")
    begin, end = times[0] - _NOTICED - _KEPT_STILL, times[-1] - _NOTICED + _KEPT_STILL
    return [(time, frame) for time, frame in frames if begin <= time <= end]


def _shown(source: Path | str) -> str:
    """What messages call a source: passwords are nobody's business."""
    return _USER.sub("//", os.fspath(source))
