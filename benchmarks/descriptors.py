"""Hand-made descriptors that a trained model has to beat: motion history images and HOG on the same motion crops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from m2df_runtime.pixels.spec import ClipSpec
from m2df_train.model.alignment import view_distances

Float = NDArray[np.float32]
SIZE = 64  # pixels of a crop's side
# The motion box, grey and the change to the frame before, in 8 frames for HOG and in 24 for motion history.
HOG_CLIP, HISTORY_CLIP = (
    ClipSpec(frames=n, size=SIZE, interpolation="bilinear", region="motion", channels="motion") for n in (8, 24)
)
_CELL, _DIRECTIONS, _LARGEST = 8, 9, 0.2
_MOVED = 5  # half grey levels by which a pixel has changed when it counts as moving
_NEUTRAL = 128


@dataclass(frozen=True)
class Descriptor:
    """One way to compare clips.

    Attributes:
        clips: A vector per frame (one for motion history) of every clip, float32 [N, T, D].
        distances: Queries [Q, T, D] and class means [C, T, D] to distances [Q, C].
    """

    clips: Float
    distances: Callable[[Float, Float], Float]


def describe(hog_pixels: NDArray[np.uint8], history_pixels: NDArray[np.uint8]) -> dict[str, Descriptor]:
    """All descriptors of clips [N, T, 64, 64, 3] as `HOG_CLIP` and `HISTORY_CLIP` make them.

    `centred` takes out the mean over all clips of the data set, without their labels.
    """
    hogs = np.stack([np.stack([hog(frame) for frame in clip[..., 0]]) for clip in hog_pixels])
    histories = np.stack([motion_history(clip[..., 1]) for clip in history_pixels])[:, None]
    return {
        "motion history": Descriptor(histories, euclidean),
        "HOG, OTAM": Descriptor(hogs, otam),
        "HOG, mean cosine": Descriptor(hogs, mean_cosine),
        "HOG, mean cosine, centred": Descriptor(hogs - hogs.mean(axis=(0, 1)), mean_cosine),
    }


def hog(grey: NDArray[np.uint8]) -> Float:
    """Histograms of oriented gradients after Dalal and Triggs of a picture [S, S], float32 [(S/8 - 1)^2 * 36].

    Cells of 8 pixels, 9 directions of 20 degrees between which a gradient is shared, blocks of 2 x 2 cells normalised
    by L2-Hys. OpenCV's own left it with version 5.
    """
    picture = grey.astype(np.float32)
    across, down = np.zeros_like(picture), np.zeros_like(picture)
    across[:, 1:-1] = picture[:, 2:] - picture[:, :-2]
    down[1:-1] = picture[2:] - picture[:-2]
    strength = np.hypot(across, down)
    place = np.rad2deg(np.arctan2(down, across)) % 180 / (180 / _DIRECTIONS)  # 0 is a gradient along the row
    first = np.floor(place).astype(np.int64)
    share = place - first
    cells = grey.shape[0] // _CELL
    histograms = np.zeros((_DIRECTIONS, cells, cells), dtype=np.float32)
    for direction in range(_DIRECTIONS):
        weight = np.where(first % _DIRECTIONS == direction, 1 - share, 0)
        weight = weight + np.where((first + 1) % _DIRECTIONS == direction, share, 0)
        histograms[direction] = (weight * strength).reshape(cells, _CELL, cells, _CELL).sum(axis=(1, 3))
    corners = [histograms[:, y : cells - 1 + y, x : cells - 1 + x] for y in (0, 1) for x in (0, 1)]
    blocks = np.concatenate(corners)  # (36, cells - 1, cells - 1)
    blocks = np.minimum(_normalised(blocks), _LARGEST)  # no single edge decides (Hys)
    return np.asarray(_normalised(blocks), dtype=np.float32).ravel()


def _normalised(blocks: Float) -> Float:
    """Columns of length 1, [36, h, w]; of an even surface they stay 0."""
    return blocks / np.sqrt((blocks**2).sum(axis=0) + 1e-5)


def motion_history(changes: NDArray[np.uint8]) -> Float:
    """When each pixel last moved, 0 never to 1 in the last frame, after Bobick and Davis: [T, S, S] -> [S * S].

    `changes` are the second of the motion channels: half the difference to the frame before, around 128.
    """
    moved = np.abs(changes.astype(np.int16) - _NEUTRAL) >= _MOVED
    times = np.arange(1, len(changes) + 1, dtype=np.float32) / len(changes)
    history = (moved * times[:, None, None]).max(axis=0)
    return np.asarray(cv2.blur(history, (5, 5)), dtype=np.float32).ravel()


def euclidean(query: Float, classes: Float) -> Float:
    """Root of the summed squares."""
    return np.linalg.norm(query[:, None] - classes[None], axis=(2, 3))


def otam(query: Float, classes: Float) -> Float:
    """OTAM in both directions, lambda 0.5, as the papers match frames."""
    return _view_distances(query, classes, otam_weight=1.0)


def mean_cosine(query: Float, classes: Float) -> Float:
    """One minus the cosine of the frames' means, in OTAM's units."""
    return _view_distances(query, classes, otam_weight=0.0)


def _view_distances(query: Float, classes: Float, otam_weight: float) -> Float:
    """By OTAM in both directions, the rest by the mean of frames."""
    one, other = (torch.from_numpy(values)[:, None] for values in (query, classes))
    distances = view_distances(one, other, otam_weight=otam_weight, mean_weight=1.0 - otam_weight)
    return np.asarray(distances[:, 0].numpy(), dtype=np.float32)
