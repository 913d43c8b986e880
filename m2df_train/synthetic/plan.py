"""Who does what, where and when in a recording: people who stand about, walk, and now and then perform an action."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from m2df_train.synthetic.arms import HIPS
from m2df_train.synthetic.gaits import WALK, gait
from m2df_train.synthetic.kinematics import INDEX, POSITION_CHANNELS, STAND, Array, channel_vector
from m2df_train.synthetic.motion import Arm, Style, hand
from m2df_train.synthetic.performance import Act, Place, Stand, Stretch, Turn, Walk
from m2df_train.synthetic.table import Action

PAUSE = (1.0, 7.0)  # seconds from one action of the scene to what comes before the next
_CYCLIC_SECONDS = (1.8, 4.5)  # of an action that goes on as long as one likes
_REST = (1.6, 2.6)  # seconds of rest after an action, in which who lies on the ground gets up
_READY = (0.9, 1.8)  # seconds from taking place to an action
_WALK_RATE = (0.75, 1.05)  # strides per second
_NEAR = 0.25  # body heights that nobody walks for
_WALK = "walk"
_SLIGHT = 10.0  # degrees that nobody turns for
_IDLE_ARMS: tuple[Arm | None, ...] = (None, None, None, HIPS, hand(0.3, -0.28, -0.28), hand(-0.12, -0.2, -0.75))


@dataclass(frozen=True)
class Floor:
    """What of the ground is seen: half width and half depth in body heights, around 0, 0."""

    x: float
    z: float

    def inside(self, x: float, z: float) -> bool:
        """Whether somebody who stands there is seen."""
        return abs(x) <= self.x and abs(z) <= self.z


@dataclass(frozen=True)
class Performed:
    """An action from its start to its end, in seconds."""

    start: float
    end: float
    label: str


class Person:
    """One person's stretches, as they are planned.

    Args:
        rng: Draws what is left open.
        region: Lowest and highest x where the person walks about.
        floor: What is seen of the ground.
    """

    def __init__(self, rng: np.random.Generator, region: tuple[float, float], floor: Floor) -> None:
        self._rng = rng
        self._region, self._floor = region, floor
        self._style = Style(rng, jitter=float(rng.uniform(0.06, 0.16)))
        self._stride = _stride(self._style)
        self.stretches: list[Stretch] = []
        self.now = 0.0
        self.place = Place(*self._somewhere(), float(rng.uniform(-180, 180)))
        n = len(INDEX) - POSITION_CHANNELS
        degrees = rng.uniform(0.1, 1.2) * np.abs(rng.standard_normal(n))
        degrees[[0, 1]] *= 0.5
        self.sway = np.stack([degrees, rng.uniform(0.15, 0.7, n), rng.random(n)])

    def stand(self, seconds: float) -> None:
        """Stand for some time."""
        rng = self._rng
        gaze = (float(rng.uniform(0, 40)), float(rng.uniform(0.1, 0.4)), float(rng.random()))
        self._add(Stand(self.now, self.now + seconds, self.place, self._posture(), gaze))

    def turn(self, yaw: float) -> None:
        """Turn the shorter way round, and stop for a moment."""
        angle = (yaw - self.place.yaw + 180) % 360 - 180
        if abs(angle) > _SLIGHT:
            seconds = 0.5 + abs(angle) / 150
            self._add(Turn(self.now, self.now + seconds, self.place, angle, self._posture(relaxed=True)))
        else:
            self.place = replace(self.place, yaw=yaw)

    def walk(self, x: float, z: float) -> None:
        """Turn to a point and walk there."""
        dx, dz = x - self.place.x, z - self.place.z
        distance = float(np.hypot(dx, dz))
        if distance < _NEAR:
            return
        self.turn(float(np.rad2deg(np.arctan2(-dz, dx))))
        strides = distance / self._stride
        seconds = strides / self._rng.uniform(*_WALK_RATE)
        self._add(Walk(self.now, self.now + seconds, self.place, strides, float(self._rng.random()), self._style))

    def act(self, act: Act) -> None:
        """Perform, and come to rest."""
        if act.start > self.now:
            self.stand(act.start - self.now)
        self._add(act)
        self.stand(float(self._rng.uniform(*_REST)))

    def pass_time(self, until: float) -> None:
        """Stand and walk about until a second, or until a walk ends a little later."""
        while until - self.now > 3.0:
            if self._rng.random() < 0.4:
                self.walk(*self._somewhere())
            self.stand(min(float(self._rng.uniform(0.8, 3.5)), max(until - self.now, 0.8)))
        if until > self.now:
            self.stand(until - self.now)

    def _somewhere(self) -> tuple[float, float]:
        return float(self._rng.uniform(*self._region)), float(self._rng.uniform(-self._floor.z, self._floor.z))

    def _posture(self, *, relaxed: bool = False) -> Array:
        rng = self._rng
        values = dict(STAND)
        arms = None if relaxed else _IDLE_ARMS[rng.integers(len(_IDLE_ARMS))]
        if arms is not None:
            sides = ("r", "l") if rng.random() < 0.7 else ("r",)
            for side in sides:
                values |= {
                    f"{side}_{name}": v for name, v in zip(("elev", "plane", "elbow", "roll"), arms, strict=True)
                }
        leaning = {"roll": 2.0, "lean": 3.0, "bend": 3.0, "pitch": 1.5, "r_knee": 4.0, "l_knee": 4.0}
        for name, spread in leaning.items():
            values[name] = values.get(name, 0.0) + abs(spread) * float(rng.normal())
        return channel_vector({**values, "r_knee": max(values["r_knee"], 0), "l_knee": max(values["l_knee"], 0)})

    def _add(self, stretch: Stretch) -> None:
        self.stretches.append(stretch)
        self.now = stretch.end
        self.place = stretch.place_at(stretch.end)


def plan(
    rng: np.random.Generator, actions: Sequence[Sequence[Action]], share: float, people: int, floor: Floor, until: float
) -> tuple[list[Person], list[list[Performed]]]:
    """Plan a recording.

    Args:
        rng: Draws everything.
        actions: Two lists of actions, of which one or the other is performed.
        share: How often it is the first.
        people: 1 or 2.
        floor: What is seen of the ground.
        until: Seconds of the recording.

    Returns:
        The people, and what was performed of each list, in order of time.
    """
    bounds = np.linspace(-floor.x, floor.x, people + 1)
    persons = [Person(rng, (float(low), float(high)), floor) for low, high in pairwise(bounds)]
    performed: list[list[Performed]] = [[] for _ in actions]
    while True:
        first = rng.random() < share
        kind = int(not actions[0] or (bool(actions[1]) and not first))
        action = actions[kind][int(rng.integers(len(actions[kind])))]
        at = max(person.now for person in persons) + float(rng.uniform(*PAUSE))
        cast = tuple(int(who) for who in rng.permutation(people)[: action.people])
        for who, person in enumerate(persons):
            person.pass_time(at if who in cast else at - 1)
        acts = (_solo if action.people == 1 else _duo)(rng, action, [persons[who] for who in cast], cast, floor)
        if acts[0].end > until - _REST[1]:
            break
        for who, act in zip(cast, acts, strict=True):
            persons[who].act(act)
        performed[kind].append(Performed(acts[0].start, acts[0].end, action.name))
    for person in persons:
        person.pass_time(until + 1)
    for group, found in zip(actions, performed, strict=True):
        if any(action.name == _WALK for action in group):
            found += _walks(persons, until)
            found.sort(key=lambda one: one.start)
    return persons, performed


def _walks(persons: Sequence[Person], until: float) -> list[Performed]:
    """Walking about, which is an action where walking is one."""
    walks = [one for person in persons for one in person.stretches if isinstance(one, Walk) and one.start < until]
    return [Performed(one.start, min(one.end, until), _WALK) for one in walks]


def _stride(style: Style) -> float:
    """Body heights of a full stride."""
    x = gait(np.array([0.0, 1.0]), style, WALK, 20, 18, 0.0)["x"]
    return float(x[1] - x[0])


def _timing(rng: np.random.Generator, action: Action) -> tuple[float, tuple[float, float]]:
    """Seconds of a performance, and the phase of a periodic one: cycles at its start, cycles per second."""
    low, high = action.rate
    pace = float(rng.uniform(low, high) * np.exp(rng.normal(0, 0.06)))
    return (float(rng.uniform(*_CYCLIC_SECONDS)) if action.periodic else pace), (float(rng.random()), pace)


def _view(rng: np.random.Generator, action: Action) -> float:
    """Heading from which the action is usually seen: 0 shows the right side of a person, -90 the front."""
    if action.view == "any":
        return float(rng.choice([-90, -90, -60, -35, 0, 45, 90]) + rng.normal(0, 18))
    centre, spread = {"front": (-90.0, 20.0), "side": (0.0, 14.0), "pair": (0.0, 15.0)}[action.view]
    return centre + float(rng.normal(0, spread))


def _solo(
    rng: np.random.Generator, action: Action, persons: Sequence[Person], cast: tuple[int, ...], floor: Floor
) -> list[Act]:
    """Let one person go where there is room for an action, and face the way it is seen from."""
    (person,) = persons
    seconds, phase = _timing(rng, action)
    style = Style(rng, jitter=float(rng.uniform(0.06, 0.16)))
    heading, warp = _view(rng, action), int(rng.integers(2**31))

    def act(place: Place, start: float) -> Act:
        return Act(start, start + seconds, action, style, phase, warp, place, cast, 0)

    at_origin = act(Place(0.0, 0.0, heading), 0.0)
    begin, end = at_origin.place_at(0.0), at_origin.place_at(seconds)
    way = np.array([end.x - begin.x, end.z - begin.z])
    start = np.array([person.place.x, person.place.z])
    if np.hypot(*way) > _NEAR and not floor.inside(*(start + way)):
        spare = np.maximum(np.array([floor.x, floor.z]) - np.abs(way) / 2, 0)
        start = -way / 2 + spare * rng.uniform(-1, 1, 2)
        person.walk(*start.tolist())
    person.turn(begin.yaw)
    person.stand(float(rng.uniform(*_READY)))
    here = person.place
    return [act(Place(here.x - begin.x, here.z - begin.z, heading), person.now)]


def _duo(
    rng: np.random.Generator, action: Action, persons: Sequence[Person], cast: tuple[int, ...], floor: Floor
) -> list[Act]:
    """Let two people meet, face each other, and act together."""
    seconds, phase = _timing(rng, action)
    style = Style(rng, jitter=float(rng.uniform(0.06, 0.16)))
    heading, warp = _view(rng, action), int(rng.integers(2**31))
    if persons[0].place.x > persons[1].place.x:  # the first of an action stands on its left
        heading += 180

    def acts(place: Place, start: float) -> list[Act]:
        return [Act(start, start + seconds, action, style, phase, warp, place, cast, part) for part in range(2)]

    begin = [act.place_at(0.0) for act in acts(Place(0.0, 0.0, heading), 0.0)]
    half = max(abs(place.x) for place in begin)
    x = float(rng.uniform(-1, 1)) * max(floor.x - half, 0.0)
    z = float(rng.uniform(-0.5, 0.5)) * floor.z
    for person, place in zip(persons, begin, strict=True):
        person.walk(x + place.x, z + place.z)
        person.turn(place.yaw)
        person.stand(float(rng.uniform(*_READY)))
    return acts(Place(x, z, heading), max(person.now for person in persons))
