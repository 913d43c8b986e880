"""Tools to write motions with: the personal style of a clip, key poses, periodic curves, hand placement and jumps."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from m2df_train.synthetic.kinematics import CHANNELS, INDEX, STAND, Array, Pose, Track, channel_vector

Arm = tuple[float, float, float, float]
Program = Callable[[Array, "Style"], list[Track]]
Key = tuple[float, dict[str, float]]
_POOL = 512
# Channels that key-pose jitter leaves alone, because ground contact or the path depends on them.
_EXACT = np.array([name in ("x", "z", "lift", "yaw", "pitch") for name in CHANNELS])


class Style:
    """How one performer moves: reproducible named random numbers and a jitter level for key poses."""

    def __init__(self, rng: np.random.Generator, jitter: float = 0.12) -> None:
        self._uniform = rng.random(_POOL)
        self._normal = np.clip(rng.standard_normal(_POOL), -2.0, 2.0)
        self.jitter = jitter
        self.amp = float(np.exp(0.8 * jitter * self._normal[0]))

    def u(self, key: str, low: float, high: float) -> float:
        """Uniform number in [low, high] that belongs to `key`."""
        return low + (high - low) * float(self._uniform[zlib.crc32(key.encode()) % _POOL])

    def vary(self, key: str, value: float, spread: float = 1.0) -> float:
        """`value` changed by the style jitter that belongs to `key`."""
        return value * (1.0 + spread * self.jitter * float(self._normal[zlib.crc32(key.encode()) % _POOL]))

    def chance(self, key: str, probability: float) -> bool:
        """Whether the event `key` happens for this performer."""
        return self.u(key, 0.0, 1.0) < probability

    def noise(self, start: int, count: int) -> Array:
        """`count` clipped normal numbers that start at position `start` of the pool."""
        return np.asarray(self._normal[(start + np.arange(count)) % _POOL])


def hand(forward: float, side: float, up: float, pole: tuple[float, float, float] = (-0.2, 0.6, -1.0)) -> Arm:
    """Arm angles that bring the hand to a point relative to the shoulder, in units of arm length.

    `side` counts outwards from the body and `pole` is the direction in which the elbow points.
    """
    v = np.array([forward, up, side], dtype=np.float64)
    reach = min(float(np.linalg.norm(v)), 0.999)
    v /= np.linalg.norm(v)
    half = np.arccos(max(reach, 0.05))
    w = np.array([pole[0], pole[2], pole[1]])
    w = w - (w @ v) * v
    w /= np.linalg.norm(w) + 1e-9
    upper = np.cos(half) * v + np.sin(half) * w
    lower = np.cos(half) * v - np.sin(half) * w
    elev, plane = np.arccos(np.clip(-upper[1], -1, 1)), np.arctan2(upper[2], upper[0])
    bend = lower - np.cos(2 * half) * upper
    raised = np.array([np.cos(elev) * np.cos(plane), np.sin(elev), np.cos(elev) * np.sin(plane)])
    medial = np.array([np.sin(plane), 0.0, -np.cos(plane)])
    roll = np.arctan2(bend @ medial, bend @ raised)
    e, p, k, r = np.rad2deg([elev, plane, 2 * half, roll])
    return float(e), float(p), float(k), float(r)


def key(
    at: float,
    *more: Mapping[str, float],
    arms: Arm | None = None,
    right: Arm | None = None,
    left: Arm | None = None,
    legs: tuple[float, float] | None = None,
    leg_r: tuple[float, float] | None = None,
    leg_l: tuple[float, float] | None = None,
    **channels: float,
) -> Key:
    """A key pose at phase `at`: standing, changed by arm angles, leg (hip flexion, knee) pairs and channels.

    `more` are mappings of channels, overruled by the channels given by name.
    """
    values: dict[str, float] = dict(STAND)
    for side, arm, leg in (("r", right or arms, leg_r or legs), ("l", left or arms, leg_l or legs)):
        if arm is not None:
            values |= {f"{side}_{n}": v for n, v in zip(("elev", "plane", "elbow", "roll"), arm, strict=True)}
        if leg is not None:
            values |= {f"{side}_flex": leg[0], f"{side}_knee": leg[1]}
    for mapping in more:
        values |= mapping
    return at, values | channels


def curve(phase: Array, times: Array, values: Array, loop: bool = False) -> Array:
    """Monotone cubic interpolation (Fritsch and Carlson) of `values` [K, C] at `phase` [M] -> [M, C]."""
    if loop:
        phase = np.mod(phase, 1.0)
        times = np.concatenate([times[-2:] - 1.0, times, times[:2] + 1.0])
        values = np.concatenate([values[-2:], values, values[:2]])
    h = np.diff(times)[:, None]
    slope = np.diff(values, axis=0) / h
    tangent = np.zeros_like(values)
    product = slope[:-1] * slope[1:]
    total = np.where(product > 0, slope[:-1] + slope[1:], 1.0)
    tangent[1:-1] = np.where(product > 0, 2 * product / total, 0.0)
    x = np.clip(phase, times[0], times[-1])
    i = np.clip(np.searchsorted(times, x, side="right") - 1, 0, len(times) - 2)
    s = ((x - times[i]) / h[i, 0])[:, None]
    first = (1 + 2 * s) * (1 - s) ** 2 * values[i] + s * (1 - s) ** 2 * h[i] * tangent[i]
    return np.asarray(first + s * s * (3 - 2 * s) * values[i + 1] + s * s * (s - 1) * h[i] * tangent[i + 1])


def play(phase: Array, keys: Sequence[Key], style: Style, loop: bool = False, salt: int = 0) -> Pose:
    """Pose through key poses, with the amplitude and timing jitter of `style`."""
    times = np.array([at for at, _ in keys])
    values = np.stack([channel_vector(v) for _, v in keys])
    noise = style.noise(7 + 31 * salt, values.size).reshape(values.shape)
    shared = style.noise(101 + 17 * salt, values.shape[1])
    rest = channel_vector(STAND)
    wobble = style.jitter * (0.5 * noise + 0.7 * shared) * (values - rest) + 20.0 * style.jitter * 0.6 * shared
    values = values + np.where(_EXACT, 0.0, wobble)
    for side in "rl":  # neither knees nor elbows bend backwards
        for name in ("knee", "elbow"):
            column = values[:, INDEX[f"{side}_{name}"]]
            np.clip(column, 0.0, 150.0, out=column)
    if len(times) > 2:
        gaps = np.diff(times) * np.exp(1.2 * style.jitter * style.noise(53 + 13 * salt, len(times) - 1))
        span = times[-1] - times[0]
        times = times[0] + np.concatenate([[0.0], np.cumsum(gaps)]) * span / gaps.sum()
    return Pose(curve(phase, times, values, loop))


def cyclic(phase: Array, table: Sequence[float]) -> Array:
    """Smooth periodic curve through equally spaced values (Catmull-Rom), at `phase` [M] in cycles."""
    v = np.asarray(table, dtype=np.float64)
    n = len(v)
    x = np.mod(phase, 1.0) * n
    i = x.astype(np.int64)
    s = x - i
    a, b, c, d = (v[(i + k) % n] for k in (-1, 0, 1, 2))
    return np.asarray(b + 0.5 * s * (c - a + s * (2 * a - 5 * b + 4 * c - d + s * (3 * (b - c) + d - a))))


def wave(phase: Array, shift: float = 0.0) -> Array:
    """Sine of `phase` in cycles."""
    return np.asarray(np.sin(2 * np.pi * (phase + shift)))


def pulse(phase: Array, sharp: float = 1.0) -> Array:
    """Periodic bump from 0 to 1 and back within each cycle; larger `sharp` makes it narrower."""
    return np.asarray((0.5 - 0.5 * np.cos(2 * np.pi * phase)) ** sharp)


def ramp(phase: Array, start: float, end: float) -> Array:
    """Smooth step from 0 at `start` to 1 at `end`."""
    s = np.clip((phase - start) / (end - start), 0.0, 1.0)
    return np.asarray(s * s * (3 - 2 * s))


def hold(phase: Array, rise: tuple[float, float], fall: tuple[float, float]) -> Array:
    """Smooth step up during `rise` and down again during `fall`."""
    return ramp(phase, *rise) * (1.0 - ramp(phase, *fall))


def ballistic(phase: Array, start: float, end: float) -> Array:
    """Parabola of height 1 between `start` and `end`, zero elsewhere (free flight)."""
    s = np.clip((phase - start) / (end - start), 0.0, 1.0)
    return 4.0 * s * (1.0 - s)


def arm_channels(side: str, angles: Mapping[str, Array | float]) -> dict[str, Array | float]:
    """Prefix arm channel names with the side, "r" or "l"."""
    return {f"{side}_{name}": value for name, value in angles.items()}


def solo(pose: Pose, prop: str = "") -> list[Track]:
    """One person alone in the scene."""
    return [Track(pose, prop=prop)]
