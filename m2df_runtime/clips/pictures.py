"""Clips that are pictures: folders of frames, numbered patterns and animated GIF, WebP and PNG files."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.clips.animations import STILL_SECONDS, Animation, scan
from m2df_runtime.clips.folder_entries import entries, named
from m2df_runtime.clips.limits import check_animation, check_pixels
from m2df_runtime.clips.picture_files import PictureFile, SizeCheck, open_picture, pillow_errors, rgb_of
from m2df_runtime.clips.source import ArrayPicture, FrameSource, Picture
from m2df_runtime.errors import ClipError
from m2df_runtime.regular_files import open_regular

_log = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
ANIMATED_SUFFIXES = frozenset({".apng", ".gif", ".png", ".webp"})
_FRAME_FOLDER_FPS = 25.0  # pictures carry no clock; 25 is the rate of the datasets usually unpacked to frames
_LEAST_PAGE = 1 << 10  # pixels a side that a page counts for: finding the next one takes 0.1 ms, 16,000 a second
_LONGEST_NAME = 255  # characters
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
_PICTURE_HEADS = (b"\x89PNG", b"GIF8", b"RIFF", b"\xff\xd8\xff", b"II", b"MM", b"BM")
_HEAD = 16
_PATTERN = re.compile(r"%(0\d+)?d")


def is_pattern(path: Path) -> bool:
    """Whether the name is a printf pattern such as `frame_%04d.png`."""
    return _PATTERN.search(path.name) is not None


def is_video(path: Path) -> bool:
    """Whether a file begins as video files do, whatever its name. Raises OSError."""
    with open_regular(path) as file:
        return _begins_as_video(file)


def is_picture(path: Path) -> bool:
    """Whether a file begins as picture files do, however it goes on. Raises OSError."""
    with open_regular(path) as file:
        return file.read(_HEAD).startswith(_PICTURE_HEADS)


def _begins_as_video(file: IO[bytes]) -> bool:
    head = file.read(_HEAD)
    return any(head[at : at + len(mark)] == mark for at, mark in _VIDEO_HEADS)


def is_moving(path: Path) -> bool:
    """Whether a picture file holds more than one frame, or is a video by another name."""
    try:
        with open_regular(path) as file:
            if _begins_as_video(file):
                return True
            file.seek(0)
            return scan(file, path, most=2) is not None
    except ClipError:  # beyond the limits: opening it will say so
        return True
    except OSError:
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

    Args:
        name: What messages call the clip.
        files: The pictures.
        fps: Frames per second, of which the times follow.
    """

    def __init__(self, name: str, files: Sequence[Path], fps: float = _FRAME_FOLDER_FPS) -> None:
        self.name = name
        self._files = list(files)
        self.n_frames = len(self._files)
        self.fps = float(fps)
        self.times: NDArray[np.float64] = np.arange(self.n_frames) / self.fps

    @classmethod
    def from_folder(cls, folder: Path, fps: float = _FRAME_FOLDER_FPS) -> FrameFolder:
        """The pictures of a folder (`frames_of`). Raises ClipError when it holds none."""
        try:
            files, left_out = frames_of(folder)
        except OSError as error:
            raise ClipError(folder, f"cannot be listed: {error.strerror}") from error
        if left_out:
            _log.warning("%s: %s", folder, left_out)
        if not files:
            raise ClipError(
                folder, "a directory without images", "give a video file, or a folder of frames such as frame_0001.png"
            )
        return cls(str(folder), files, fps)

    @classmethod
    def from_pattern(cls, pattern: Path, fps: float = _FRAME_FOLDER_FPS) -> FrameFolder:
        """The files that match a printf pattern, by number; numbers may start anywhere and have gaps.

        Raises:
            ClipError: The pattern is none, or no file matches.
        """
        fields = list(_PATTERN.finditer(pattern.name))
        if len(fields) > 1:
            raise ClipError(pattern, "a pattern with several numbers", "one is allowed: frame_%04d.png")
        if not fields or not os.path.isdir(pattern.parent):
            raise ClipError(pattern, "no such image sequence", "the folder of the pattern must exist")
        (field,) = fields
        digits = (field.group(1) or "").lstrip("0") or "1"  # %04d: at least four digits
        if len(digits) > len(str(_LONGEST_NAME)) or int(digits) > _LONGEST_NAME:
            raise ClipError(pattern, "a number longer than a file's name can be", "example: frames/frame_%04d.png")
        before, after = (re.escape(part) for part in (pattern.name[: field.start()], pattern.name[field.end() :]))
        name = re.compile(rf"{before}([0-9]{{{digits},}}){after}\Z")
        try:
            hits = [hit for hit in map(name.match, os.listdir(pattern.parent)) if hit]
        except OSError as error:
            raise ClipError(pattern, f"the folder cannot be listed: {error.strerror}") from error
        if not hits:
            raise ClipError(pattern, "no file matches the pattern", "example: frames/frame_%04d.png")
        ordered = sorted(hits, key=lambda hit: (int(hit.group(1)), hit.string))
        return cls(str(pattern), [pattern.parent / hit.string for hit in ordered], fps)

    def pictures(self, indices: NDArray[np.int64]) -> Iterator[Picture]:
        """See `FrameSource.pictures`; each is decoded when it is asked for pixels, and may raise ClipError then."""
        check = SizeCheck()
        for index in indices.tolist():
            yield PictureFile(self._files[index], check)


class AnimatedImage(FrameSource):
    """A picture file read as a clip: animated GIF, WebP or PNG, pages of a TIFF, or one still frame.

    Times are those of the frames' own durations. A file that ends early is read as far as it goes.

    Raises:
        ClipError: No picture, damaged, or beyond the limits.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        with pillow_errors(path), open_regular(path) as file:
            self._animation = scan(file, path) or _pages(file, path)
        seconds = self._animation.seconds
        self.n_frames = len(seconds)
        self.times: NDArray[np.float64] = np.concatenate([[0.0], np.cumsum(seconds)[:-1]])
        self.fps = self.n_frames / sum(seconds)
        if self._animation.cut:
            _log.warning("%s: the file is cut short; read as far as it goes, %d frames", path, self.n_frames)

    def pictures(self, indices: NDArray[np.int64]) -> Iterator[Picture]:
        """See `FrameSource.pictures`. One frame is held at a time. Raises ClipError on damaged data."""
        check = SizeCheck()
        if self.n_frames == 1 and not self._animation.cut:
            yield from (PictureFile(self._path, check) for _ in indices)
            return
        with ExitStack() as opened:
            with pillow_errors(self._path):
                file = opened.enter_context(open_regular(self._path))
                image = opened.enter_context(open_picture(self._whole(file), self._path))
            for index in indices.tolist():
                with pillow_errors(self._path):
                    image.seek(self._animation.first + index)
                    check_pixels(self._path, *image.size)
                    image.load()
                    check(self._path, *image.size)  # pages of a TIFF may differ
                    picture = ArrayPicture(rgb_of(image))
                yield picture
                del picture  # before the next one is decoded: 200 MB of 64 megapixels

    def _whole(self, file: IO[bytes]) -> IO[bytes]:
        """The file without a last part of a frame, which libwebp refuses the whole file for."""
        size = self._animation.size
        if not (self._animation.cut and size):
            return file
        data = bytearray(file.read(size))
        data[4:8] = (size - 8).to_bytes(4, "little")
        return BytesIO(data)


def _pages(file: IO[bytes], path: Path) -> Animation:
    """The frames of a picture that is none of the animated formats: one, or the pages of a TIFF."""
    file.seek(0)
    seconds = [STILL_SECONDS]
    with open_picture(file, path) as image:
        while image.format == "TIFF":  # other formats hold previews of their picture
            try:
                image.seek(len(seconds))
            except (EOFError, OSError, SyntaxError, ValueError):
                break
            seconds.append(STILL_SECONDS)
            check_pixels(path, *image.size)
            check_animation(path, len(seconds), *(max(side, _LEAST_PAGE) for side in image.size))
    return Animation(seconds)
