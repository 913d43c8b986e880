"""A synthetic clip: one performance of an action, rendered frame by frame when frames are asked for.

Everything a frame depends on is drawn from the clip's seed before the first frame is rendered, so a frame has the same
pixels whatever was read before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.clips.source import ArrayPicture, FrameSource, Picture
from m2df_train.synthetic.body import Camera, sample_look
from m2df_train.synthetic.kinematics import JOINT, POSITION_CHANNELS, Array, Skeleton, Track, solve_scene
from m2df_train.synthetic.motion import Style
from m2df_train.synthetic.moves import follow, step_aside, wander, warped
from m2df_train.synthetic.props import HAND_HELD
from m2df_train.synthetic.scene import MARGIN, background, sample_film, smooth_path
from m2df_train.synthetic.stage import Stage, exposed, shadow
from m2df_train.synthetic.table import Action


def _sway(tracks: list[Track], times: Array, rng: np.random.Generator) -> None:
    """Add the small slow movements nobody can suppress, up to about 2 degrees."""
    for track in tracks:
        q = track.pose.q
        n = q.shape[1] - POSITION_CHANNELS
        amp = rng.uniform(0.0, 1.4) * np.abs(rng.standard_normal(n))
        amp[[0, 1]] *= 0.5
        phase = 2 * np.pi * (rng.uniform(0.15, 0.7, n) * times[:, None] + rng.random(n))
        q[:, POSITION_CHANNELS:] += amp * np.sin(phase)


class SyntheticClip(FrameSource):
    """Frame source that renders one performance of an action.

    Args:
        action: What is performed.
        seed: Everything else: performer, clothes, view, place, speed and film.
    """

    def __init__(self, action: Action, seed: int) -> None:
        self.action = action
        self.seed = seed
        rng = self._rng = np.random.default_rng([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, 77])
        self.fps = float(rng.choice([25.0, 25.0, 30.0, 29.97]))
        low, high = action.rate
        pace = rng.uniform(low, high) * np.exp(rng.normal(0, 0.06))
        if action.periodic:
            seconds = rng.uniform(1.2, 4.0) / pace
        else:
            idle = rng.uniform(0.0, 0.35, 2) * (rng.random(2) < 0.7)
            seconds = pace * (1 + idle.sum())
        self.n_frames = int(np.clip(round(seconds * self.fps), 30, 120))
        self.times: NDArray[np.float64] = np.arange(self.n_frames) / self.fps
        if action.periodic:
            uneven = rng.uniform(0, 0.05) * np.sin(2 * np.pi * (self.times * rng.uniform(0.2, 0.6) + rng.random()))
            self._phase = rng.random() + pace * (self.times + uneven)
        else:
            lead = idle[0] / (1 + idle.sum())
            spare = self.n_frames / self.fps - pace
            self._phase = np.clip((self.times - max(spare, 0.0) * lead / max(lead + idle[1], 1e-6)) / pace, 0.0, 1.0)
            self._phase = warped(self._phase, rng)
        self.width = int(rng.integers(112, 193))
        self.height = int(rng.integers(96, 157))

    def pictures(self, indices: NDArray[np.int64]) -> Iterator[Picture]:
        """See `FrameSource.pictures`."""
        for frame in self._stage.render(indices):
            yield ArrayPicture(frame)

    @property
    def mirrored(self) -> bool:
        """Whether the scene is flipped left to right."""
        return self._stage.flip < 0

    @cached_property
    def _stage(self) -> Stage:
        rng = np.random.default_rng(self._rng.integers(2**63))
        style = Style(rng, jitter=float(rng.uniform(0.06, 0.16)))
        tracks = self.action.program(self._phase, style)
        looks = [sample_look(rng, child=0.1 if len(tracks) == 1 else 0.02) for _ in tracks]
        for track, look in zip(tracks, looks, strict=True):
            track.body = look.body
        _sway(tracks, self.times, rng)
        if len(tracks) == 1 and not self.action.travels and rng.random() < 0.15:
            step_aside(tracks, self.times, rng)
        if not any(track.prop for track in tracks) and rng.random() < 0.12:  # what is held does not make the action
            tracks[0].prop = str(rng.choice(HAND_HELD))
        people = solve_scene(tracks)
        tilt = rng.uniform(0, 18) if rng.random() < 0.8 else rng.uniform(18, 35)
        camera = Camera(self._yaw(rng), float(tilt), float(rng.uniform(4, 14)))
        flip = -1.0 if self.action.mirrorable and rng.random() < 0.5 else 1.0
        scale, origin, pan = self._frame(rng, people, camera, flip)
        zoom = np.ones(self.n_frames)
        offset = np.zeros((self.n_frames, 2))
        if rng.random() < 0.3:
            offset = rng.uniform(0.3, 2.5) * smooth_path(rng, self.n_frames, int(rng.integers(3, 12)))
        if rng.random() < 0.2:
            offset = offset + np.linspace(-0.5, 0.5, self.n_frames)[:, None] * rng.normal(0, [10, 3])
        if rng.random() < 0.2:
            zoom = np.exp(np.linspace(-0.5, 0.5, self.n_frames) * rng.normal(0, 0.12))
        zooms = bool(np.any(zoom != 1))
        if not zooms:  # whole pixels, so that the background is cut out instead of resampled
            offset, pan = np.round(offset), np.round(pan)
        middle = np.array([self.width / 2, self.height / 2])
        shift = middle - (offset + middle) / zoom[:, None] + MARGIN
        moved = pan - pan.min(axis=0)
        view = None
        if zooms:
            view = np.zeros((self.n_frames, 2, 3))
            view[:, 0, 0] = view[:, 1, 1] = 1 / zoom
            view[:, :, 2] = shift + moved
        corner = np.round(MARGIN + moved - offset).astype(np.int64)
        horizon = origin[0, 1] - pan[:, 1].min() - rng.uniform(-0.03, 0.3) * self.height + MARGIN
        wide, high = (int(v) + 2 * MARGIN for v in middle * 2 + np.ptp(pan, axis=0))
        origin = middle + zoom[:, None] * (origin - pan - middle) + offset
        film = sample_film(rng, self.n_frames, self.height, self.width)
        backdrop = film.expose(background(rng, high, wide, horizon))
        looks = [exposed(look, film) for look in looks]
        return Stage(
            self.height,
            self.width,
            people,
            looks,
            [[t.prop] * self.n_frames for t in tracks],
            camera,
            flip,
            scale * zoom,
            origin,
            view,
            corner,
            backdrop,
            shadow(float(rng.uniform(0.1, 0.6)), float(scale.mean())) if rng.random() < 0.55 else None,
            film,
            tuple(rng.uniform(10, 245, 3).tolist()),
            np.arange(self.n_frames),
        )

    def _yaw(self, rng: np.random.Generator) -> float:
        """Turn of the scene: 0 shows a person from the right side, walking to the right; -90 from the front."""
        view = self.action.view
        if view == "any":
            return float(rng.choice([-90, -90, -60, -35, 0, 45, 90]) + rng.normal(0, 18))
        centre, spread = {"front": (-90.0, 20.0), "side": (0.0, 16.0), "pair": (0.0, 17.0)}[view]
        if self.action.travels and view == "side":
            spread = 12.0
        loose = 2.2 if rng.random() < 0.12 else 1.0
        return float(centre + rng.normal(0, spread * loose))

    def _frame(
        self, rng: np.random.Generator, people: list[Skeleton], camera: Camera, flip: float
    ) -> tuple[Array, Array, Array]:
        """Choose size and place of the people in the image.

        Returns:
            Pixels per body height [n], image position [n, 2] of the world origin, and pan of the background [n, 2].
        """
        joints = np.stack([p.joints for p in people])
        xy = camera.project(joints)[0] * np.array([flip, 1.0])
        w, h = self.width, self.height
        scale = h * rng.uniform(0.3, 0.92)
        middle = xy[:, :, JOINT["pelvis"], 0].mean(axis=0)
        pan = np.zeros((self.n_frames, 2))
        if np.ptp(middle) > 0.25 and rng.random() < 0.4:
            pan = follow(middle, self.times, rng)
        elif rng.random() < 0.25:
            pan = wander(self.times, rng)
        moved = xy - pan[:, None]
        low = moved.min(axis=(0, 1, 2)) - np.array([0.05, 0.07])
        high = moved.max(axis=(0, 1, 2)) + np.array([0.05, 0.03])
        tight = rng.uniform(0.95, 1.15) if rng.random() < 0.2 or self.action.travels else 0.97
        size = high - low
        scale = min(scale, tight * w / size[0], (1.06 if rng.random() < 0.1 else 0.98) * h / size[1])
        spare = np.array([w, h]) - scale * size
        if self.action.upper and rng.random() < 0.12:
            scale = h * rng.uniform(1.1, 1.7)
            spare = np.array([w - scale * size[0], rng.uniform(0.02, 0.12) * h])
            corner = np.array([spare[0] * rng.uniform(0.3, 0.7), spare[1]])
        else:
            corner = spare * np.array([rng.uniform(0.02, 0.98), rng.beta(2.0, 1.0)])
        origin = np.tile(corner - scale * low, (self.n_frames, 1))
        return np.full(self.n_frames, scale), origin, pan * scale
