"""Clips that are pictures: folders of frames, numbered patterns and animated GIF, WebP and PNG files.

Each class is a `FrameSource` (see `video.py`). Pillow decodes; alpha is dropped, so that a picture
gives the same pixels as a video of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from m2df_runtime.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
ANIMATED_SUFFIXES = frozenset({".apng", ".gif", ".png", ".webp"})
_FRAME_FOLDER_FPS = 25.0  # pictures carry no clock; 25 is the rate of the datasets usually unpacked to frames
_STILL_SECONDS = 0.1  # browsers show a frame of duration 0 for 100 ms
_NUMBER = re.compile(r"(\d+)")
_PATTERN = re.compile(r"%(0\d+)?d")


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts `frame_9` before `frame_10`."""
    parts = _NUMBER.split(name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part.lower()) for part in parts if part]


def is_pattern(path: Path) -> bool:
    """Whether the name is a printf pattern such as `frame_%04d.png`."""
    return len(_PATTERN.findall(path.name)) == 1


def is_animated(path: Path) -> bool:
    """Whether a picture file holds more than one frame; False for a file that cannot be read."""
    try:
        with Image.open(path) as image:
            return bool(getattr(image, "is_animated", False))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def folder_images(folder: Path) -> list[Path]:
    """The pictures directly in a folder in natural order; hidden files are left out."""
    found = [
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith(".") and entry.is_file()
    ]
    return sorted(found, key=lambda entry: natural_key(entry.name))


def checked_indices(indices: Sequence[int] | NDArray[np.int64], n_frames: int) -> NDArray[np.int64]:
    """Frame indices as int64 [M], refused (IndexError) outside 0..n_frames-1."""
    chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
    if chosen.size and (chosen.min() < 0 or chosen.max() >= n_frames):
        raise IndexError(f"frame indices {chosen.min()}..{chosen.max()} outside 0..{n_frames - 1}")
    return chosen


class FrameFolder:
    """Frames stored one picture per file, in natural order of their names.

    Attributes:
        n_frames: Number of pictures.
        times: Presentation times in seconds, float64 [n], from `fps`.
        fps: Frames per second.
    """

    def __init__(self, files: Sequence[Path], fps: float = _FRAME_FOLDER_FPS) -> None:
        self._files = list(files)
        self.n_frames = len(self._files)
        self.fps = float(fps)
        self.times: NDArray[np.float64] = np.arange(self.n_frames) / self.fps

    @classmethod
    def from_folder(cls, folder: Path, fps: float = _FRAME_FOLDER_FPS) -> FrameFolder:
        """All pictures of a folder. Raises InputError when it holds none."""
        try:
            files = folder_images(folder)
        except OSError as error:
            raise InputError(f"{folder}: cannot be listed: {error.strerror}") from error
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

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Frames in the order asked, uint8 [M, H, W, 3] RGB. Raises InputError naming a bad picture."""
        chosen = checked_indices(indices, self.n_frames)
        decoded: dict[int, NDArray[np.uint8]] = {}
        for index in np.unique(chosen).tolist():
            with _opened(self._files[index]) as image:
                frame = _rgb(ImageOps.exif_transpose(image))
            _require_one_size(self._files[index], frame, decoded)
            decoded[index] = frame
        return np.stack([decoded[index] for index in chosen.tolist()])


class AnimatedImage:
    """A picture file read as a clip: animated GIF, WebP or PNG, or one still frame.

    Attributes:
        n_frames: Frames that can be read.
        times: Presentation times in seconds, float64 [n], from the frames' own durations.
        fps: Mean frames per second.
    """

    def __init__(self, path: Path) -> None:
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

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Frames in the order asked, uint8 [M, H, W, 3] RGB. Raises InputError on damaged data."""
        chosen = checked_indices(indices, self.n_frames)
        decoded: dict[int, NDArray[np.uint8]] = {}
        with _opened(self._path) as image:
            for index in np.unique(chosen).tolist():
                image.seek(index)
                frame = _rgb(image)
                _require_one_size(self._path, frame, decoded)  # pages of a TIFF, previews in a JPEG
                decoded[index] = frame
        return np.stack([decoded[index] for index in chosen.tolist()])


def _require_one_size(path: Path, frame: NDArray[np.uint8], before: Mapping[int, NDArray[np.uint8]]) -> None:
    shape = next((other.shape for other in before.values()), frame.shape)
    if frame.shape != shape:
        raise InputError(
            f"{path}: {frame.shape[1]}x{frame.shape[0]} pixels where the frames before it have {shape[1]}x{shape[0]}",
            hint="all frames of a clip must have one size",
        )


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
