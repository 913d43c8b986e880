"""A synthetic recording: minutes of one or two people in one scene, with known actions at known times.

Nothing is cut: a person stands about, walks, goes into an action and out of it again. The plan is drawn from the seed
at once; poses and pictures are made where frames are asked for, so memory does not grow with the length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.clips.source import ArrayPicture, FrameSource, Picture
from m2df_runtime.errors import InputError
from m2df_train.synthetic.body import Camera, Look, sample_look
from m2df_train.synthetic.kinematics import Array, solve_scene
from m2df_train.synthetic.performance import Performance, Stand, Turn, Walk
from m2df_train.synthetic.plan import Floor, Performed, plan
from m2df_train.synthetic.scene import MARGIN, Film, Image, background, sample_film, smooth_path
from m2df_train.synthetic.stage import Stage, exposed, shadow
from m2df_train.synthetic.table import Action

BESIDES = {Stand: "standing", Turn: "turning", Walk: "walking"}
_TOGETHER = 16  # frames that are posed at once
_TAUGHT = 0.6  # of the actions
_SHAKING = 0.15  # of the cameras
_BESIDE = 0.4  # body heights from a person's middle to the edge of the picture


@dataclass(frozen=True)
class _Set:
    """What stays the same from frame to frame."""

    looks: list[Look]
    film: Film
    backdrop: Image
    shadow: NDArray[np.uint16] | None
    shake: Array  # [n, 2] pixels
    prop_colour: tuple[float, float, float]


class SyntheticRecording(FrameSource):
    """Frame source that renders an untrimmed recording.

    Args:
        taught: Actions that `truth` tells of.
        untaught: Other actions that are performed.
        seed: Everything else: people, place, film, what happens when.
        seconds: How long it is.
        people: 1 or 2; None lets the seed decide. Actions of two people are left out where there is one.
        size: Width and height in pixels.
        fps: Frames per second.
        shaking: Whether the camera shakes; None lets the seed decide, of which one in seven does.

    Attributes:
        truth: What of `taught` is performed, in order of time.
        others: The same of `untaught`.
        between: What each person does besides: standing, turning and walking about.

    Raises:
        InputError: Nobody there can perform any of the actions, or the size or length is none.
    """

    def __init__(
        self,
        taught: Sequence[Action],
        untaught: Sequence[Action],
        seed: int,
        *,
        seconds: float = 120.0,
        people: int | None = None,
        size: tuple[int, int] = (320, 240),
        fps: float = 15.0,
        shaking: bool | None = None,
    ) -> None:
        if not (seconds >= 1 and fps >= 1 and min(size) >= 32 and max(size) <= 2048):
            raise InputError(
                f"a recording of {seconds} s at {fps} frames per second and {size[0]} x {size[1]} pixels",
                "at least 1 s, 1 frame per second, and 32 to 2048 pixels",
            )
        rng = np.random.default_rng([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, 79])
        self.name = f"recording {seed}"
        self.width, self.height = size
        self.fps = float(fps)
        self._shaking = shaking
        self.n_frames = round(seconds * fps)
        self.times: NDArray[np.float64] = np.arange(self.n_frames) / self.fps
        self.people = int(rng.integers(1, 3)) if people is None else people
        actions = [[one for one in group if one.people <= self.people] for group in (taught, untaught)]
        if not any(actions):
            raise InputError(f"{self.people} people can perform none of the actions")
        self._scale = self.height * float(rng.uniform(0.32, 0.55 if self.people == 1 else 0.45))
        self._camera = Camera(0.0, float(rng.uniform(2, 22)), float(rng.uniform(6, 14)))
        self._flip = -1.0 if rng.random() < 0.5 else 1.0
        floor = Floor(max(self.width / (2 * self._scale) - _BESIDE, 0.2), float(rng.uniform(0.1, 0.4)))
        persons, performed = plan(rng, actions, _TAUGHT, self.people, floor, seconds)
        self._performances = [Performance(person.stretches, person.sway) for person in persons]
        self.truth: tuple[Performed, ...] = tuple(performed[0])
        self.others: tuple[Performed, ...] = tuple(performed[1])
        besides = (
            Performed(one.start, min(one.end, seconds), BESIDES[type(one)])
            for person in persons
            for one in person.stretches
            if type(one) in BESIDES and one.start < seconds
        )
        self.between: tuple[Performed, ...] = tuple(sorted(besides, key=lambda one: one.start))
        self._set_seed = int(rng.integers(2**62))

    def pictures(self, indices: NDArray[np.int64]) -> Iterator[Picture]:
        """See `FrameSource.pictures`."""
        for start in range(0, len(indices), _TOGETHER):
            chosen = indices[start : start + _TOGETHER]
            for frame in self._stage(chosen).render(np.arange(len(chosen))):
                yield ArrayPicture(frame)

    def _stage(self, indices: NDArray[np.int64]) -> Stage:
        times, fixed = self.times[indices], self._set
        tracks = [performance.track(times) for performance in self._performances]
        for track, look in zip(tracks, fixed.looks, strict=True):
            track.body = look.body
        shake = fixed.shake[indices]
        return Stage(
            self.height,
            self.width,
            solve_scene(tracks),
            fixed.looks,
            [performance.props(times) for performance in self._performances],
            self._camera,
            self._flip,
            np.full(len(indices), self._scale),
            np.array([self.width / 2, self._ground]) + shake,
            None,
            np.asarray(MARGIN - shake, dtype=np.int64),
            fixed.backdrop,
            fixed.shadow,
            fixed.film,
            fixed.prop_colour,
            indices,
        )

    @property
    def _ground(self) -> float:
        """Row of the ground's middle."""
        return 0.86 * self.height

    @cached_property
    def _set(self) -> _Set:
        rng = np.random.default_rng(self._set_seed)
        looks = [sample_look(rng, child=0.05) for _ in range(self.people)]
        shake = np.zeros((self.n_frames, 2))
        shakes = rng.random() < _SHAKING
        if shakes if self._shaking is None else self._shaking:
            steps = int(rng.integers(3, 12))
            shake = np.round(rng.uniform(0.3, 1.5) * smooth_path(rng, self.n_frames, steps)).clip(-MARGIN, MARGIN)
        horizon = self._ground - rng.uniform(0.0, 0.3) * self.height + MARGIN
        film = sample_film(rng, self.n_frames, self.height, self.width)
        backdrop = film.expose(background(rng, self.height + 2 * MARGIN, self.width + 2 * MARGIN, horizon))
        cast = shadow(float(rng.uniform(0.1, 0.6)), self._scale) if rng.random() < 0.55 else None
        colour = tuple(rng.uniform(10, 245, 3).tolist())
        return _Set([exposed(look, film) for look in looks], film, backdrop, cast, shake, colour)
