"""A clip recorded from a file or a camera, without the still ends that somebody needs to walk into place."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.clips.limits import check_bytes
from m2df_runtime.clips.opening import open_source
from m2df_runtime.clips.source import DEFAULT_FPS, ArrayPicture, frame_rate
from m2df_runtime.errors import ClipError, InputError
from m2df_runtime.pixels.scene_frame import SCENE_SIDE
from m2df_runtime.sinks.video import write_video
from m2df_runtime.stream.frames import MotionWatch
from m2df_runtime.stream.sources.addresses import device_number, is_address, masked
from m2df_runtime.stream.sources.device import DeviceFrames
from m2df_runtime.stream.sources.live import LiveFrames, SourceLost
from m2df_runtime.stream.sources.live_times import LiveTimes
from m2df_runtime.stream.sources.network import NetworkFrames

CAMERA_SECONDS = 3.0  # where nothing else is said
_KEPT_STILL = 0.3  # seconds before the first movement and after the last, which are part of an action
_NOTICED = 0.3  # seconds after which MotionWatch notices at the latest that something moves, or moves no more

Timed = tuple[float, NDArray[np.uint8]]


def record(source: Path | str, target: Path, *, seconds: float | None = None, trim: bool = True) -> float:
    """Write a clip of what a file or a camera shows.

    Args:
        source: A path, a camera's address, or its number on this machine.
        target: The MP4 to write.
        seconds: How long to look; None for all of a file, and for 3 s of a camera.
        trim: Cut off the ends in which nothing moves.

    Returns:
        Seconds of the clip.

    Raises:
        ClipError: The source cannot be read, or takes too much memory.
        InputError: An address of another kind than cameras have, or nothing moves.
        OSError: The target cannot be written.
    """
    name = masked(os.fspath(source))
    return keep(name, _held(source, name, seconds), target, trim=trim)


def keep(name: str, frames: list[Timed], target: Path, *, trim: bool) -> float:
    """Write a clip of frames that are held already.

    Args:
        name: What messages call them.
        frames: Rising seconds and frames of one size, at least one.
        target: The MP4 to write.
        trim: Cut off the ends in which nothing moves.

    Returns:
        Seconds of the clip.

    Raises:
        InputError: Nothing moves.
        OSError: The target cannot be written.
    """
    if trim:
        frames = _moving(name, frames)
    write_video(target, frames, frame_rate([time for time, _ in frames], DEFAULT_FPS))
    return frames[-1][0] - frames[0][0]


def _held(source: Path | str, name: str, seconds: float | None) -> list[Timed]:
    """The frames of a source, at least one."""
    text, camera = os.fspath(source), _camera(source)
    if camera:
        last, timed = CAMERA_SECONDS if seconds is None else seconds, _of_camera(camera)
    else:
        last, timed = np.inf if seconds is None else seconds, _of_file(text)
    held: list[Timed] = []
    with closing(timed):
        for at, frame in timed:
            if held and at > last:
                break
            check_bytes(name, len(held) + 1, frame.shape[1], frame.shape[0])
            held.append((at, frame))
    return held


def _camera(source: Path | str) -> LiveFrames | None:
    text = os.fspath(source)
    if is_address(text):
        return NetworkFrames(text)
    number = None if os.path.exists(text) else device_number(text)
    return None if number is None else DeviceFrames(number)


def _of_file(path: str) -> Generator[Timed]:
    clip = open_source(path)
    pictures = clip.pictures(np.arange(clip.n_frames))
    for at, picture in zip(clip.times, pictures, strict=True):
        yield float(at), picture.rgb()


def _of_camera(camera: LiveFrames) -> Generator[Timed]:
    """Frames from the first on, until the camera gives no more. Raises ClipError where it gives none."""
    times, began, first = LiveTimes(), time.monotonic(), None
    times.connected()
    try:
        with camera.connected() as frames:
            for shown in frames:
                at = times.place(shown.stamp, time.monotonic() - began)
                if at is not None:
                    first = at if first is None else first
                    yield at - first, shown.picture.rgb()
    except SourceLost as error:
        if first is None:
            raise ClipError(camera.name, f"{error.cause}: {error.detail}", "check the camera and its address") from None


def _moving(name: str, frames: list[Timed]) -> list[Timed]:
    """Frames from shortly before the first movement to shortly after the last."""
    watch = MotionWatch()
    times = [time for time, frame in frames if watch.moved(time, ArrayPicture(frame).grey(SCENE_SIDE))]
    if not times:
        raise InputError(f"{name}: nothing moves in it", "--no-trim records it all the same")
    begin, end = times[0] - _NOTICED - _KEPT_STILL, times[-1] - _NOTICED + _KEPT_STILL
    return [(time, frame) for time, frame in frames if begin <= time <= end]
