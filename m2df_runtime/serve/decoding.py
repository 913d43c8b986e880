"""The process in which uploads are decoded: it knows no model, no token and no support, and may be killed at any time.

It is asked by JSON, and answers by JSON and plain bytes: nothing that it says is executed.
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m2df_runtime.clips.opening import open_source
from m2df_runtime.clips.source import fitted, reduced
from m2df_runtime.errors import ClipError, InputError, first_line
from m2df_runtime.match.reading import read_clip
from m2df_runtime.pixels.spec import ClipSpec
from m2df_runtime.serve.archive import unpack
from m2df_runtime.serve.problems import Refused
from m2df_runtime.teaching.record import Timed, keep

_SIDE = 640  # pixels of what is kept of a recording: a minute of it in memory is a gigabyte
_MOST_PIXELS = 1 << 24  # of one frame from a browser; 4K has half of them


def jpeg_frame(data: bytes) -> NDArray[np.uint8]:
    """A picture from a browser, uint8 [h, w, 3] with a long side of at most 640 pixels.

    Raises:
        InputError: It is no JPEG, is damaged, or too large.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as picture:
            if picture.width * picture.height > _MOST_PIXELS:
                raise InputError(f"a frame has {picture.width}x{picture.height} pixels", "send smaller frames")
            picture.draft("RGB", (_SIDE, _SIDE))  # decodes at half or a quarter of the size where that is enough
            return reduced(np.asarray(picture.convert("RGB")), _SIDE)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"a frame is no JPEG picture: {first_line(error)}", "send frames as JPEG") from None


def _read(job: dict[str, Any]) -> tuple[dict[str, Any], list[NDArray[np.uint8]]]:
    """A clip as a model sees it."""
    source = open_source(job["path"])
    if source.duration > job["seconds"]:
        raise _too_long(source.duration, job["seconds"])
    look = ClipSpec.model_validate(job["look"]) if job["look"] else None
    read = read_clip(source, ClipSpec.model_validate(job["spec"]), look=look)
    arrays = [read.pixels] if read.frames is None else [read.pixels, read.frames]
    return {
        "decode": read.decode,
        "preprocess": read.preprocess,
        "seconds": read.seconds,
        "single": read.single,
    }, arrays


def _keep(job: dict[str, Any]) -> tuple[dict[str, Any], list[NDArray[np.uint8]]]:
    """Clips made of a file, or of frames and their times."""
    if job["frames"]:
        frames = _of_pictures(job["frames"], job["times"], job["seconds"])
    else:
        frames = _of_file(job["path"], job["seconds"])
    cut = job["cut"] or np.inf
    pieces: list[list[Timed]] = []
    for time, frame in frames:
        if not pieces or time - pieces[-1][0][0] >= cut - 1e-6:
            pieces.append([])
        pieces[-1].append((time, frame))
    if len(pieces) > 1 and pieces[-1][-1][0] - pieces[-1][0][0] < cut / 2:
        rest = pieces.pop()
        pieces[-1] += rest
    files = []
    for number, piece in enumerate(pieces, 1):
        target = Path(job["target"], f"{job['stem']}{f'-{number}' if len(pieces) > 1 else ''}.mp4")
        try:
            keep("the recording", piece, target, trim=job["trim"])
        except InputError as error:  # its hint is of the command line
            raise InputError(error.message, "move, or send trim=false to keep it all the same") from None
        files.append(target.name)
    return {"files": files}, []


def _too_long(seconds: float, most: float) -> Refused:
    return Refused(413, "too_long", f"it lasts {seconds:.0f} s", f"a clip may last {most:g} s; cut it")


def _of_pictures(paths: list[str], times: list[float], seconds: float) -> list[Timed]:
    if times[-1] > seconds:
        raise _too_long(times[-1], seconds)
    frames: list[Timed] = []
    for path, time in zip(paths, times, strict=True):
        frame = jpeg_frame(Path(path).read_bytes())
        size = frames[0][1].shape[1::-1] if frames else frame.shape[1::-1]
        frames.append((time, fitted(frame, (size[0], size[1]))))
    return frames


def _of_file(path: str, seconds: float) -> list[Timed]:
    source = open_source(path)
    if source.duration > seconds:
        raise _too_long(source.duration, seconds)
    pictures = source.pictures(np.arange(source.n_frames))
    return [(float(time), reduced(picture.rgb(), _SIDE)) for time, picture in zip(source.times, pictures, strict=True)]


def _unpack(job: dict[str, Any]) -> tuple[dict[str, Any], list[NDArray[np.uint8]]]:
    """The clips of a zip."""
    folder = Path(job["target"])
    clips = unpack(Path(job["path"]), folder, job["most"])
    return {"files": [clip.relative_to(folder).as_posix() for clip in clips]}, []


_DOES: dict[str, Callable[[dict[str, Any]], tuple[dict[str, Any], list[NDArray[np.uint8]]]]] = {
    "read": _read,
    "keep": _keep,
    "unpack": _unpack,
}


def _answer(asked: dict[str, Any]) -> tuple[dict[str, Any], list[NDArray[np.uint8]]]:
    try:
        return _DOES[asked["do"]](asked)
    except ClipError as error:
        return {"error": "clip", "reason": error.reason, "hint": error.hint}, []
    except InputError as error:
        return {"error": "input", "reason": error.message, "hint": error.hint}, []
    except Refused as error:
        return {"error": error.code, "status": error.status, "reason": error.message, "hint": error.hint}, []
    except OSError as error:
        return {"error": "storage", "errno": error.errno, "reason": error.strerror, "hint": None}, []
    except MemoryError:
        return {"error": "memory", "reason": "it takes too much memory", "hint": None}, []


def main() -> None:
    """Answer what comes over the connection whose number stands on the command line, until that is closed."""
    handle, memory = map(int, sys.argv[1:3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal; the server closes the connection
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    cv2.setNumThreads(1)
    connection = Connection(handle)
    connection.send_bytes(b"{}")
    while True:
        try:
            asked = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        signal.alarm(asked["alarm"])  # if the server that would kill it is gone
        said, arrays = _answer(asked)
        signal.alarm(0)
        said["shapes"] = [array.shape for array in arrays]
        try:
            connection.send_bytes(json.dumps(said).encode())
            for array in arrays:
                connection.send_bytes(np.ascontiguousarray(array).tobytes())
        except OSError:
            return
        if said.get("error") == "memory":
            os._exit(0)  # what it could not free is nobody's


if __name__ == "__main__":
    main()
