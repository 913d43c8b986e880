"""Camera movement: frames of a panning or shaking camera, placed where they belong in one still scene.

A moving camera moves every pixel, and background and motion mask of a clip then mean nothing. The shift
of each frame is found in whole pixels, and taken out only where that explains the picture clearly better than
a still camera does: a clip from a tripod passes through untouched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.pixels.background import median_background
from m2df_runtime.pixels.scene_frame import SceneFrame

_UNLIKE = 1.5  # grey levels by which a changed pixel of the thumbnail differs
_ROUNDS = 4  # of the robust least squares for one shift
_BLOCKS = 8  # across and down, in which the picture has to become explained
_GAIN = (0.4, 0.1)  # grey levels, and share of a block's difference, that a shift has to take away
_SHARE = 0.25  # of all blocks has to be explained better,
_CLEARLY = 3.0  # times as many as worse,
_CORNER_BLOCKS = 2  # and at least this many in three of the picture's four quarters: no person fills them all
_NEW_KEY = 0.2  # of the picture's sides: a shift beyond it makes the frame the next key frame
_LARGEST = 0.35  # of the picture's sides between two compared frames
_FARTHEST = 2.0  # frame widths or heights of path, beyond which the shifts are not believed
_OUTLIER = 30.0  # grey levels at which a pixel's difference stops counting: it is a moving thing
_STEPS = 6  # of one pixel, to refine a shift
_STRIDE = 4  # every fourth frame, and the first four, are asked first whether the camera moves at all


@dataclass(frozen=True)
class Scene:
    """Frames in the coordinates of the still scene.

    Attributes:
        frames: M frames [h, w]; where the camera moved, larger than the frames that came in, and the background
            where a frame does not reach.
        background: uint8 [h, w].
        corners: int64 [M, 2], x and y of each incoming frame's first pixel in `frames`; all 0 for a still camera.
    """

    frames: Sequence[SceneFrame]
    background: NDArray[np.uint8]
    corners: NDArray[np.int64]

    def cut(self, pictures: NDArray[np.uint8], places: NDArray[np.int64], size: tuple[int, ...]) -> NDArray[np.uint8]:
        """The part of each picture [N, h, w, C] of the scene that frame `places[n]` of `size` (h, w) shows."""
        height, width = size
        most = np.asarray(self.background.shape[::-1]) - [width, height]
        corners = np.clip(self.corners[places], 0, most).tolist()
        return np.stack([p[y : y + height, x : x + width] for p, (x, y) in zip(pictures, corners, strict=True)])


def steady_scene(frames: Sequence[SceneFrame], still: NDArray[np.int64]) -> Scene:
    """Take the camera's movement out of frames and find the background.

    The scene and the camera's path follow from the background frames alone, and every other frame is placed by
    itself, so what becomes of a frame does not depend on which others are there.

    Args:
        frames: M frames of one size, in order of time.
        still: Positions of the frames that make up the background, int64 [B], ascending.
    """
    keys = [frames[index] for index in still.tolist()]
    path = camera_path(keys)
    if not path.any():
        background = median_background([frame.grey for frame in keys])
        return Scene(frames, background, np.zeros((len(frames), 2), dtype=np.int64))
    path -= path.min(axis=0)
    height, width = frames[0].grey.shape
    across, down = (path.max(axis=0) + np.asarray([width, height])).tolist()
    corners = _placed(frames, still, path)
    windows = [_window(corner, (width, height), (across, down)) for corner in corners]
    seen = np.zeros((len(keys), down, across), dtype=np.uint8)
    reached = np.zeros((len(keys), down, across), dtype=bool)
    for key, index, canvas, known in zip(keys, still.tolist(), seen, reached, strict=True):
        inside, part = windows[index]
        canvas[inside] = key.grey[part]
        known[inside] = True
    background = median_background([*_filled_in_time(seen, reached)])
    placed = []
    for frame, (inside, part) in zip(frames, windows, strict=True):
        canvas = background.copy()
        canvas[inside] = frame.grey[part]
        placed.append(SceneFrame(canvas))
    return Scene(placed, background, corners)


def _placed(frames: Sequence[SceneFrame], still: NDArray[np.int64], path: NDArray[np.int64]) -> NDArray[np.int64]:
    """Corners of all frames [M, 2]: on the straight line between the background frames beside them, then refined."""
    everywhere = np.arange(len(frames))
    line = [np.interp(everywhere, still, path[:, axis]) for axis in (0, 1)]
    corners = np.rint(np.stack(line, axis=-1)).astype(np.int64)
    beside = np.clip(np.searchsorted(still, everywhere, side="right") - 1, 0, None)
    for index in np.setdiff1d(everywhere, still).tolist():
        key = int(beside[index])
        shift = _refined(frames[still[key]].blurred, frames[index].blurred, path[key] - corners[index])
        corners[index] = path[key] - shift
    return corners


_Slices = tuple[slice, slice]


def _window(corner: NDArray[np.int64], size: tuple[int, int], scene: tuple[int, int]) -> tuple[_Slices, _Slices]:
    """Where a frame of `size` (width, height) lies in the scene, and the part of the frame that lies in it."""
    inside, part = [], []
    for first, length, whole in zip(corner.tolist(), size, scene, strict=True):
        low, high = max(first, 0), min(first + length, whole)
        inside.append(slice(low, high))
        part.append(slice(low - first, high - first))
    return (inside[1], inside[0]), (part[1], part[0])


def camera_path(frames: Sequence[SceneFrame]) -> NDArray[np.int64]:
    """Where each frame's first pixel lies in the scene, relative to frame 0: x and y in pixels, int64 [M, 2].

    Every frame is compared with a key frame, the first one until the camera has turned away from it, so errors do
    not add up. All 0 where the camera stands, or where it moves in a way that shifts do not explain.
    """
    height, width = frames[0].grey.shape
    path = np.zeros((len(frames), 2), dtype=np.int64)
    if min(frames[0].small.shape) < 2 * _BLOCKS:
        return path
    if not any(_walk(part).any() for part in (frames[::_STRIDE], frames[:_STRIDE])):
        return path
    path = _walk(frames)
    if (np.ptp(path, axis=0) > _FARTHEST * np.asarray([width, height])).any():
        path[:] = 0
    return path


def _walk(frames: Sequence[SceneFrame]) -> NDArray[np.int64]:
    """Places of frames one after the other, int64 [M, 2]."""
    height, width = frames[0].grey.shape
    sides = np.asarray([width, height])
    path = np.zeros((len(frames), 2), dtype=np.int64)
    key, shift, speed = 0, np.zeros(2, dtype=np.int64), np.zeros(2, dtype=np.int64)
    for index in range(1, len(frames)):
        before = shift
        for start in (before + speed, before)[: 1 + speed.any()]:  # a camera mostly goes on as it went
            shift = _shift(frames[key], frames[index], start, _LARGEST * sides)
            if shift.any():
                break
        path[index] = path[key] - shift
        speed = shift - before
        if (np.abs(shift) > _NEW_KEY * sides).any():
            key, shift = index, np.zeros(2, dtype=np.int64)
    return path


def _shift(
    first: SceneFrame, second: SceneFrame, start: NDArray[np.int64], largest: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Whole pixels by which the picture moved from the first to the second frame, 0 unless clearly so: [2].

    `start` is where to look first.
    """
    none = np.zeros(2, dtype=np.int64)
    difference = second.thumb - first.thumb
    if np.count_nonzero(np.abs(difference - _middle(difference)) > _UNLIKE) < _SHARE * difference.size:
        return none
    estimate = start.astype(np.float64)
    for one, other, slope in zip(first.levels, second.levels, first.slopes, strict=True):
        scale = first.grey.shape[1] / one.shape[1]
        estimate = _least_squares(one, other, slope, estimate / scale) * scale
    shift = np.rint(estimate).astype(np.int64)
    if (np.abs(shift) > largest).any():
        return none
    shift = _refined(first.blurred, second.blurred, shift)
    if not shift.any():
        return none
    with_it = _blocks(*_overlap(first.blurred, second.blurred, shift))
    without = _blocks(*(_overlap(frame.blurred, frame.blurred, shift)[1] for frame in (first, second)))
    gain = without - with_it
    enough = _GAIN[0] + _GAIN[1] * np.maximum(with_it, without)
    better, worse = gain > enough, gain < -enough
    half = _BLOCKS // 2
    quarters = better.reshape(2, half, 2, half).sum(axis=(1, 3)) >= _CORNER_BLOCKS
    clear = better.sum() >= max(_SHARE * better.size, _CLEARLY * worse.sum()) and quarters.sum() >= 3
    return shift if clear else none


def _least_squares(
    first: NDArray[np.float32],
    second: NDArray[np.float32],
    slopes: tuple[NDArray[np.float32], NDArray[np.float32]],
    start: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Shift [2] of the picture after Lucas and Kanade; pixels that fit badly (moving things) lose weight (Cauchy)."""
    import cv2

    height, width = first.shape
    slope_y, slope_x = slopes
    shift = start
    for _ in range(_ROUNDS):
        move = np.asarray([[1, 0, shift[0]], [0, 1, shift[1]]])
        back = cv2.warpAffine(
            second,
            move,
            (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        error = back - first
        error -= _middle(error[::4, ::4])  # a change of exposure
        scale = 2.0 * _middle(np.abs(error[::4, ::4])) + 0.5
        trust = 1.0 / (1.0 + (error / scale) ** 2)
        margin = np.ceil(np.minimum(np.abs(shift), [width // 2, height // 2])).astype(int)  # what came into view
        inside = np.s_[margin[1] : height - margin[1], margin[0] : width - margin[0]]
        x, y, e, w = (values[inside].ravel() for values in (slope_x, slope_y, error, trust))
        wx, wy = w * x, w * y
        xx, xy, yy = float(wx @ x) + 1.0, float(wx @ y), float(wy @ y) + 1.0
        ex, ey = float(wx @ e), float(wy @ e)
        step = np.asarray([xy * ey - yy * ex, xy * ex - xx * ey]) / (xx * yy - xy * xy)
        shift = shift + np.clip(step, -3, 3)
        if np.abs(step).max() < 0.05:
            break
    return shift


def _refined(first: NDArray[np.uint8], second: NDArray[np.uint8], shift: NDArray[np.int64]) -> NDArray[np.int64]:
    """Walk downhill from a shift, pixel by pixel, to the least difference that it leaves."""
    import cv2

    def left(x: int, y: int) -> float:
        one, other = _overlap(first, second, np.asarray([x, y]))
        difference = cv2.absdiff(one, other)
        return float(cv2.mean(cv2.threshold(difference, _OUTLIER, 0, cv2.THRESH_TRUNC)[1])[0])

    x, y = shift.tolist()
    least = left(x, y)
    for _ in range(_STEPS):
        around = [(x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)]
        costs = [left(*place) for place in around]
        if min(costs) >= least:
            break
        least = min(costs)
        x, y = around[costs.index(least)]
    return np.asarray([x, y], dtype=np.int64)


def _overlap(
    first: NDArray[np.uint8], second: NDArray[np.uint8], shift: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The parts of both frames that show the same scene when the picture moved by `shift`."""
    height, width = first.shape
    x, y = shift.tolist()
    one = first[max(0, -y) : height - max(0, y), max(0, -x) : width - max(0, x)]
    other = second[max(0, y) : height - max(0, -y), max(0, x) : width - max(0, -x)]
    return one, other


def _blocks(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean difference in each of 8 x 8 blocks, the whole picture's median taken out, float32 [8, 8]."""
    import cv2

    difference = first[::2, ::2].astype(np.float32) - second[::2, ::2]
    difference -= _middle(difference[::4, ::4])
    return np.asarray(cv2.resize(np.abs(difference), (_BLOCKS, _BLOCKS), interpolation=cv2.INTER_AREA))


def _middle(values: NDArray[np.float32]) -> float:
    """The upper median."""
    half = values.size // 2
    return float(np.partition(values, half, axis=None)[half])


def _filled_in_time(frames: NDArray[np.uint8], reached: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Pixels [B, h, w] that a frame does not reach, from the next frame before or else after it that does."""
    filled, known = frames.copy(), reached.copy()
    for order in (range(1, len(frames)), range(len(frames) - 2, -1, -1)):
        for index in order:
            neighbour = index - order.step
            missing = known[neighbour] & ~known[index]
            filled[index][missing] = filled[neighbour][missing]
            known[index] |= missing
    return filled
