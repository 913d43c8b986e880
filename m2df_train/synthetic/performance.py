"""What one person does over minutes: stretches of standing, turning, walking and acting, faded into each other.

Every stretch tells its pose at any time, also a little before and after its own: at the border of two, one pose turns
into the other as fast as a body moves, so that nobody jumps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from m2df_train.synthetic.gaits import WALK, gait
from m2df_train.synthetic.kinematics import CHANNELS, INDEX, POSITION_CHANNELS, Array, Pose, Track, rotation
from m2df_train.synthetic.motion import Style, pulse, ramp
from m2df_train.synthetic.moves import warped
from m2df_train.synthetic.table import Action

# Degrees per second that a joint turns between two stretches; the whole body is slower.
_SPEED = np.array([90.0 if name in ("yaw", "pitch", "roll") else 220.0 for name in CHANNELS[POSITION_CHANNELS:]])
_FADE = (0.25, 1.6)  # shortest and longest seconds between two stretches
_GROUND = _X, _Z, _YAW = INDEX["x"], INDEX["z"], INDEX["yaw"]


@dataclass(frozen=True)
class Place:
    """Where somebody stands on the ground, in body heights, and where to they look, in degrees."""

    x: float
    z: float
    yaw: float

    def of(self, q: Array) -> Array:
        """Pose channels [M, C] that were written for somebody at 0, 0 and heading 0, here."""
        q = q.copy()
        turn = np.deg2rad(self.yaw)
        x, z = q[:, _X].copy(), q[:, _Z].copy()
        q[:, _X] = self.x + np.cos(turn) * x + np.sin(turn) * z
        q[:, _Z] = self.z - np.sin(turn) * x + np.cos(turn) * z
        q[:, _YAW] += self.yaw
        return q


@dataclass(frozen=True)
class Stretch(ABC):
    """What a person does from one second to another."""

    start: float
    end: float

    @abstractmethod
    def pose(self, times: Array) -> Array:
        """Pose channels [M, C] in the scene at any times [M], also outside of the stretch."""

    def place_at(self, time: float) -> Place:
        """Where the person is then."""
        q = self.pose(np.array([time]))[0]
        return Place(float(q[_X]), float(q[_Z]), float(q[_YAW]))

    def share(self, times: Array) -> Array:
        """0 before, 1 after: how far the stretch has come [M]."""
        return np.asarray(np.clip((times - self.start) / (self.end - self.start), 0.0, 1.0))


@dataclass(frozen=True)
class Stand(Stretch):
    """Standing in place, in a posture, while the eyes wander."""

    place: Place
    posture: Array  # [C]
    gaze: tuple[float, float, float]  # degrees, cycles per second, cycles

    def pose(self, times: Array) -> Array:
        """See `Stretch.pose`."""
        q = np.tile(self.posture, (len(times), 1))
        far, rate, phase = self.gaze
        wandering = np.sin(2 * np.pi * (rate * times + phase))
        q[:, INDEX["look"]] += far * wandering
        q[:, INDEX["twist"]] += 0.2 * far * wandering
        q[:, INDEX["nod"]] += 0.15 * far * np.sin(2 * np.pi * (0.37 * rate * times + phase))
        return self.place.of(q)


@dataclass(frozen=True)
class Turn(Stretch):
    """Turning in place with small steps."""

    place: Place
    angle: float
    posture: Array  # [C]

    def pose(self, times: Array) -> Array:
        """See `Stretch.pose`."""
        share = self.share(times)
        pose = Pose(np.tile(self.posture, (len(times), 1)))
        steps = max(round(abs(self.angle) / 60), 1)
        pose.add({"yaw": self.angle * share * share * (3 - 2 * share)})
        for side, shift in (("r", 0.0), ("l", 0.5)):
            lifted = np.clip(pulse(steps * share + shift) * 2 - 1, 0, 1) * (share > 0) * (share < 1)
            pose.add({f"{side}_flex": 14 * lifted, f"{side}_knee": 26 * lifted})
        return self.place.of(pose.q)


@dataclass(frozen=True)
class Walk(Stretch):
    """Walking straight ahead, with feet that do not slide."""

    place: Place
    strides: float
    foot: float  # cycles: which foot begins
    style: Style

    def pose(self, times: Array) -> Array:
        """See `Stretch.pose`."""
        pose = gait(self.foot + self.strides * self.share(times), self.style, WALK, 20, 18, 0.0)
        pose["x"] -= self._begin
        for side in "rl":  # an arm that swings back is one that swings forward by less than nothing: no half turn
            back = pose[f"{side}_plane"] > 90
            pose[f"{side}_elev"] = np.where(back, -pose[f"{side}_elev"], pose[f"{side}_elev"])
            pose.add({f"{side}_{name}": np.where(back, -180.0, 0.0) for name in ("plane", "roll")})
        return self.place.of(pose.q)

    @cached_property
    def _begin(self) -> float:
        return float(gait(np.array([self.foot]), self.style, WALK, 20, 18, 0.0)["x"][0])


@dataclass(frozen=True)
class Act(Stretch):
    """One part of an action; before and after it the person stays in place.

    Attributes:
        action: What is performed.
        style: How.
        phase: Of a periodic action: cycles at the start, and cycles per second.
        warp: Seed of the uneven pace of an action that happens once.
        place: Where the middle of the action is.
        cast: Who of the scene performs it, in the order of the action's tracks.
        part: Place of this person in the cast.
    """

    action: Action
    style: Style
    phase: tuple[float, float]
    warp: int
    place: Place
    cast: tuple[int, ...]
    part: int

    def pose(self, times: Array) -> Array:
        """See `Stretch.pose`."""
        q = self.track(times).pose.q
        within = np.clip(times, self.start, self.end)
        outside = within != times
        if outside.any():
            q[np.ix_(outside, _GROUND)] = self.track(within[outside]).pose.q[:, _GROUND]
        return q

    def track(self, times: Array) -> Track:
        """The person at times [M], with what is held and touched."""
        track = self.action.program(self._phase(times), self.style)[self.part]
        own = Place(*track.at, track.heading)
        turned = rotation(1, np.array([self.place.yaw]))[0]
        reaches = tuple(
            replace(one, person=self.cast[one.person], offset=tuple((turned @ np.array(one.offset)).tolist()))
            for one in track.reaches
        )
        return Track(Pose(self.place.of(own.of(track.pose.q))), reaches=reaches, prop=track.prop)

    def _phase(self, times: Array) -> Array:
        if self.action.periodic:
            start, pace = self.phase
            return np.asarray(start + pace * (times - self.start))
        return warped(self.share(times), np.random.default_rng(self.warp))


@dataclass(frozen=True)
class _Fade:
    """From one stretch to the next around their border."""

    start: float
    end: float
    turns: Array  # [C] degrees, multiples of 360: the short way round

    def weight(self, times: Array) -> Array:
        """How much of the next stretch is seen [M]."""
        return ramp(times, self.start, self.end)


class Performance:
    """What one person does from second 0 on.

    Args:
        stretches: One after the other without gaps.
        sway: Degrees, cycles per second and cycles [3, C - POSITION_CHANNELS] of the small movements that nobody can
            suppress.
    """

    def __init__(self, stretches: Sequence[Stretch], sway: Array) -> None:
        self.stretches = stretches
        self._ends = np.array([stretch.end for stretch in stretches])
        self._sway = sway
        self._fades: dict[int, _Fade] = {}

    def track(self, times: Array) -> Track:
        """The person at rising times [M] as the scene's solver takes it; `props` tells what is held."""
        out = np.empty((len(times), len(INDEX)))
        numbers = np.minimum(np.searchsorted(self._ends, times, side="right"), len(self._ends) - 1)
        for number in np.unique(numbers).tolist():
            chosen = numbers == number
            out[chosen] = self.stretches[number].pose(times[chosen])
        for number in self._near(times)[:-1]:
            fade = self._fade(number)
            chosen = (times >= fade.start) & (times < fade.end)
            if chosen.any():
                before, after = (one.pose(times[chosen]) for one in self.stretches[number : number + 2])
                weight = fade.weight(times[chosen])[:, None]
                out[chosen] = before + weight * (after + fade.turns - before)
        degrees, rate, phase = self._sway
        out[:, POSITION_CHANNELS:] += degrees * np.sin(2 * np.pi * (rate * times[:, None] + phase))
        reaches = tuple(
            replace(reach, weight=reach.weight * share)
            for act, share in self._acts(times)
            for reach in act.track(times).reaches
        )
        return Track(Pose(out), reaches=reaches)

    def props(self, times: Array) -> list[str]:
        """What is held at times [M], empty for nothing."""
        held = [""] * len(times)
        for act, share in self._acts(times):
            if prop := act.track(times[:1]).prop:
                held = [prop if seen > 0 else other for seen, other in zip(share.tolist(), held, strict=True)]
        return held

    def _near(self, times: Array) -> range:
        """Numbers of the stretches that times can show, also by a fade."""
        first, last = np.searchsorted(self._ends, (times[0], times[-1]), side="right").tolist()
        return range(max(first - 1, 0), min(last + 2, len(self._ends)))

    def _acts(self, times: Array) -> Iterator[tuple[Act, Array]]:
        """Actions near the times, each with how much of it is seen [M]."""
        for number in self._near(times):
            act = self.stretches[number]
            if isinstance(act, Act):
                share = np.ones(len(times))
                if number > 0:
                    share = share * self._fade(number - 1).weight(times)
                if number + 1 < len(self.stretches):
                    share = share * (1 - self._fade(number).weight(times))
                yield act, share

    def _fade(self, number: int) -> _Fade:
        """From stretch `number` to the next."""
        if number not in self._fades:
            before, after = self.stretches[number : number + 2]
            border = np.array([before.end])
            difference = (after.pose(border) - before.pose(border))[0]
            turns = -360.0 * np.round(difference / 360.0)
            turns[:POSITION_CHANNELS] = 0.0
            needed = float((np.abs(difference + turns)[POSITION_CHANNELS:] / _SPEED).max())
            start, end = _around(before, after, float(np.clip(needed, *_FADE)))
            self._fades[number] = _Fade(start, end, turns)
        return self._fades[number]


def _around(before: Stretch, after: Stretch, seconds: float) -> tuple[float, float]:
    """From when to when one stretch turns into the next: an action is seen whole, other stretches give half each.

    Of a stretch between two others each may take half.
    """
    border = before.end
    earlier, later = ((one.end - one.start) / 2 for one in (before, after))
    if isinstance(before, Act):
        return border, border + min(seconds, later)
    if isinstance(after, Act):
        return border - min(seconds, earlier), border
    half = min(seconds / 2, earlier, later)
    return border - half, border + half
