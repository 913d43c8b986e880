"""Motion box: one square per clip that follows what moves in front of a still background.

A person who fills a fifth of the picture is a few pixels at an encoder's input; cropping to what
moves gives them back. The box is a property of the clip, fitted to frames spread evenly over it,
so that random frame sampling in training and fixed sampling in deployment see the same crop.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.median import median
from m2df_runtime.pixels.scene_frame import SceneFrame, halved

_PADDING = 1.2
_SMALLEST = 1 / 6  # of the frame's height: a smaller box would be sensor noise enlarged
_THRESHOLD = 10.0  # grey levels; 8-bit compression noise after blurring stays below
_HIGHEST_THRESHOLD = 40.0
_NOISE_FACTOR = 4.5  # 3 standard deviations of a normal distribution, from its median absolute value
_EVERYTHING = 0.6  # share of moving pixels beyond which the camera itself moves
_NOTHING = 5e-4  # share of moving pixels below which a frame shows no motion
_HALVED_FROM = 96  # pixels of the short side from which the mask is made at half the resolution
_TAIL = 0.01  # share of the mask cut off on each of the four sides of its extent
_LOOSE_TAIL = 0.05  # the same where the camera moved: edges of the background are among it
_SIDE_PERCENTILE = 90.0
_OVERHANG = 0.25  # the box may leave the frame by a quarter of its side


def motion_boxes(
    frames: Sequence[SceneFrame],
    background: NDArray[np.uint8],
    times: NDArray[np.float64],
    at: NDArray[np.float64] | None = None,
    *,
    misplaced: bool = False,
) -> NDArray[np.float64]:
    """Square boxes around what moves: one side length for the clip, a centre that follows smoothly.

    The mask of a frame is where it differs from the background. The centre is a parabola in time fitted
    to the masks' extents, weighted by their mass and robust to stray frames; the side covers nine frames
    in ten around it. When nothing moves, or nearly everything does (a moving camera), the answer is
    the full frame's centred square.

    Args:
        frames: M frames [h, w] spread over the clip.
        background: uint8 [h, w], see `median_background`.
        times: Seconds of the M frames, float64 [M].
        at: Seconds at which boxes are wanted, float64 [B]; `times` when None.
        misplaced: The camera moved, and frames may lie a pixel beside their place in the background.

    Returns:
        float64 [B, 4]: x, y, width, height in pixels of a frame, which a box may overhang.
    """
    height, width = background.shape
    moments = times if at is None else at
    if min(height, width) >= _HALVED_FROM:  # the box is padded by a fifth: every second pixel places it well enough
        masks = _masks([frame.halved for frame in frames], halved(background), blur=3, misplaced=misplaced)
    else:
        masks = _masks([frame.grey for frame in frames], background, blur=5, misplaced=misplaced)
    extents, shares = _extents(masks, _LOOSE_TAIL if misplaced else _TAIL)
    extents *= np.asarray([width / masks.shape[2], height / masks.shape[1]] * 2)
    moving = shares >= _NOTHING
    if not moving.any() or median(shares) > _EVERYTHING:
        side = float(min(height, width))
        centre = np.broadcast_to([width / 2, height / 2], (len(moments), 2))
        return _boxes(centre, side)
    seen, weights = extents[moving], shares[moving]
    path = _Path.fit(times[moving], (seen[:, :2] + seen[:, 2:]) / 2, weights)
    centre = path(times[moving])
    reach = 2 * np.maximum(centre - seen[:, :2], seen[:, 2:] - centre).max(axis=1)
    # A box with more area than the frame would be mostly padding: sqrt(w h) is the largest.
    side = float(
        np.clip(_PADDING * np.percentile(reach, _SIDE_PERCENTILE), _SMALLEST * height, np.sqrt(width * height))
    )
    inset = side * (0.5 - _OVERHANG)
    limits = np.asarray([width, height], dtype=np.float64)
    low, high = np.minimum(inset, limits / 2), np.maximum(limits - inset, limits / 2)
    return _boxes(np.clip(path(moments), low, high), side)


def _boxes(centre: NDArray[np.float64], side: float) -> NDArray[np.float64]:
    """[B, 2] centres -> [B, 4] boxes."""
    return np.hstack([centre - side / 2, np.full((len(centre), 2), side)])


def _masks(
    grey: Sequence[NDArray[np.uint8]], background: NDArray[np.uint8], blur: int, misplaced: bool
) -> NDArray[np.uint8]:
    """Where each frame differs from the background, speckles removed: uint8 [M, h, w] of 0 and 1."""
    import cv2

    # A change of exposure moves every pixel alike: the median difference is taken out.
    coarse = np.stack([frame[::8, ::8] for frame in grey]).astype(np.int16) - background[::8, ::8]
    shifts = np.median(coarse.reshape(len(grey), -1), axis=1).astype(int).tolist()
    differences = np.empty((len(grey), *background.shape), dtype=np.uint8)
    for frame, shift, difference in zip(grey, shifts, differences, strict=True):
        lit = background
        if shift > 0:
            lit = cv2.add(background, np.full_like(background, shift)).astype(np.uint8, copy=False)
        elif shift < 0:
            lit = cv2.subtract(background, np.full_like(background, -shift)).astype(np.uint8, copy=False)
        apart = _beyond_neighbours(frame, lit) if misplaced else cv2.absdiff(frame, lit)
        cv2.blur(apart, (blur, blur), difference)
    counts = np.cumsum(np.bincount(differences[:, ::4, ::4].ravel()))
    noise = float(np.searchsorted(counts, counts[-1] / 2))  # the median
    threshold = float(np.clip(_NOISE_FACTOR * noise, _THRESHOLD, _HIGHEST_THRESHOLD))
    kernel = np.ones((3, 3), dtype=np.uint8)
    masks = np.empty_like(differences)
    for difference, mask in zip(differences, masks, strict=True):
        _, raw = cv2.threshold(difference, threshold, 1, cv2.THRESH_BINARY)
        cv2.morphologyEx(raw, cv2.MORPH_OPEN, kernel, mask)
    return masks


def _beyond_neighbours(frame: NDArray[np.uint8], background: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """By how much a frame leaves the range that the background has within a pixel: [h, w]."""
    import cv2

    near = np.ones((3, 3), dtype=np.uint8)
    above = cv2.subtract(frame, cv2.dilate(background, near))
    below = cv2.subtract(cv2.erode(background, near), frame)
    return np.maximum(above, below).astype(np.uint8, copy=False)


def _extents(masks: NDArray[np.uint8], tail: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Extent (left, top, right, bottom) [M, 4] and share of moving pixels [M] of each mask [M, h, w].

    `tail` is the share of a mask that its extent leaves out on each side.
    """
    import cv2

    count, height, width = masks.shape
    across = np.stack([cv2.reduce(mask, 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S)[0] for mask in masks])  # [M, w]
    down = cv2.reduce(masks.reshape(-1, width), 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S).reshape(count, height)
    columns, rows = np.cumsum(across, axis=1), np.cumsum(down, axis=1)
    mass = columns[:, -1:]
    before, until = tail * mass, (1 - tail) * mass
    ends = [(columns < before), (rows < before), (columns < until), (rows < until)]
    extents = np.stack([end.sum(axis=1) for end in ends], axis=1).astype(np.float64)
    extents[:, 2:] += 1
    return np.where(mass > 0, extents, 0), mass[:, 0] / (height * width)


class _Path:
    """A centre that moves along a parabola between the first and the last frame with motion."""

    def __init__(self, first: float, last: float, coefficients: NDArray[np.float64]) -> None:
        self._first, self._last, self._coefficients = first, last, coefficients

    @classmethod
    def fit(cls, times: NDArray[np.float64], centres: NDArray[np.float64], weights: NDArray[np.float64]) -> _Path:
        """Weighted least squares, three rounds; a frame far from the path loses weight (Cauchy)."""
        degree = min(2, len(np.unique(times)) - 1)
        path = cls(float(times.min()), float(times.max()), np.zeros((degree + 1, 2)))
        design = path._design(times)  # [M, degree + 1]
        trust = weights / weights.max()
        for _ in range(3):
            scaled = design * trust[:, None]
            normal = scaled.T @ design + 1e-6 * np.eye(degree + 1)  # solvable when one frame has all the weight
            path._coefficients = np.linalg.solve(normal, scaled.T @ centres)
            away = np.abs(design @ path._coefficients - centres).max(axis=1)
            scale = max(3.0 * median(away), 1.0)
            trust = weights / weights.max() / (1 + (away / scale) ** 2)
        return path

    def _design(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        span = max(self._last - self._first, 1e-9)
        unit = 2 * (np.clip(times, self._first, self._last) - self._first) / span - 1
        return np.stack([unit**power for power in range(len(self._coefficients))], axis=1)

    def __call__(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._design(times) @ self._coefficients
