"""From a picture, or a box in it, to the square that a model takes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m2df_runtime.pixels.spec import ClipSpec

Box = tuple[float, float, float, float]  # x, y, width, height in pixels

NO_DIFFERENCE = 128  # of a motion channel: half of the range, so that differences go both ways
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_LONGEST = 16  # times the other side


def centred(frames: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The central square of frames [..., h, w, 3]: [..., size, size, 3]; offsets are rounded as torchvision does."""
    top, left = (round((length - size) / 2.0) for length in frames.shape[-3:-1])
    return frames[..., top : top + size, left : left + size, :]


def overhang(box: NDArray[np.float64], width: int, height: int) -> tuple[int, int, int, int]:
    """Whole pixels by which a box (x, y, w, h) leaves a picture: left, top, right, bottom."""
    x, y, across, down = box.tolist()
    beyond = (-x, -y, x + across - width, y + down - height)
    left, top, right, bottom = (max(0, math.ceil(pixels)) for pixels in beyond)
    return left, top, right, bottom


def reach(box: NDArray[np.float64], spec: ClipSpec) -> int:
    """Pixels around a box that the scaling of it looks at: half of the widest filter, that of `bicubic`."""
    shrunk = float(box[2:].max()) / (spec.short_side or spec.size)
    return math.ceil(2 * max(1.0, shrunk)) + 1


def padded(picture: NDArray[np.uint8], box: NDArray[np.float64]) -> tuple[NDArray[np.uint8], Box]:
    """Extends a picture [h, w, 3] so that a box (x, y, w, h) fits, by repeating its edges; with the box inside it."""
    x, y, across, down = box.tolist()
    left, top, right, bottom = overhang(box, *picture.shape[1::-1])
    if left or top or right or bottom:
        import cv2

        bordered = cv2.copyMakeBorder(picture, top, bottom, left, right, cv2.BORDER_REPLICATE)
        picture = bordered.astype(np.uint8, copy=False)
    return picture, (x + left, y + top, across, down)


def fit(picture: NDArray[np.uint8], box: Box | None, spec: ClipSpec) -> NDArray[np.uint8]:
    """Scales a box (the whole picture when None) of [H, W, 3] and cuts out the centre: uint8 [S, S, 3]."""
    if box is None or not spec.antialias:
        # Not straight out of a sub-box: Pillow orders its two passes by their sizes, and a pixel would differ.
        return centred(scaled(picture, box, spec), spec.size)
    across, down = _scaled_size(box[2], box[3], spec)
    left, top = round((across - spec.size) / 2.0), round((down - spec.size) / 2.0)
    x, y = box[0] + left * box[2] / across, box[1] + top * box[3] / down
    part = (x, y, x + spec.size * box[2] / across, y + spec.size * box[3] / down)
    kernel = _RESAMPLING[spec.interpolation]
    return np.asarray(Image.fromarray(picture).resize((spec.size, spec.size), kernel, box=part))


def scaled(picture: NDArray[np.uint8], box: Box | None, spec: ClipSpec) -> NDArray[np.uint8]:
    """Scales a box (the whole picture when None) of [H, W, 3]: uint8 [h, w, 3]."""
    picture = picture if box is not None else _without_far_ends(picture)
    height, width = picture.shape[:2] if box is None else (box[3], box[2])
    size = _scaled_size(width, height, spec)
    if not spec.antialias:
        import cv2

        whole = picture if box is None else _whole_pixels(picture, box)
        return cv2.resize(whole, size, interpolation=cv2.INTER_LINEAR).astype(np.uint8, copy=False)
    part = None if box is None else (box[0], box[1], box[0] + width, box[1] + height)
    return np.asarray(Image.fromarray(picture).resize(size, _RESAMPLING[spec.interpolation], box=part))


def _without_far_ends(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The middle of a picture that is more than 16 times as long as wide: scaled whole, 60,000 x 2 takes 4 GB."""
    for axis in (0, 1):
        spare = picture.shape[axis] - _LONGEST * picture.shape[1 - axis]
        if spare > 0:
            picture = np.take(picture, np.arange(spare // 2, picture.shape[axis] - (spare + 1) // 2), axis=axis)
    return picture


def _scaled_size(width: float, height: float, spec: ClipSpec) -> tuple[int, int]:
    """Width and height a picture is scaled to; the long side is int(short * long / short) as torchvision has it."""
    short = spec.short_side or spec.size
    if spec.resize == "squash":
        return short, short
    # A square box of fractional length can round to less than a square: 224 * w / w is 223.99... for one w in ten.
    if width < height:
        return short, max(short, int(short * height / width))
    return max(short, int(short * width / height)), short


def _whole_pixels(picture: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """The box rounded to whole pixels; OpenCV's plain resize takes no fractional ones."""
    x, y, width, height = (round(value) for value in box)
    return picture[y : y + max(1, height), x : x + max(1, width)]
