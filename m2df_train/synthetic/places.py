"""Detailed places: stands full of people, boards with lettering, the lines of a court, grain of the ground."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from m2df_train.synthetic.kinematics import Array

Canvas = NDArray[np.float32]
_GRAIN = np.random.default_rng(20240301).standard_normal((512, 512)).astype(np.float32)
_LETTERS = "ABCDEFGHIKLMNOPRSTUVWXYZ0123456789"


def furnish(out: Canvas, rng: np.random.Generator, horizon: int) -> None:
    """Give a backdrop [height, width, 3] some of these, in place; the ground starts at row `horizon`."""
    high = out.shape[0]
    if rng.random() < 0.4:
        _grain(out, rng)
    if rng.random() < 0.25:
        bottom = int(np.clip(horizon - rng.uniform(0, 0.3) * high, 0, high))
        _stands(out[max(0, bottom - int(rng.uniform(0.15, 0.7) * high)) : bottom], rng)
    if rng.random() < 0.2:
        _board(out, rng, horizon)
    if rng.random() < 0.2:
        _court(out, rng, horizon)


def _grain(out: Canvas, rng: np.random.Generator) -> None:
    """Fine texture of asphalt, grass or plaster, which moves with the scene."""
    height, width = out.shape[:2]
    cell = int(rng.integers(1, 4))
    y, x = rng.integers(0, 64, 2)
    patch = _GRAIN[y : y + -(-height // cell), x : x + -(-width // cell)]
    full = cv2.resize(patch, (width, height), interpolation=cv2.INTER_LINEAR)
    out += np.float32(rng.uniform(2, 12)) * full[..., None]


def _stands(rows: Canvas, rng: np.random.Generator) -> None:
    """Spectators or leaves: small blobs of many colours."""
    height, width = rows.shape[:2]
    if height < 6:
        return
    cell = float(rng.uniform(1.5, 5))
    small = (max(2, int(width / cell)), max(2, int(height / cell)))
    values = rng.uniform(20, 190) + rng.uniform(10, 55) * rng.standard_normal((small[1], small[0], 3), dtype=np.float32)
    values = values + rng.uniform(0, 20) * rng.standard_normal((small[1], small[0], 1), dtype=np.float32)
    way = int(rng.choice([cv2.INTER_NEAREST, cv2.INTER_LINEAR]))
    rows[:] = cv2.resize(values.astype(np.float32), (width, height), interpolation=way)


def _board(out: Canvas, rng: np.random.Generator, horizon: int) -> None:
    """A band with lettering behind the people."""
    height, width = out.shape[:2]
    depth = int(rng.uniform(0.06, 0.2) * height)
    top = int(np.clip(horizon - rng.uniform(0, 0.5) * height, 0, height - depth))
    band = np.empty((depth, width, 3), dtype=np.uint8)
    band[:] = rng.integers(10, 240, 3)
    ink, x = _colour(rng.uniform(10, 250, 3)), int(rng.integers(-10, 20))
    while x < width and depth > 3:
        word = "".join(rng.choice(list(_LETTERS), int(rng.integers(3, 9))))
        cv2.putText(band, word, (x, int(0.75 * depth)), cv2.FONT_HERSHEY_SIMPLEX, depth / 40, ink, 1 + int(depth > 20))
        x += int(depth * 0.55 * len(word) + rng.integers(5, 40))
    out[top : top + depth] = band


def _court(out: Canvas, rng: np.random.Generator, horizon: int) -> None:
    """Lines on the ground that run to a vanishing point, lines across, and a net."""
    height, width = out.shape[:2]
    ink, thick = _colour(rng.uniform(150, 255) * np.ones(3)), int(rng.integers(1, 3))
    centre = np.array([rng.uniform(0.2, 0.8) * width, horizon - rng.uniform(0.1, 1.5) * height])
    for foot in rng.uniform(-0.5, 1.5, int(rng.integers(1, 5))) * width:
        start = centre + (np.array([foot, height]) - centre) * (horizon - centre[1]) / (height - centre[1] + 1e-6)
        cv2.line(out, tuple(start.astype(int).tolist()), (int(foot), height), ink, thick)
    for y in horizon + rng.random(int(rng.integers(1, 4))) * (height - horizon):
        cv2.line(out, (0, int(y)), (width, int(y + rng.normal(0, 3))), ink, thick)
    if rng.random() < 0.4:
        y, deep = int(horizon + rng.uniform(-0.1, 0.3) * height), int(rng.uniform(0.03, 0.1) * height)
        out[max(y, 0) : max(y + deep, 0)] *= np.float32(rng.uniform(0.3, 0.8))
        cv2.line(out, (0, y), (width, y), ink, thick)


def _colour(value: Array) -> tuple[float, ...]:
    return tuple(float(v) for v in np.clip(value, 0, 255))
