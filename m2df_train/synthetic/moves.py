"""What varies between performances of one action beside its style: timing, steps aside, and the camera's path."""

from __future__ import annotations

import numpy as np

from m2df_train.synthetic.kinematics import Array, Track
from m2df_train.synthetic.motion import ramp


def warped(phase: Array, rng: np.random.Generator) -> Array:
    """A one-shot phase [M] in 0..1 with its middle earlier or later: no moment of an action has a fixed time."""
    middle = float(np.clip(0.5 + 0.09 * rng.standard_normal(), 0.3, 0.7))
    power = np.log(0.5) / np.log(middle)
    return np.asarray(phase**power)


def step_aside(tracks: list[Track], times: Array, rng: np.random.Generator) -> None:
    """Let a single performer drift through the scene, as who runs to a ball does; the camera may follow."""
    end = float(times[-1])
    start = rng.uniform(0, 0.5)
    share = ramp(times / max(end, 1e-6), start, start + rng.uniform(0.3, 0.5))
    far = rng.normal(0, [0.45, 0.2])
    for track in tracks:
        track.pose.add({"x": far[0] * (share - 0.5), "z": far[1] * (share - 0.5)})


def follow(centre: Array, times: Array, rng: np.random.Generator) -> Array:
    """Path [n, 2] in body heights of a camera that keeps people in view whose middle is at `centre` [n]."""
    path = np.polyval(np.polyfit(times, centre, 3), times)
    pan = np.zeros((len(times), 2))
    pan[:, 0] = rng.uniform(0.7, 1.0) * (path - path.mean())
    return pan


def wander(times: Array, rng: np.random.Generator) -> Array:
    """Path [n, 2] in body heights of a camera that pans, and tilts a little, in one smooth move."""
    unit = times / max(float(times[-1]), 1e-6)
    start = rng.uniform(-0.2, 0.5)
    share = ramp(unit, start, start + rng.uniform(0.4, 1.1)) if rng.random() < 0.7 else unit
    far = rng.choice([-1.0, 1.0], 2) * rng.uniform(0.1, [1.3, 0.25])
    return np.asarray((share - share.mean())[:, None] * far)
