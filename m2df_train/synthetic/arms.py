"""Named actions that are mostly in the arms and the trunk."""

from __future__ import annotations

import numpy as np

from m2df_train.synthetic.kinematics import Array, Pose, Track
from m2df_train.synthetic.motion import Arm, Style, arm_channels, hand, key, play, pulse, ramp, solo, wave
from m2df_train.synthetic.table import Action, cycle, once

GUARD: Arm = hand(0.35, -0.1, 0.15)
FRONT: Arm = hand(0.6, -0.25, -0.1)
OVERHEAD: Arm = (172, 70, 10, 0)
IDLE: Arm = (8, 60, 14, 60)
HIPS: Arm = hand(0.0, 0.15, -0.72, (-0.6, 1.0, 0.0))


def raised_wave(phase: Array, style: Style, side: str, name: str) -> dict[str, Array | float]:
    """An arm raised at the side that swings, from a forearm wave to a wide swing of the whole arm."""
    wide = style.u("wave_wide", 0.0, 1.0)
    w = wave(phase)
    elev = style.u(name, 105, 150) + wide * style.vary("wave_amp", 32) * w
    elbow = (1 - wide) * (style.u("wave_elbow", 40, 80) + style.vary("wave_fore", 35) * w) + wide * (12 - 8 * w)
    plane = style.u("wave_plane", 60, 95)
    return arm_channels(side, {"elev": elev, "plane": plane, "elbow": np.clip(elbow, 0, 140), "roll": 8.0})


def wave_one(phase: Array, style: Style) -> list[Track]:
    return solo(Pose.standing(len(phase)).put(raised_wave(phase, style, "r", "wave_elev")))


def wave_both(phase: Array, style: Style) -> list[Track]:
    pose = Pose.standing(len(phase)).put(raised_wave(phase, style, "r", "wave_elev"))
    return solo(pose.put(raised_wave(phase, style, "l", "wave_elev")))


def clap(phase: Array, style: Style) -> list[Track]:
    up = style.u("clap_up", -0.45, 0.0)
    keys = [key(0, arms=hand(0.55, -0.33, up)), key(0.5, arms=hand(0.5, style.u("wide", 0.05, 0.45), up))]
    return solo(play(phase, keys, style, loop=True))


def clap_overhead(phase: Array, style: Style) -> list[Track]:
    keys = [key(0, arms=hand(0.12, -0.32, 0.9, (0.2, 1, 0.2))), key(0.5, arms=(style.u("low", 95, 135), 85, 20, 20))]
    return solo(play(phase, keys, style, loop=True))


def point(phase: Array, style: Style) -> list[Track]:
    aim: Arm = (style.u("aim", 75, 110), style.u("across", -15, 35), 4, 20)
    half: Arm = (45, 15, 85, 30)
    keys = [key(0), key(0.18, right=half), key(0.32, right=aim, twist=12), key(0.75, right=aim, twist=12), key(1.0)]
    return solo(play(phase, keys, style))


def salute(phase: Array, style: Style) -> list[Track]:
    brow = hand(0.32, -0.18, 0.38, (0.1, 1.0, -0.1))
    keys = [key(0), key(0.25, right=brow), key(0.75, right=brow), key(1.0)]
    return solo(play(phase, keys, style))


def _to_face(phase: Array, style: Style, place: Arm, nod: float, prop: str) -> list[Track]:
    keys = [
        key(0),
        key(0.15, right=hand(0.45, -0.05, -0.4)),
        key(0.35, right=place, nod=nod),
        key(0.75, right=place, nod=nod),
        key(0.9, right=hand(0.45, -0.05, -0.4)),
        key(1.0),
    ]
    return solo(play(phase, keys, style), prop)


def drink(phase: Array, style: Style) -> list[Track]:
    return _to_face(phase, style, hand(0.36, -0.28, 0.22, (0.3, 0.8, -0.4)), style.u("tilt", -30, -10), "cup")


def phone(phase: Array, style: Style) -> list[Track]:
    return _to_face(phase, style, hand(0.16, -0.14, 0.28, (0.4, 0.8, -0.8)), style.u("tilt", 0, 12), "")


def arm_circles(phase: Array, style: Style) -> list[Track]:
    a = 360 * phase * (1 if style.chance("forward", 0.5) else -1)
    pose = Pose.standing(len(phase))
    plane = style.u("plane", 0, 30)
    shift = 180.0 if style.chance("alternate", 0.35) else 0.0
    for side, off in (("r", 0.0), ("l", shift)):
        pose.put(arm_channels(side, {"elev": a + off, "plane": plane, "elbow": 6.0, "roll": plane}))
    return solo(pose)


def crawl_arms(phase: Array, style: Style) -> list[Track]:
    keys = [
        key(0, right=(165, 15, 12, 20)),
        key(0.25, right=(95, 5, 25, 20)),
        key(0.5, right=(20, 20, 30, 30)),
        key(0.68, right=(75, 150, 75, 150)),
        key(0.85, right=(125, 75, 70, 60)),
    ]
    pose, other = play(phase, keys, style, loop=True), play(phase + 0.5, keys, style, loop=True)
    lean = style.u("lean", 8, 50)
    pose.put({f"l_{n}": other[f"r_{n}"] for n in ("elev", "plane", "elbow", "roll")})
    return solo(
        pose.put({"pitch": lean * 0.7, "bend": lean * 0.5, "twist": 18 * wave(phase, 0.25), "nod": -lean * 0.6})
    )


def stretch_up(phase: Array, style: Style) -> list[Track]:
    up = {"bend": -8.0, "nod": -14.0, "r_ankle": -30.0, "l_ankle": -30.0}
    keys = [
        key(0),
        key(0.2, arms=hand(0.6, 0.3, 0.1)),
        key(0.4, up, arms=OVERHEAD),
        key(0.7, up, arms=OVERHEAD),
        key(0.85, arms=(95, 88, 8, 60)),
        key(1.0),
    ]
    return solo(play(phase, keys, style))


def side_bend(phase: Array, style: Style) -> list[Track]:
    pose = Pose.standing(len(phase)).put({"lean": style.vary("lean", 34) * wave(phase), "roll": 5 * wave(phase)})
    if style.chance("arms_up", 0.5):
        for side in "rl":
            pose.put(arm_channels(side, dict(zip(("elev", "plane", "elbow", "roll"), OVERHEAD, strict=True))))
    else:
        for side, s in (("r", -1), ("l", 1)):
            lifted = ramp(s * wave(phase), -0.2, 0.8)
            pose.put(arm_channels(side, {"elev": 15 + 140 * lifted, "plane": 90.0, "elbow": 25 + 20 * lifted}))
            pose[f"{side}_roll"] = 60 * (1 - lifted)
    return solo(pose.put({"r_abd": 13.0, "l_abd": 13.0}))


def torso_twist(phase: Array, style: Style) -> list[Track]:
    arms = hand(0.3, 0.15, 0.0, (0, 1, 0)) if style.chance("chest", 0.5) else (85, 85, 10, 60)
    pose = play(phase, [key(0, arms=arms), key(0.5, arms=arms)], style, loop=True)
    turn = style.vary("turn", 52) * wave(phase)
    return solo(pose.put({"twist": turn, "yaw": 0.25 * turn, "r_abd": 12.0, "l_abd": 12.0}))


def bow(phase: Array, style: Style) -> list[Track]:
    d = style.u("depth", 25, 45)
    low = {"pitch": d, "bend": 0.5 * d, "nod": 12.0}
    arms: Arm = (20, 40, 10, 40)
    keys = [key(0), key(0.4, low, arms=arms), key(0.6, low, arms=arms), key(1.0)]
    return solo(play(phase, keys, style))


def bend(phase: Array, style: Style) -> list[Track]:
    knee = style.u("knees", 5, 55)
    low = {"pitch": style.u("pitch", 55, 75), "bend": style.u("spine", 45, 65), "nod": 5.0}
    down: Arm = (style.u("hang", 95, 125), 0, 10, 10)
    both = style.chance("both", 0.6)
    left = down if both else (60, 10, 20, 20)
    legs = (0.55 * knee, knee)
    keys = [
        key(0),
        key(0.42, low, right=down, left=left, legs=legs),
        key(0.58, low, right=down, left=left, legs=legs),
        key(1.0),
    ]
    return solo(play(phase, keys, style))


def drum(phase: Array, style: Style) -> list[Track]:
    high, low = hand(0.5, 0.1, style.u("high", 0.0, 0.3)), hand(0.62, -0.05, -0.45)
    keys = [key(0, right=high, left=low, nod=8), key(0.5, right=low, left=high, nod=8)]
    return solo(play(phase, keys, style, loop=True), "stick" if style.chance("stick", 0.6) else "")


def pull_rope(phase: Array, style: Style) -> list[Track]:
    far, near = hand(0.9, -0.2, -0.1), hand(0.3, 0.05, -0.4, (-1, 0.5, -0.3))
    rock = 10 * wave(phase)
    keys = [key(0, right=far, left=near), key(0.5, right=near, left=far)]
    pose = play(phase, keys, style, loop=True)
    pose.put({"pitch": -6.0 + 0.4 * rock, "bend": 8 + rock, "twist": 14 * wave(phase, 0.25)})
    return solo(pose.put({"r_flex": 28.0, "r_knee": 35.0, "l_flex": -14.0, "l_knee": 20.0}))


def climb(phase: Array, style: Style) -> list[Track]:
    high, low = hand(0.5, 0.0, 0.75), hand(0.55, 0.0, -0.05)
    up, down = (style.u("step", 60, 80), 85.0), (8.0, 12.0)
    keys = [key(0, right=high, left=low, leg_r=down, leg_l=up), key(0.5, right=low, left=high, leg_r=up, leg_l=down)]
    pose = play(phase, keys, style, loop=True)
    return solo(
        pose.put({"lift": 0.16 * phase * style.u("rise", 0.0, 1.0), "lean": 7 * wave(phase, 0.25), "pitch": 4.0})
    )


def box_combo(phase: Array, style: Style) -> list[Track]:
    hit = hand(0.96, -0.22, style.u("height", -0.05, 0.15))
    keys = [
        key(0, arms=GUARD),
        key(0.18, right=GUARD, left=hit, twist=-22),
        key(0.34, arms=GUARD),
        key(0.55, right=hit, left=GUARD, twist=34),
        key(0.75, arms=GUARD),
    ]
    pose = play(phase, keys, style, loop=True).add({"bend": 8.0})
    bounce = 7 * pulse(2 * phase)
    return solo(
        pose.put(
            {
                "yaw": -25.0,
                "l_flex": 16 + bounce,
                "l_knee": 20 + 2 * bounce,
                "r_flex": -12.0 + bounce,
                "r_knee": 18 + 2 * bounce,
            }
        )
    )


def _strike(phase: Array, style: Style, load: Arm, hit: Arm, turn: float) -> list[Track]:
    stance = {"l_flex": 16.0, "l_knee": 16.0, "r_flex": -10.0, "r_knee": 16.0}
    rest: Arm = GUARD if style.chance("guard", 0.6) else IDLE
    keys = [
        key(0, stance, arms=rest),
        key(0.3, stance, right=load, left=rest, twist=-0.5 * turn),
        key(0.48, stance, right=hit, left=rest, twist=turn, bend=6),
        key(0.6, stance, right=hit, left=rest, twist=turn, bend=6),
        key(1.0, stance, arms=rest),
    ]
    return solo(play(phase, keys, style))


def punch(phase: Array, style: Style) -> list[Track]:
    return _strike(phase, style, hand(0.2, 0.1, -0.1), hand(0.98, -0.2, style.u("height", -0.05, 0.2)), 28)


def uppercut(phase: Array, style: Style) -> list[Track]:
    return _strike(phase, style, hand(0.15, 0.15, -0.65, (-1, 0.3, 0)), hand(0.55, -0.25, 0.55, (0.3, 0.5, -1)), 36)


def push(phase: Array, style: Style) -> list[Track]:
    load, out = hand(0.25, 0.0, -0.05), hand(0.97, -0.1, 0.0)
    step = {"l_flex": 32.0, "l_knee": 34.0, "r_flex": -18.0, "r_knee": 8.0}
    keys = [
        key(0),
        key(0.3, arms=load, bend=-4),
        key(0.5, step, arms=out, pitch=10, bend=10, x=0.1),
        key(0.65, step, arms=out, pitch=10, bend=10, x=0.1),
        key(1.0),
    ]
    return solo(play(phase, keys, style))


def lift_box(phase: Array, style: Style) -> list[Track]:
    deep = {"pitch": 45.0, "bend": 35.0}
    grip, carry = (75.0, 2.0, 10.0, 10.0), hand(0.62, -0.08, -0.35)
    end = hand(0.35, -0.05, 0.75) if style.chance("press", 0.4) else carry
    keys = [
        key(0),
        key(0.25, deep, arms=grip, legs=(50, 90)),
        key(0.38, deep, arms=grip, legs=(50, 90)),
        key(0.65, arms=carry, bend=-4),
        key(0.85, arms=end, bend=-4),
        key(1.0, arms=end, bend=-4),
    ]
    return solo(play(phase, keys, style), "box")


ACTIONS: tuple[Action, ...] = (
    cycle("arm", "wave_one_hand", "a person waving one hand", (0.8, 2.0), "front", wave_one, upper=True),
    cycle("arm", "wave_both_hands", "a person waving both hands", (0.7, 1.8), "front", wave_both, upper=True),
    cycle("arm", "clap", "a person clapping hands", (1.2, 2.6), "any", clap, upper=True),
    cycle(
        "arm", "clap_overhead", "a person clapping hands above the head", (0.7, 1.4), "front", clap_overhead, upper=True
    ),
    once("arm", "point", "a person pointing at something", (1.2, 2.4), "any", point, upper=True),
    once("arm", "salute", "a person saluting", (1.4, 2.4), "any", salute, upper=True),
    once("arm", "drink", "a person drinking from a cup", (1.8, 3.0), "any", drink, upper=True),
    once("arm", "phone_call", "a person holding a phone to the ear", (1.8, 3.0), "any", phone, upper=True),
    cycle("arm", "arm_circles", "a person circling both arms", (0.5, 1.2), "any", arm_circles),
    cycle(
        "arm", "swim_crawl", "a person making swimming strokes with the arms", (0.5, 1.0), "any", crawl_arms, upper=True
    ),
    once("arm", "stretch_up", "a person stretching the arms upwards", (1.8, 3.2), "any", stretch_up),
    cycle("arm", "drum", "a person drumming", (1.2, 2.6), "any", drum, upper=True),
    cycle("arm", "pull_rope", "a person pulling a rope hand over hand", (0.6, 1.2), "side", pull_rope),
    cycle("arm", "boxing", "a person boxing with quick punches", (0.8, 1.4), "any", box_combo, upper=True),
    once("arm", "punch", "a person punching the air", (0.7, 1.3), "side", punch),
    once("arm", "uppercut", "a person throwing an uppercut", (0.7, 1.3), "side", uppercut),
    once("arm", "push", "a person pushing with both hands", (1.0, 1.9), "side", push),
    cycle("trunk", "side_bend", "a person bending from side to side", (0.35, 0.8), "front", side_bend),
    cycle("trunk", "torso_twist", "a person twisting the upper body", (0.5, 1.1), "any", torso_twist),
    once("trunk", "bow", "a person bowing", (1.4, 2.6), "any", bow),
    once("trunk", "bend", "a person bending down to pick something up", (1.5, 2.8), "any", bend),
    cycle("trunk", "climb_ladder", "a person climbing a ladder", (0.5, 0.9), "any", climb),
    once("trunk", "lift_box", "a person lifting a heavy box", (1.8, 3.2), "any", lift_box),
)
