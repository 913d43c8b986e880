"""Where a clip plays and how it was filmed: backgrounds, camera movement and image degradations."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from m2df_train.synthetic.kinematics import Array
from m2df_train.synthetic.places import Canvas, furnish

Image = NDArray[np.uint8]
MARGIN = 12  # pixels of background outside the frame, room for camera shake
_GRAIN = (61, 67)  # rows and columns of grain beyond the frame: places from which a frame takes its own
_BANK = np.random.default_rng(20240229).standard_normal((640, 640, 3)).astype(np.float32)


def _noise(rng: np.random.Generator, height: int, width: int, octaves: int, decay: float) -> Canvas:
    """Smooth noise [height, width] of about unit range."""
    half = (width // 2 + 1, height // 2 + 1)  # drawn at half size: nothing finer survives the film anyway
    out = np.zeros(half[::-1], dtype=np.float32)
    for k in range(octaves):
        cells = 3 * 2**k
        grid = rng.standard_normal((cells, cells + 1), dtype=np.float32)
        out += np.float32(decay**k) * cv2.resize(grid, half, interpolation=cv2.INTER_CUBIC)
    return np.asarray(cv2.resize(out, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.float32)


def _colour(rng: np.random.Generator) -> Array:
    grey = rng.uniform(20, 235)
    return np.clip(grey + rng.normal(0, rng.choice([4.0, 14.0, 40.0]), 3), 5, 250)


def _surface(rng: np.random.Generator, height: int, width: int) -> Canvas:
    """A wall or ground: flat, gradient, noise, or a regular pattern, float32 [height, width, 3]."""
    out = np.empty((height, width, 3), dtype=np.float32)
    out[:] = _colour(rng)
    kind = rng.random()
    if kind < 0.35:
        ramp = np.linspace(-1, 1, height)[:, None] * rng.normal() + np.linspace(-1, 1, width)[None] * rng.normal()
        out += (rng.uniform(4, 25) * ramp).astype(np.float32)[..., None]
    if kind > 0.2:
        layer = _noise(rng, height, width, int(rng.integers(2, 6)), rng.uniform(0.45, 0.9))
        tint = (rng.uniform(2, 22) * (1.0 + rng.normal(0, 0.25, 3))).astype(np.float32)
        out += layer[..., None] * tint
    if rng.random() < 0.25:
        _pattern(out, rng)
    return out


def _pattern(out: Canvas, rng: np.random.Generator) -> None:
    """Bricks, tiles, planks or a fence."""
    height, width = out.shape[:2]
    step_y, step_x = int(rng.integers(5, 26)), int(rng.integers(8, 40))
    ink = tuple(float(c) for c in np.clip(out.mean((0, 1)) + rng.choice([-1, 1]) * rng.uniform(12, 60), 0, 255))
    kind = rng.integers(4)
    if kind != 1:
        for y in range(0, height, step_y):
            cv2.line(out, (0, y), (width, y), ink, 1)
    if kind == 2:
        return
    for row, y in enumerate(range(0, height, step_y if kind == 0 else height)):
        low = y + (step_y if kind == 0 else height)
        for x in range((row % 2) * step_x // 2 if kind == 0 else 0, width, step_x):
            cv2.line(out, (x, y), (x, low), ink, 1)


def _clutter(out: Canvas, rng: np.random.Generator, horizon: int) -> None:
    """Static things in the scene: boxes, doors, bushes, poles."""
    height, width = out.shape[:2]
    for _ in range(rng.integers(1, 9)):
        colour = tuple(float(c) for c in _colour(rng))
        x, w = int(rng.integers(-10, width)), int(rng.integers(3, width // 3))
        base = horizon + int(rng.integers(-height // 4, height // 8))
        h = int(rng.integers(5, height // 2))
        kind = rng.integers(4)
        if kind == 0:
            cv2.rectangle(out, (x, base - h), (x + w, base), colour, -1)
        elif kind == 1:
            cv2.ellipse(out, (x, base), (w, h // 2), float(rng.uniform(-20, 20)), 0, 360, colour, -1)
        elif kind == 2:
            cv2.line(out, (x, 0), (x + int(rng.integers(-3, 4)), base), colour, int(rng.integers(1, 6)))
        else:
            corners = np.stack([rng.integers(x, x + w + 1, 5), rng.integers(base - h, base + 1, 5)], -1).astype(
                np.int32
            )
            cv2.fillConvexPoly(out, cv2.convexHull(corners), colour)


def background(rng: np.random.Generator, height: int, width: int, horizon: float) -> Image:
    """Draw a backdrop uint8 [height, width, 3]; the ground starts at row `horizon` where there is one."""
    out = _surface(rng, height, width)
    y = int(np.clip(horizon, 0, height))
    if rng.random() < 0.75 and 0 < y < height:
        out[y:] = _surface(rng, height - y, width)
    furnish(out, rng, y)
    if rng.random() < 0.55:
        _clutter(out, rng, y)
    if rng.random() < 0.5:
        k = int(rng.choice([3, 5, 9]))
        out = np.asarray(cv2.blur(out, (k, k)), dtype=np.float32)
    contrast = rng.uniform(0.35, 1.1)
    return np.asarray(cv2.addWeighted(out, contrast, out, 0, (1 - contrast) * float(out.mean()), dtype=cv2.CV_8U))


def smooth_path(rng: np.random.Generator, frames: int, step: int) -> Array:
    """Smooth random walk [frames, 2] of unit size whose direction changes every `step` frames."""
    points = rng.standard_normal((2, frames // step + 3)).astype(np.float32)
    fine = cv2.resize(points, (points.shape[1] * step, 2), interpolation=cv2.INTER_CUBIC)
    return np.asarray(fine[:, step : step + frames].T, dtype=np.float64)


@dataclass(frozen=True)
class Film:
    """Degradations of one clip, applied after drawing."""

    lut: Image | None
    grey: bool
    blur: float
    noise: NDArray[np.int16] | None
    jpeg: int
    flicker: Array  # [n] gain per frame

    def expose(self, image: Image) -> Image:
        """Apply gain, gamma and colour cast, which act on each colour alone."""
        return image if self.lut is None else np.asarray(cv2.LUT(image, self.lut), dtype=np.uint8)

    def develop(self, image: Image, index: int, height: int, width: int) -> Image:
        """Degrade one frame; the noise depends on the frame index only."""
        if self.blur > 0:
            image = np.asarray(cv2.GaussianBlur(image, (0, 0), self.blur), dtype=np.uint8)
        if self.flicker[index] != 1.0:
            image = np.asarray(cv2.convertScaleAbs(image, alpha=float(self.flicker[index])), dtype=np.uint8)
        if self.noise is not None:
            y, x = (index * 37) % _GRAIN[0], (index * 53) % _GRAIN[1]
            grain = self.noise[y : y + height, x : x + width]
            image = np.asarray(cv2.add(image, grain, dtype=cv2.CV_8U), dtype=np.uint8)
        if self.grey:
            image = np.repeat(np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[..., None], 3, axis=2)
        if self.jpeg:
            code = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, self.jpeg])[1]
            image = np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR), dtype=np.uint8)
        return image


def sample_film(rng: np.random.Generator, frames: int, height: int, width: int) -> Film:
    """Draw the degradations of a clip."""
    lut = None
    if rng.random() < 0.75:
        x = np.linspace(0, 1, 256)[:, None]
        gain = rng.uniform(0.65, 1.2) * np.exp(rng.normal(0, 0.06, 3))
        lifted = rng.uniform(0, 0.12) + (1 - rng.uniform(0, 0.15)) * gain * x ** np.exp(rng.normal(0, 0.22))
        lut = np.clip(255 * lifted, 0, 255).astype(np.uint8).reshape(256, 1, 3)
    noise = None
    if rng.random() < 0.5:
        bank, (high, wide) = _BANK, (height + _GRAIN[0], width + _GRAIN[1])
        if high >= len(bank) or wide >= len(bank):  # grain repeats unseen
            times = 1 + max(high, wide) // len(bank)
            bank = np.tile(bank, (times, times, 1))
        y, x0 = rng.integers(0, len(bank) - high), rng.integers(0, len(bank) - wide)
        patch = bank[y : y + high, x0 : x0 + wide] * np.float32(rng.uniform(1, 9))
        if rng.random() < 0.5:
            patch = np.repeat(patch[..., :1], 3, axis=2)
        noise = patch.astype(np.int16)
    flicker = np.ones(frames)
    if rng.random() < 0.15:
        flicker = 1 + rng.uniform(0.01, 0.06) * rng.standard_normal(frames)
    return Film(
        lut=lut,
        grey=bool(rng.random() < 0.1),
        blur=float(rng.uniform(0.4, 1.2)) if rng.random() < 0.4 else 0.0,
        noise=noise,
        jpeg=int(rng.integers(25, 95)) if rng.random() < 0.3 else 0,
        flicker=flicker,
    )
