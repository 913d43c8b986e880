"""A synthetic clip: one performance of an action, rendered frame by frame when frames are asked for.

Everything a frame depends on is drawn from the clip's seed before the first frame is rendered, so a frame has the same
pixels whatever was read before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from m2df_runtime.clips.source import ArrayPicture, FrameSource, Picture
from m2df_train.synthetic.body import Camera, Look, draw, person_shapes, sample_look
from m2df_train.synthetic.kinematics import JOINT, POSITION_CHANNELS, Array, Skeleton, Track, solve_scene
from m2df_train.synthetic.motion import Style
from m2df_train.synthetic.moves import follow, step_aside, wander, warped
from m2df_train.synthetic.props import HAND_HELD, prop_shapes
from m2df_train.synthetic.scene import MARGIN, Film, Image, background, sample_film, smooth_path
from m2df_train.synthetic.table import Action

_GROUNDED = [JOINT[name] for name in ("pelvis", "r_ankle", "l_ankle")]


@dataclass(frozen=True)
class _Stage:
    """Everything needed to draw any frame of a clip."""

    people: list[Skeleton]
    looks: list[Look]
    props: list[str]
    camera: Camera
    flip: float
    scale: Array  # [n] pixels per body height
    origin: Array  # [n, 2]
    view: Array | None  # [n, 2, 3] frame to background maps of a zooming camera, else None
    corner: NDArray[np.int64]  # [n, 2] first column and row of the background in view
    backdrop: Image
    shadow: NDArray[np.uint16] | None  # [h, w, 1] gain in 1/256 around the feet
    film: Film
    prop_colour: tuple[float, float, float]


def _sway(tracks: list[Track], times: Array, rng: np.random.Generator) -> None:
    """Add the small slow movements nobody can suppress, up to about 2 degrees."""
    for track in tracks:
        q = track.pose.q
        n = q.shape[1] - POSITION_CHANNELS
        amp = rng.uniform(0.0, 1.4) * np.abs(rng.standard_normal(n))
        amp[[0, 1]] *= 0.5
        phase = 2 * np.pi * (rng.uniform(0.15, 0.7, n) * times[:, None] + rng.random(n))
        q[:, POSITION_CHANNELS:] += amp * np.sin(phase)


def _shadow(depth: float, scale: float) -> NDArray[np.uint16]:
    """Gain of an elliptic shadow that takes away `depth` of the light in its middle."""
    half_w, half_h = int(0.24 * scale) + 2, int(0.07 * scale) + 2
    x, y = (np.arange(-half, half) / half for half in (half_w, half_h))
    dark = depth * np.maximum(1 - x[None] ** 2 - y[:, None] ** 2, 0)
    return np.asarray(np.rint(256 * (1 - dark)), dtype=np.uint16)[..., None]


def _exposed(look: Look, film: Film) -> Look:
    """Return the look with its colours as the film shows them."""

    def tone(colours: Array) -> Array:
        flat = np.clip(colours, 0, 255).astype(np.uint8).reshape(1, -1, 3)
        return film.expose(flat).reshape(colours.shape).astype(np.float64)

    return replace(look, colours=tone(look.colours), hair=tone(look.hair), shirt=tone(look.shirt), hips=tone(look.hips))


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
        for frame in self._rendered(indices):
            yield ArrayPicture(frame)

    def _rendered(self, frames: NDArray[np.int64]) -> Image:
        """uint8 [M, H, W, 3] RGB."""
        out = np.empty((len(frames), self.height, self.width, 3), dtype=np.uint8)
        s = self._stage
        drawings = [
            person_shapes(person, look, s.camera, s.scale[frames], s.origin[frames], frames, s.flip)
            for person, look in zip(s.people, s.looks, strict=True)
        ]
        feet = [self._feet(person, frames).tolist() for person in s.people]
        for m, index in enumerate(frames.tolist()):
            image = self._backdrop(index)
            shapes = [shape for drawing in drawings for shape in drawing[m]]
            for person, prop, below in zip(s.people, s.props, feet, strict=True):
                self._cast_shadow(image, *below[m])
                if prop:
                    xy, depth, _ = s.camera.project(person.joints[index])
                    xy = xy * (s.scale[index] * np.array([s.flip, 1.0])) + s.origin[index]
                    order = float(depth[JOINT["r_hand"]]) - 0.2
                    shapes += prop_shapes(prop, xy, order, float(s.scale[index]), s.prop_colour)
            draw(image, shapes)
            out[m] = s.film.develop(image, index, self.height, self.width)
        return out

    @property
    def mirrored(self) -> bool:
        """Whether the scene is flipped left to right."""
        return self._stage.flip < 0

    def _backdrop(self, index: int) -> Image:
        s = self._stage
        if s.view is None:
            high, wide = s.backdrop.shape[:2]
            x = min(max(int(s.corner[index, 0]), 0), wide - self.width)
            y = min(max(int(s.corner[index, 1]), 0), high - self.height)
            return s.backdrop[y : y + self.height, x : x + self.width].copy()
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        size = (self.width, self.height)
        warped = cv2.warpAffine(s.backdrop, s.view[index], size, flags=flags, borderMode=cv2.BORDER_REFLECT)
        return np.asarray(warped, dtype=np.uint8)

    def _feet(self, person: Skeleton, frames: NDArray[np.int64]) -> NDArray[np.int64]:
        """Image points [M, 2] on the ground below a person."""
        s = self._stage
        below = person.joints[frames][:, _GROUNDED].mean(axis=1) * np.array([1.0, 0.0, 1.0])
        xy = s.camera.project(below)[0] * (s.scale[frames, None] * np.array([s.flip, 1.0])) + s.origin[frames]
        return np.asarray(np.clip(np.rint(xy), -10_000, 10_000), dtype=np.int64)

    def _cast_shadow(self, image: Image, x: int, y: int) -> None:
        """Darken the ground around an image point."""
        mask = self._stage.shadow
        if mask is None:
            return
        half_h, half_w = mask.shape[0] // 2, mask.shape[1] // 2
        x0, x1 = max(x - half_w, 0), min(x + half_w, self.width)
        y0, y1 = max(y - half_h, 0), min(y + half_h, self.height)
        if x1 > x0 and y1 > y0:
            dark = mask[y0 - y + half_h : y1 - y + half_h, x0 - x + half_w : x1 - x + half_w]
            image[y0:y1, x0:x1] = (image[y0:y1, x0:x1] * dark) >> 8

    @cached_property
    def _stage(self) -> _Stage:
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
        looks = [_exposed(look, film) for look in looks]
        return _Stage(
            people,
            looks,
            [t.prop for t in tracks],
            camera,
            flip,
            scale * zoom,
            origin,
            view,
            corner,
            backdrop,
            _shadow(float(rng.uniform(0.1, 0.6)), float(scale.mean())) if rng.random() < 0.55 else None,
            film,
            tuple(rng.uniform(10, 245, 3).tolist()),
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
