"""Independent parts of composed actions: what one arm, the legs, the trunk or the whole path does.

A part is a function of the class's own numbers, so one entry of a table gives a family of motions. Arm and leg parts
are loops of key angles for one limb; phase 0 lies near rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from m2df_train.synthetic import gaits, legs
from m2df_train.synthetic.kinematics import Array, Pose
from m2df_train.synthetic.motion import Arm, Style, ballistic, curve, hand, pulse, wave

LimbKeys = list[tuple[float, tuple[float, ...]]]
KeysOf = Callable[[float, float], LimbKeys]
REST: Arm = (10, 60, 14, 60)
_PUNCH = (0.25, 0.05, -0.1)


@dataclass(frozen=True)
class Part:
    """A limb part: verb phrase with `{}` for the limb, key angles from two class numbers in 0..1, and if it moves."""

    verb: str
    keys: KeysOf
    moves: bool = True


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


def _two(a: Arm, b: Arm) -> LimbKeys:
    return [(0.0, a), (0.5, b)]


ARMS: dict[str, Part] = {
    "raise_front": Part("raising {} to the front", lambda a, b: _two(REST, (_between(60, 165, a), 5, 8, 10))),
    "raise_side": Part(
        "raising {} to the side", lambda a, b: _two((12, 85, 10, 40), (_between(60, 160, a), 88, 8, 40))
    ),
    "circle": Part("circling {}", lambda a, b: [(k / 6, (60.0 * k, 10 + 50 * a, 6.0, 20.0)) for k in range(6)]),
    "wave_high": Part("waving {} high up", lambda a, b: _two((150, 80, 45 + 30 * a, 5), (128, 80, 5, 5))),
    "wave_low": Part("waving {} at shoulder height", lambda a, b: _two((65, 85, 60 + 30 * a, 0), (75, 85, 125, 0))),
    "punch_forward": Part(
        "punching forward with {}", lambda a, b: _two(hand(*_PUNCH), hand(0.97, -0.15, _between(-0.3, 0.2, a)))
    ),
    "punch_up": Part("punching upwards with {}", lambda a, b: _two(hand(*_PUNCH), hand(0.15, 0.1, 0.95))),
    "punch_side": Part(
        "punching sideways with {}", lambda a, b: _two(hand(*_PUNCH), hand(0.1, 0.97, 0.05, (-0.5, 0, -1)))
    ),
    "punch_down": Part("punching down with {}", lambda a, b: _two(hand(0.3, 0.1, 0.2), hand(0.35, 0.0, -0.92))),
    "swing": Part(
        "swinging {} back and forth",
        lambda a, b: [
            (0, (_between(25, 50, a), 172, 8, 170)),
            (0.25, (4, 90, 10, 90)),
            (0.5, (_between(30, 90, b), 6, 10, 10)),
            (0.75, (4, 90, 10, 90)),
        ],
    ),
    "saw": Part(
        "sawing with {}", lambda a, b: _two(hand(0.05, 0.1, -0.6, (-1, 0.2, 0)), hand(0.8, -0.05, -0.35 - 0.2 * a))
    ),
    "flap": Part("flapping {} like a wing", lambda a, b: _two((35, 88, 20, 60), (_between(80, 120, a), 88, 25, 60))),
    "cross": Part(
        "swinging {} across the body", lambda a, b: _two((80, 95, 8, 60), (_between(60, 90, a), -30, 30, 40))
    ),
    "reach_up": Part("reaching up with {}", lambda a, b: _two(hand(0.35, 0.1, 0.1), (172, 50, 6, 10))),
    "reach_down": Part("reaching down with {}", lambda a, b: _two(hand(0.5, 0.0, -0.1), (18, 5, 3, 10))),
    "curl": Part("curling {}", lambda a, b: _two((8 + 60 * (b > 0.6), 20, 8, 20), (12 + 60 * (b > 0.6), 20, 125, 20))),
    "roll_hand": Part(
        "rolling {} in small circles",
        lambda a, b: [
            (k / 4, hand(0.5 + 0.2 * np.cos(k * np.pi / 2), -0.15, -0.2 + 0.2 * np.sin(k * np.pi / 2)))
            for k in range(4)
        ],
    ),
    "touch_head": Part("touching the head with {}", lambda a, b: _two(REST, hand(0.12, -0.12, 0.42, (0.3, 1.0, 0.2)))),
    "tap_chest": Part(
        "tapping the chest with {}", lambda a, b: _two((50, 60, 50, 60), hand(0.22, -0.3, -0.18, (0, 1, -0.4)))
    ),
    "chop": Part(
        "chopping down with {}",
        lambda a, b: [(0, (150, 20, 60, 20)), (0.35, (60, 0, 10, 20)), (0.55, (35, -15, 10, 20))],
    ),
    "throw": Part(
        "throwing with {}",
        lambda a, b: [
            (0, (95, 105, 100, 30)),
            (0.3, (140, 60, 70, 10)),
            (0.45, (95, 10, 8, 20)),
            (0.65, (40, -15, 15, 30)),
        ],
    ),
    "pull_down": Part("pulling {} down from above", lambda a, b: _two((165, 55, 10, 10), (55, 85, 125, 0))),
    "pull_back": Part("pulling {} back", lambda a, b: _two(hand(0.93, 0.0, 0.0), hand(0.1, 0.25, -0.25, (-1, 0.6, 0)))),
    "shake": Part("shaking {} in front", lambda a, b: _two(hand(0.65, -0.1, -0.45), hand(0.65, -0.1, 0.0 + 0.2 * a))),
    "hips": Part("holding {} on the hip", lambda a, b: _two(*[hand(0.0, 0.15, -0.72, (-0.6, 1.0, 0.0))] * 2), False),
    "hold_side": Part("holding {} out to the side", lambda a, b: _two((88, 88, 5, 40), (88, 88, 5, 40)), False),
    "hold_front": Part("holding {} out to the front", lambda a, b: _two((88, 5, 5, 20), (88, 5, 5, 20)), False),
    "hold_up": Part("holding {} up", lambda a, b: _two((168, 60, 8, 10), (168, 60, 8, 10)), False),
    "hang": Part("letting {} hang", lambda a, b: _two(REST, REST), False),
}

# Keys are (hip flexion, abduction, knee); the other leg stands or takes its turn half a cycle later.
LEGS: dict[str, Part] = {
    "still": Part("standing", lambda a, b: [(0, (2, 4, 3)), (0.5, (2, 4, 3))], False),
    "wide": Part("standing with legs apart", lambda a, b: [(0, (2, 18, 6)), (0.5, (2, 18, 6))], False),
    "squat": Part("squatting", lambda a, b: [(0, (3, 8, 5)), (0.5, (_between(40, 75, a), 10, _between(60, 110, a)))]),
    "march": Part(
        "marching in place", lambda a, b: [(0, (2, 3, 4)), (0.25, (_between(45, 85, a), 3, 85)), (0.5, (2, 3, 4))]
    ),
    "kick_front": Part(
        "kicking to the front", lambda a, b: [(0, (-6, 3, 12)), (0.25, (_between(45, 90, a), 3, 8)), (0.45, (4, 3, 10))]
    ),
    "kick_side": Part(
        "kicking to the side", lambda a, b: [(0, (3, 3, 6)), (0.25, (5, _between(35, 70, a), 6)), (0.45, (3, 3, 6))]
    ),
    "kick_back": Part(
        "kicking to the back", lambda a, b: [(0, (6, 3, 10)), (0.25, (_between(-25, -50, a), 3, 12)), (0.45, (4, 3, 8))]
    ),
    "heel_kick": Part(
        "kicking the heels up", lambda a, b: [(0, (2, 3, 5)), (0.25, (-5, 3, _between(80, 115, a))), (0.45, (2, 3, 6))]
    ),
    "tap_front": Part(
        "tapping a foot in front", lambda a, b: [(0, (2, 3, 5)), (0.25, (30 + 12 * a, 3, 8)), (0.45, (2, 3, 5))]
    ),
    "tap_side": Part(
        "tapping a foot to the side", lambda a, b: [(0, (2, 2, 5)), (0.25, (2, 22 + 12 * a, 5)), (0.45, (2, 2, 5))]
    ),
    "open_knee": Part(
        "lifting the knees outwards", lambda a, b: [(0, (2, 4, 5)), (0.25, (55, 45 + 20 * a, 90)), (0.45, (2, 4, 5))]
    ),
    "lunge": Part(
        "lunging",
        lambda a, b: [(0, (2, 3, 4)), (0.25, (50 + 15 * a, 3, 60 + 15 * a)), (0.5, (-14, 3, 45)), (0.75, (0, 3, 8))],
    ),
    "straddle": Part(
        "jumping with legs apart and together", lambda a, b: [(0, (5, 2, 10)), (0.5, (5, 20 + 10 * a, 10))]
    ),
    "scissor": Part(
        "jumping with legs crossing front and back", lambda a, b: [(0, (24 + 8 * a, 3, 10)), (0.5, (-22, 3, 14))]
    ),
    "jump": Part("jumping", lambda a, b: [(0, (24, 4, 46)), (0.2, (4, 4, 8)), (0.75, (6, 4, 12))]),
    "hop": Part("hopping on one leg", lambda a, b: [(0, (20, 2, 40)), (0.2, (4, 2, 8)), (0.75, (6, 2, 12))]),
    "sway": Part("shifting the weight from leg to leg", lambda a, b: [(0, (14, 12, 30)), (0.5, (3, 12, 4))]),
}
TOGETHER = frozenset({"still", "wide", "squat", "straddle", "jump"})
AIRBORNE = {"straddle": 2.0, "scissor": 2.0, "jump": 1.0, "hop": 1.0}


def limb_curve(part: Part, phase: Array, numbers: tuple[float, float], gain: float) -> Array:
    """Angles [M, C] of a limb part, with its range about the mean scaled by `gain`."""
    keys = part.keys(*numbers)
    times = np.array([t for t, _ in keys], dtype=np.float64)
    values = np.array([v for _, v in keys], dtype=np.float64)
    if values[-1, 0] - values[0, 0] > 200:  # a full circle keeps turning instead of running back
        return np.stack([360.0 * phase, *(np.full_like(phase, v) for v in values[0, 1:])], -1)
    centre = values.mean(axis=0)
    return curve(phase, times, centre + gain * (values - centre), loop=True)


def apply_arm(pose: Pose, side: str, angles: Array) -> None:
    """Write arm angles [M, 4] into the pose."""
    for k, name in enumerate(("elev", "plane", "elbow", "roll")):
        pose[f"{side}_{name}"] = np.clip(angles[:, k], 0, 150) if name == "elbow" else angles[:, k]


def apply_legs(pose: Pose, name: str, phase: Array, numbers: tuple[float, float], gain: float) -> None:
    """Write a leg part into the pose, with the flight of jumps."""
    part = LEGS[name]
    for side in "rl":
        other = side == "l" and name not in TOGETHER
        if other and name == "hop":
            angles = np.tile([20.0, 4.0, 80.0], (len(phase), 1))
        else:
            angles = limb_curve(part, phase + 0.5 * other, numbers, gain)
        for k, channel in enumerate(("flex", "abd", "knee")):
            pose[f"{side}_{channel}"] = np.clip(angles[:, k], 2, 140) if channel == "knee" else angles[:, k]
    if name in AIRBORNE:
        p = np.mod(AIRBORNE[name] * phase, 1.0)
        pose["lift"] = (0.05 + 0.05 * numbers[1]) * gain * ballistic(p, 0.3, 1.0)
    if name == "squat":
        pose["pitch"] = 0.4 * pose["r_flex"]


TRUNKS: dict[str, tuple[str, Callable[[Pose, Array, float], object]]] = {
    "still": ("", lambda pose, phase, a: pose),
    "bend": (
        "bending forward",
        lambda p, t, a: p.add({"pitch": (22 + 26 * a) * pulse(t), "bend": (22 + 20 * a) * pulse(t)}),
    ),
    "lean": (
        "leaning from side to side",
        lambda p, t, a: p.add({"lean": (20 + 18 * a) * wave(t), "roll": 6 * wave(t)}),
    ),
    "twist": ("twisting the trunk", lambda p, t, a: p.add({"twist": (28 + 28 * a) * wave(t), "yaw": 10 * wave(t)})),
    "arch": (
        "leaning back",
        lambda p, t, a: p.add({"bend": -(14 + 12 * a) * pulse(t), "pitch": -8 * pulse(t), "nod": -10 * pulse(t)}),
    ),
    "crouch": ("with a bent back", lambda p, t, a: p.add({"bend": 30 + 15 * a, "pitch": 18 + 10 * a, "nod": -15.0})),
    "turn": ("turning around", lambda p, t, a: p.add({"yaw": 180 * t})),
    "nod": ("nodding", lambda p, t, a: p.add({"nod": (14 + 12 * a) * pulse(2 * t)})),
}

Path = Callable[[Array, Style, float], Pose]


def _to_and_fro(phase: Array, style: Style, a: float) -> Pose:
    """Walk to and fro: the stride changes direction with half the frequency of the cycle."""
    turn = 0.5 + a
    pose = gaits.walk(2 * np.cumsum(np.sign(np.sin(np.pi * phase / turn))) * float(np.mean(np.diff(phase))), style)[
        0
    ].pose
    return pose


# Paths bring their own leg motion; phase counts strides.
PATHS: dict[str, tuple[str, Path]] = {
    "walk": ("walking", lambda t, s, a: gaits.walk(t, s)[0].pose),
    "run": ("running", lambda t, s, a: gaits.run(1.4 * t, s)[0].pose),
    "backwards": ("walking backwards", lambda t, s, a: gaits.walk(-t, s)[0].pose),
    "hops": ("hopping forward on one leg", lambda t, s, a: legs.skip(1.7 * t, s)[0].pose),
    "jumps": ("jumping forward", lambda t, s, a: legs.jump_forward(1.6 * t, s)[0].pose),
    "sideways": ("galloping sideways", lambda t, s, a: gaits.gallop(1.7 * t, s)[0].pose),
    "knees": ("skipping forward", lambda t, s, a: gaits.skip_alternate(t, s)[0].pose),
    "to_and_fro": ("walking back and forth", _to_and_fro),
}
