"""One picture file through Pillow: checked before it is decoded, upright, in RGB or small grey.

Only formats of pixels are opened (Pillow would hand PostScript to another program), what is wrong becomes a
`ClipError`, and Pillow's warnings go nowhere. Alpha is dropped, so that a picture gives the pixels of a video of it.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from m2df_runtime.clips.limits import MAX_PIXELS_VARIABLE, check_pixels, max_pixels
from m2df_runtime.clips.source import Picture, grey_of, reduced_size
from m2df_runtime.errors import ClipError, M2dfError, first_line
from m2df_runtime.regular_files import open_regular

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_STRIP = 1 << 20  # pixels converted at once: Pillow's own conversion holds three more copies of the picture
_ORIENTATION = 0x0112
_SIDEWAYS = 5  # orientations from here on exchange width and height


class UnknownPicture(ClipError):
    """A file that is no picture of a known format; to another reader it may be a clip."""


class SizeCheck:
    """Sees that all pictures of a clip have the size of the first."""

    def __init__(self) -> None:
        self._size: tuple[int, int] | None = None

    def __call__(self, path: Path, width: int, height: int) -> None:
        """Raises ClipError where the size is another one."""
        self._size = self._size or (width, height)
        if self._size != (width, height):
            before = "x".join(map(str, self._size))
            raise ClipError(
                path,
                f"{width}x{height} pixels where the frames before it have {before}",
                "all frames of a clip must have one size",
            )


class PictureFile(Picture):
    """A still picture, decoded whenever it is asked for, so that it takes no memory while it is kept.

    Args:
        path: The file.
        check: Told the size at each decoding.
    """

    def __init__(self, path: Path, check: SizeCheck) -> None:
        self._path = path
        self._check = check

    def rgb(self) -> NDArray[np.uint8]:
        """See `Picture.rgb`. Raises ClipError."""
        with pillow_errors(self._path), open_regular(self._path) as file, open_picture(file, self._path) as image:
            image.load()
            orientation = _orientation(image)
            frame = rgb_of(image)
        frame = np.ascontiguousarray(_turned(frame, orientation))
        self._check(self._path, frame.shape[1], frame.shape[0])
        return frame

    def grey(self, long_side: int | None = None) -> NDArray[np.uint8]:
        """See `Picture.grey`; a JPEG is decoded to no more than is needed. Raises ClipError."""
        import cv2

        with pillow_errors(self._path), open_regular(self._path) as file, open_picture(file, self._path) as image:
            whole = image.size
            # Brightness alone at down to an eighth: 24 megapixels take 40 ms and 1 MB, where all takes 330 and 170.
            drafted = image.draft("L", reduced_size(*whole, long_side)) is not None
            image.load()
            whole = whole if drafted else image.size  # Pillow turns a TIFF by itself
            orientation = _orientation(image)
            grey = np.concatenate([grey_of(strip) for strip in _strips(image)])
        width, height = whole if orientation < _SIDEWAYS else whole[::-1]
        self._check(self._path, width, height)
        grey, size = np.ascontiguousarray(_turned(grey, orientation)), reduced_size(width, height, long_side)
        if size == grey.shape[::-1]:
            return grey
        return cv2.resize(grey, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


@contextmanager
def pillow_errors(path: Path) -> Iterator[None]:
    """Turns every way Pillow can fail into a `ClipError`, and keeps its warnings from stderr.

    Around calls of Pillow only: it raises whatever its parsers meet, from KeyError to ZeroDivisionError.
    """
    try:
        with _quiet:
            yield
    except M2dfError:
        raise
    except FileNotFoundError as error:
        raise ClipError(path, "no such file") from error
    except UnidentifiedImageError as error:
        raise UnknownPicture(path, "unreadable image: of no known format", "is it damaged or not an image?") from error
    except Image.DecompressionBombError as error:
        reason = f"it has far more pixels than the limit of {max_pixels()}"
        raise ClipError(path, reason, f"{MAX_PIXELS_VARIABLE} in the environment raises it") from error
    except MemoryError as error:
        raise ClipError(path, "not enough memory to decode the picture") from error
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise ClipError(path, f"unreadable image: {reason}", "is it damaged or not an image?") from error


def open_picture(file: IO[bytes], path: Path) -> Image.Image:
    """Opens a picture whose size is within the limit; within `pillow_errors`. Raises ClipError."""
    limit = max_pixels()
    if Image.MAX_IMAGE_PIXELS is not None and limit > Image.MAX_IMAGE_PIXELS:  # only where the user raised ours
        Image.MAX_IMAGE_PIXELS = limit
    image = Image.open(file, formats=_FORMATS)
    check_pixels(path, *image.size)
    if image.format == "TIFF":
        _silence_libtiff()
    return image


@cache
def _silence_libtiff() -> None:
    """Keep libtiff, which Pillow's wheels bring along, from writing what it finds wrong straight to stderr."""
    packages = Path(PIL.__file__).parents[1]
    for library in (*packages.glob("pillow.libs/libtiff*"), *packages.glob("PIL/.dylibs/libtiff*")):
        with suppress(OSError, AttributeError):
            loaded = ctypes.CDLL(str(library))
            loaded.TIFFSetErrorHandler(None)
            loaded.TIFFSetWarningHandler(None)


def rgb_of(image: Image.Image) -> NDArray[np.uint8]:
    """A loaded picture as uint8 [H, W, 3]."""
    frame = np.empty((image.height, image.width, 3), dtype=np.uint8)
    top = 0
    for strip in _strips(image):
        frame[top : top + len(strip)] = strip
        top += len(strip)
    return frame


def _strips(image: Image.Image) -> Iterator[NDArray[np.uint8]]:
    """A picture from top to bottom in uint8 [h, W, 3]. 16-bit grey is scaled, where Pillow's conversion clips it."""
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        part = image.crop((0, top, image.width, min(top + rows, image.height)))
        if part.mode.startswith("I"):
            wide = np.clip(np.asarray(part).astype(np.int64), 0, 65535)
            yield np.repeat(((wide * 255 + 32767) // 65535).astype(np.uint8)[:, :, None], 3, axis=2)
        else:
            yield np.asarray(part.convert("RGB"), dtype=np.uint8)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a loaded picture, 1 to 8; 1 where its side data are damaged."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # nothing but the pixels decides whether a picture can be read
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _turned(frame: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """A view of [H, W, ...] as it is to be shown."""
    if orientation >= _SIDEWAYS:
        frame = frame.swapaxes(0, 1)
    mirrored, upside_down = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
    return frame[:: -1 if upside_down else 1, :: -1 if mirrored else 1]


class _Quiet:
    """Ignores Pillow's warnings while anybody reads: `warnings.catch_warnings` is wrong where threads share filters."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._filter: object = None

    def lets_pass(self, record: logging.LogRecord) -> bool:
        """A filter of a logger of Pillow's: nothing is said of the pictures that are read here."""
        return not self._readers

    def __enter__(self) -> None:
        with self._lock:
            self._readers += 1
            if self._readers == 1:
                warnings.filterwarnings("ignore", module=r"PIL\.")
                self._filter = warnings.filters[0]

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._readers -= 1
            if not self._readers and self._filter in warnings.filters:  # unless other filters were set meanwhile
                warnings.filters.remove(self._filter)  # type: ignore[attr-defined]


_quiet = _Quiet()
logging.getLogger("PIL.TiffImagePlugin").addFilter(_quiet.lets_pass)  # the one that logs errors, and raises them too
