"""Clips that are pictures: folders of frames, numbered patterns and animated GIF, WebP and PNG files.

Each class is a `FrameSource` (see `video.py`). Pillow decodes; alpha is dropped, so that a picture
gives the same pixels as a video of it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from m2df_runtime.errors import ClipError, InputError
from m2df_runtime.folder_entries import entries, named
from m2df_runtime.regular_files import open_regular
from m2df_runtime.source import ArrayPicture, FrameSource, Picture

_log = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
ANIMATED_SUFFIXES = frozenset({".apng", ".gif", ".png", ".webp"})
_FRAME_FOLDER_FPS = 25.0  # pictures carry no clock; 25 is the rate of the datasets usually unpacked to frames
_STILL_SECONDS = 0.1  # browsers show a frame of duration 0 for 100 ms
_NUMBER = re.compile(r"\d+")
_WORD = re.compile(r"[^\W\d_]+")
# What the pictures of a clip are called where others of the same frames lie beside them, and what the others are.
_PICTURE_WORDS = frozenset({"color", "colour", "frame", "image", "img", "rgb"})
_OTHER_WORDS = frozenset(
    {"alpha", "depth", "disp", "disparity", "edge", "edges", "flow", "flowx", "flowy", "heatmap", "ir", "mask", "masks"}
    | {"normal", "optflow", "pose", "seg", "skeleton", "thermal", "thumb", "thumbnail", "u", "v", "warp", "x", "y"}
)
# How files of video begin, at which byte: those that are found under the name of a picture.
_VIDEO_HEADS = (
    (4, b"ftyp"),
    (4, b"moov"),
    (4, b"mdat"),
    (4, b"wide"),
    (0, b"\x1aE\xdf\xa3"),
    (8, b"AVI "),
    (0, b"OggS"),
    (0, b"FLV\x01"),
    (0, b"\x00\x00\x01\xba"),
    (0, b"\x00\x00\x01\xb3"),
    (0, b"0&\xb2u\x8ef\xcf\x11"),
)
_HEAD = 16
_PATTERN = re.compile(r"%(0\d+)?d")


def is_pattern(path: Path) -> bool:
    """Whether the name is a printf pattern such as `frame_%04d.png`."""
    return len(_PATTERN.findall(path.name)) == 1


def is_moving(path: Path) -> bool:
    """Whether a picture file holds more than one frame or is a video by another name; False where it is unreadable."""
    try:
        with open_regular(path) as file:
            head = file.read(_HEAD)
            if any(head[at : at + len(mark)] == mark for at, mark in _VIDEO_HEADS):
                return True
            file.seek(0)
            with Image.open(file) as image:
                return bool(getattr(image, "is_animated", False))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def folder_images(folder: Path) -> list[Path]:
    """The pictures directly in a folder in natural order; hidden files are left out. Raises OSError."""
    return [
        entry.path
        for entry in entries(folder)
        if entry.path.suffix.lower() in IMAGE_SUFFIXES and not entry.is_folder and entry.problem is None
    ]


def families(pictures: Sequence[Path]) -> list[list[Path]]:
    """Pictures whose names differ in their numbers only, or in the suffix where no number is there twice."""
    shapes: dict[str, list[Path]] = {}
    for picture in pictures:
        shapes.setdefault(_NUMBER.sub("#", picture.stem), []).append(picture)
    found: list[list[Path]] = []
    for family in shapes.values():
        suffixes: dict[str, list[Path]] = {}
        for picture in family:
            suffixes.setdefault(picture.suffix.lower(), []).append(picture)
        found += [family] if len({picture.stem for picture in family}) == len(family) else suffixes.values()
    return found


def frames_of(folder: Path) -> tuple[list[Path], str | None]:
    """The pictures that are a folder's clip, in natural order, and what others were left out, if any.

    Unpacked data sets keep optical flow beside the frames (`img_00001.jpg`, `flow_x_00001.jpg`), others masks or a
    cover: where most pictures belong to numbered families, one family is the clip. Raises OSError.
    """
    pictures = folder_images(folder)
    groups = families(pictures)
    numbered = [group for group in groups if len(group) > 1]
    if len(groups) < 2 or 2 * sum(map(len, numbered)) < len(pictures):  # names without numbers: all are the clip
        return pictures, None
    clip = max(numbered, key=lambda group: (_likeness(group[0]), len(group)))
    others = [f"{_shape(group)} ({len(group)})" for group in groups if group is not clip]
    return clip, f"reading the {len(clip)} pictures {_shape(clip)}; left out: {named(others)}"


def _likeness(picture: Path) -> int:
    """How much a name is that of a clip's own frames: 2, 1, or 0 for what is made from them."""
    words = set(_WORD.findall(picture.stem.casefold()))
    return 0 if words & _OTHER_WORDS else 2 if words & _PICTURE_WORDS else 1


def _shape(group: Sequence[Path]) -> str:
    return group[0].name if len(group) == 1 else _NUMBER.sub("#", group[0].stem) + group[0].suffix


class FrameFolder(FrameSource):
    """Frames stored one picture per file, in natural order of their names.

    Attributes:
        n_frames: Number of pictures.
        times: Presentation times in seconds, float64 [n], from `fps`.
        fps: Frames per second.
    """

    def __init__(self, files: Sequence[Path], fps: float = _FRAME_FOLDER_FPS) -> None:
        self.name = str(files[0].parent)
        self._files = list(files)
        self.n_frames = len(self._files)
        self.fps = float(fps)
        self.times: NDArray[np.float64] = np.arange(self.n_frames) / self.fps

    @classmethod
    def from_folder(cls, folder: Path, fps: float = _FRAME_FOLDER_FPS) -> FrameFolder:
        """All pictures of a folder. Raises InputError when it holds none."""
        try:
            files, left_out = frames_of(folder)
        except OSError as error:
            raise InputError(f"{folder}: cannot be listed: {error.strerror}") from error
        if left_out:
            _log.warning("%s: %s", folder, left_out)
        if not files:
            raise InputError(
                f"{folder}: a directory without images",
                hint="give a video file, or a folder of frames such as frame_0001.png",
            )
        return cls(files, fps)

    @classmethod
    def from_pattern(cls, pattern: Path, fps: float = _FRAME_FOLDER_FPS) -> FrameFolder:
        """The files that match a printf pattern, by number; numbers may start anywhere and have gaps."""
        field = _PATTERN.search(pattern.name)
        if field is None or not pattern.parent.is_dir():
            raise InputError(f"{pattern}: no such image sequence", hint="the folder of the pattern must exist")
        width = int(field.group(1) or 1)  # %04d: at least four digits
        name = re.compile(
            re.escape(pattern.name[: field.start()])
            + rf"(\d{{{width},}})"
            + re.escape(pattern.name[field.end() :])
            + r"\Z"
        )
        numbered = [(int(hit.group(1)), entry) for entry in pattern.parent.iterdir() if (hit := name.match(entry.name))]
        if not numbered:
            raise InputError(f"{pattern}: no file matches the pattern", hint="example: frames/frame_%04d.png")
        return cls([entry for _, entry in sorted(numbered)], fps)

    def pictures(self, indices: NDArray[np.int64]) -> Iterator[Picture]:
        """See `FrameSource.pictures`. Raises ClipError naming a bad picture."""
        shape: tuple[int, ...] | None = None
        for index in indices.tolist():
            with _opened(self._files[index]) as image:
                frame = _rgb(ImageOps.exif_transpose(image))
            shape = _one_shape(self._files[index], frame, shape)
            yield ArrayPicture(frame)


class AnimatedImage(FrameSource):
    """A picture file read as a clip: animated GIF, WebP or PNG, or one still frame.

    Attributes:
        n_frames: Frames that can be read.
        times: Presentation times in seconds, float64 [n], from the frames' own durations.
        fps: Mean frames per second.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        seconds: list[float] = []
        with _opened(path) as image:
            while True:
                try:
                    image.seek(len(seconds))
                    if image.format == "WEBP":
                        image.load()  # its durations are known only then
                except (EOFError, SyntaxError):
                    break
                except OSError:
                    if not seconds:
                        raise
                    break
                duration = image.info.get("duration")
                seconds.append(float(duration) / 1000.0 if duration else _STILL_SECONDS)
        if not seconds:
            raise InputError(f"{path}: holds no frames")
        self.n_frames = len(seconds)
        self.times: NDArray[np.float64] = np.concatenate([[0.0], np.cumsum(seconds)[:-1]])
        self.fps = self.n_frames / sum(seconds)

    def pictures(self, indices: NDArray[np.int64]) -> Iterator[Picture]:
        """See `FrameSource.pictures`. Raises ClipError on damaged data."""
        shape: tuple[int, ...] | None = None
        with _opened(self._path) as image:
            for index in indices.tolist():
                image.seek(index)
                frame = _rgb(image)
                shape = _one_shape(self._path, frame, shape)  # pages of a TIFF, previews in a JPEG
                yield ArrayPicture(frame)


def _one_shape(path: Path, frame: NDArray[np.uint8], before: tuple[int, ...] | None) -> tuple[int, ...]:
    if before is not None and frame.shape != before:
        raise ClipError(
            path,
            f"{frame.shape[1]}x{frame.shape[0]} pixels where the frames before it have {before[1]}x{before[0]}",
            "all frames of a clip must have one size",
        )
    return frame.shape


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Opens a picture and turns every way Pillow can fail, now or while decoding, into an InputError."""
    try:
        with Image.open(path) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise InputError(f"{path}: {image.width}x{image.height} pixels is more than the limit of {limit}")
            yield image
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: refused, the picture is too large to decode safely") from error
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path}: unreadable image: {reason}", hint="is it damaged or not an image?") from error


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]. 16-bit grey is scaled, where Pillow's own conversion clips it at 255."""
    if image.mode.startswith("I"):
        wide = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        grey = ((wide * 255 + 32767) // 65535).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.array(image.convert("RGB"), dtype=np.uint8)
