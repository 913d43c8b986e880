"""Which frames of a clip a model sees: the one place where the rules of frame sampling live.

Training and deployment both call `sample_indices`, so a model meets at run time the frames it was
trained on. Every rule works for every clip length from one frame upwards.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Sampler = Literal["uniform", "segment", "segment_center", "linspace", "dense_clip", "grid"]

# CLIP-FSAR's Kinetics loader: one clip of 35 steps per frame at a target rate of 12 frames a second.
_DENSE_INTERVAL = 35
_DENSE_RATE = 12.0
# Below 40 frames the clip's end falls before its start (60 frames already cover only a third).
_DENSE_SHORTEST = 40
# Timestamps of a constant-rate file are rounded to 1 ms in Matroska; a larger wobble is a real variable rate.
_ROUNDING_SECONDS = 0.002
# A frame that begins at a moment of the grid, rounded to 1 ms, is on screen at that moment.
_GRID_ROUNDING = 0.0005


def sample_indices(
    rule: Sampler,
    n: int,
    frames: int,
    *,
    fps: float = 25.0,
    times: NDArray[np.float64] | None = None,
    duration: float | None = None,
    rng: np.random.Generator | None = None,
) -> NDArray[np.int64]:
    """Chooses `frames` of a clip's `n` frames, in order of time.

    * `uniform`: frame floor((i + 1/2) n / T). On a variable-rate clip (`times` given) the same rule in
      seconds: the frame on screen at (i + 1/2) / T of the duration.
    * `segment`: one random frame in each of T equal segments (CLIP-FSAR). Needs `rng`.
    * `segment_center`: the middle frame of each segment, the deterministic form of the above.
    * `linspace`: CLIP-M2DF's rule; random ends with `rng`, fixed ends without.
    * `dense_clip`: CLIP-FSAR's rule for Kinetics, by frame rate; random start with `rng`, middle without.
    * `grid`: the frame on screen at (i + 1/2) / T of the duration. Windows of a recording that begin a multiple of
      duration / T apart choose the same frames where they overlap.

    Args:
        rule: Name of the rule.
        n: Frames in the clip, at least 1.
        frames: How many to choose (T), at least 1. Frames repeat where the clip has fewer.
        fps: Frames per second of the clip; only `dense_clip` reads it.
        times: Presentation times in seconds from the clip's start, [n]; only `uniform` and `grid` read them.
        duration: Seconds from the clip's start to its end; only `grid` reads it. None takes n / fps.
        rng: Source of randomness of the training form.

    Returns:
        int64 [T], ascending, each in 0..n-1.

    Raises:
        ValueError: An unknown rule, n or frames below 1, or `segment` without `rng`.
    """
    if rule not in get_args(Sampler):
        raise ValueError(f"unknown sampling rule {rule!r}: choose one of {', '.join(get_args(Sampler))}")
    if n < 1 or frames < 1:
        raise ValueError(f"cannot sample {frames} of {n} frames: both must be at least 1")
    if rule == "uniform":
        return _uniform(n, frames, times)
    if rule == "grid":
        return _grid(n, frames, fps, times, duration)
    if rule == "segment":
        if rng is None:
            raise ValueError("the 'segment' rule is random and needs rng; 'segment_center' is its fixed form")
        return _segment(n, frames, rng)
    if rule == "segment_center":
        return _segment(n, frames, None)
    if rule == "linspace":
        return _linspace(n, frames, rng)
    return _dense_clip(n, frames, fps, rng)


def _uniform(n: int, frames: int, times: NDArray[np.float64] | None) -> NDArray[np.int64]:
    steps = np.arange(frames, dtype=np.int64)
    if times is None or n < 3 or _constant_rate(times):
        return (2 * steps + 1) * n // (2 * frames)  # exact in integers
    start = float(times[0])
    span = float(times[-1]) - start
    duration = span + span / (n - 1)  # the last frame stays on screen for a mean interval
    moments = start + (steps + 0.5) * duration / frames
    return np.clip(np.searchsorted(times, moments, side="right") - 1, 0, n - 1).astype(np.int64)


def _grid(
    n: int, frames: int, fps: float, times: NDArray[np.float64] | None, duration: float | None
) -> NDArray[np.int64]:
    moments = (np.arange(frames) + 0.5) * (n / fps if duration is None else duration) / frames
    shown = np.arange(n) / fps if times is None else times
    return np.clip(np.searchsorted(shown, moments + _GRID_ROUNDING, side="right") - 1, 0, n - 1).astype(np.int64)


def _constant_rate(times: NDArray[np.float64]) -> bool:
    """Whether the times differ from an even grid by no more than container rounding."""
    interval = (times[-1] - times[0]) / (len(times) - 1)
    even = times[0] + interval * np.arange(len(times))
    return bool(np.abs(times - even).max() <= min(_ROUNDING_SECONDS, 0.25 * interval))


def _segment(n: int, frames: int, rng: np.random.Generator | None) -> NDArray[np.int64]:
    steps = np.arange(frames, dtype=np.int64)
    if n < frames:
        return steps * n // frames
    length = n // frames
    if rng is None:
        return steps * length + length // 2
    return steps * length + rng.integers(0, length, size=frames)


def _linspace(n: int, frames: int, rng: np.random.Generator | None) -> NDArray[np.int64]:
    if n == frames:
        return np.arange(n, dtype=np.int64)
    first, last = 1, n - 2
    if rng is not None:
        slack = int(min(5, (n - frames) / 2))
        first, last = 0, n - 1
        if slack >= 1:
            first, last = int(rng.integers(0, slack + 1)), int(rng.integers(n - 1 - slack, n))
    if last - first < frames:
        first, last = 0, n - 1
    return np.linspace(first, last, frames).astype(np.int64)


def _dense_clip(n: int, frames: int, fps: float, rng: np.random.Generator | None) -> NDArray[np.int64]:
    length = frames * _DENSE_INTERVAL * fps / _DENSE_RATE
    if length > n:
        length = float(n // frames * frames)
    if n < _DENSE_SHORTEST or length <= _DENSE_INTERVAL:
        return _segment(n, frames, None)
    room = max(n - length + 1, 0.0)
    start = room / 2 if rng is None else float(rng.uniform(0.0, room))
    ends = np.linspace(start, start + length - _DENSE_INTERVAL, frames)
    return np.clip(ends, 0, n - 1).astype(np.int64)
