"""Named actions between two people. A stands on the left and faces B, who stands on the right; contact is exact."""

from __future__ import annotations

import numpy as np

from m2df_train.synthetic.gaits import WALK, gait
from m2df_train.synthetic.kinematics import STAND, Array, Pose, Reach, Track, channel_vector
from m2df_train.synthetic.motion import Arm, Style, ballistic, hand, hold, key, play, pulse, ramp, wave
from m2df_train.synthetic.table import Action, cycle, once


def stroll(phase: Array, style: Style, distance: float, start: float, end: float) -> Pose:
    """Stand, walk `distance` forward to x = 0 between two phases, and stand again."""
    way = abs(distance) * ramp(phase, start, end)
    steps = gait(np.sign(distance) * way / 0.75 + style.u("foot", 0, 1), style, WALK, 18, 18, 0.0)
    steps["x"] = 0.0
    rest = channel_vector(STAND)
    share = hold(phase, (start - 0.02, start + 0.05), (end - 0.08, end))[:, None]
    pose = Pose(rest + share * (steps.q - rest))
    pose["x"] = np.sign(distance) * way - distance
    return pose


def lay(pose: Pose, side: str, arm: Arm, weight: Array) -> Pose:
    """Blend an arm posture over the pose."""
    for name, value in zip(("elev", "plane", "elbow", "roll"), arm, strict=True):
        pose[f"{side}_{name}"] = (1 - weight) * pose[f"{side}_{name}"] + weight * value
    return pose


def stumble(pose: Pose, phase: Array, at: float, back: float, tilt: float) -> Pose:
    """Be thrown back from phase `at`: trunk tilts, arms fly up, the feet catch up."""
    going = ramp(phase, at, at + 0.25)
    shock = ballistic(phase, at, at + 0.38)
    step = np.sin(np.pi * 2.0 * going) * (going > 0) * (going < 1)
    pose.add({"x": -back * going, "pitch": -tilt * shock, "bend": -0.4 * tilt * shock, "nod": -0.9 * tilt * shock})
    pose.add({"r_elev": 40 * shock, "l_elev": 46 * shock, "r_elbow": 35 * shock, "l_elbow": 30 * shock})
    pose.add({"r_flex": -30 * np.clip(step, 0, 1), "r_knee": 32 * np.clip(step, 0, 1) + 14 * shock})
    return pose.add({"l_flex": -26 * np.clip(-step, 0, 1), "l_knee": 30 * np.clip(-step, 0, 1) + 14 * shock})


def _come(style: Style, far: float = 0.9) -> tuple[float, float]:
    """How far each of the two walks before they meet; either may already stand in place."""
    a = style.u("come_a", 0.25, far) if style.chance("a_walks", 0.6) else 0.0
    b = style.u("come_b", 0.25, far) if style.chance("b_walks", 0.4) else 0.0
    return a, b


def pair(
    a: Pose, b: Pose, distance: float, reach_a: tuple[Reach, ...] = (), reach_b: tuple[Reach, ...] = ()
) -> list[Track]:
    """Place two people face to face, `distance` body heights apart."""
    turned = 180.0
    return [Track(a, (-distance / 2, 0.0), 0.0, reach_a), Track(b, (distance / 2, 0.0), turned, reach_b)]


def _meet(phase: Array, style: Style, until: float = 0.3) -> tuple[Pose, Pose]:
    far_a, far_b = _come(style)
    return stroll(phase, style, far_a, 0.0, until), stroll(phase, style, far_b, 0.0, until)


def shake_hands(phase: Array, style: Style) -> list[Track]:
    a, b = _meet(phase, style)
    w = hold(phase, (0.24, 0.4), (0.78, 0.92))
    shake = style.u("shake", 3, 14) * np.sin(2 * np.pi * style.u("beats", 2, 5) * (phase - 0.4)) * w
    grip = hand(0.8, -0.28, style.u("grip", -0.5, -0.3))
    for pose in (a, b):
        lay(pose, "r", grip, w)
        pose.add({"r_elev": shake, "bend": 7 * w, "twist": 8 * w})
    return pair(a, b, style.u("apart", 0.48, 0.6), (Reach("r_hand", w, 1, "r_hand"),))


def hug(phase: Array, style: Style) -> list[Track]:
    near = ramp(phase, 0.1, 0.42) * (1 - ramp(phase, 0.82, 1.0) * style.u("part", 0, 1))
    arms = ramp(phase, 0.2, 0.45) * (1 - ramp(phase, 0.84, 0.97) * style.u("part", 0, 1))
    gap = style.u("gap", 0.35, 0.8)
    a, b = stroll(phase, style, gap, 0.0, 0.4), stroll(phase, style, 0.3 * gap, 0.1, 0.4)
    low, high = (62.0, -10.0, 62.0, 40.0), (100.0, -12.0, 62.0, 35.0)
    for pose, lean in ((a, 1.0), (b, 1.0)):
        lay(lay(pose, "r", high if pose is a else low, arms), "l", low if pose is a else high, arms)
        pose.add({"bend": 9 * near * lean, "pitch": 3 * near, "nod": 6 * near, "lean": 5 * near})
    w = arms * 0.9
    back = (0.05, 0.02, 0.0)
    reach_a = (Reach("r_hand", w, 1, "chest", (0.06, -0.03, 0.05)), Reach("l_hand", w, 1, "waist", back))
    reach_b = (
        Reach("r_hand", w, 0, "chest", (-0.06, -0.03, -0.05)),
        Reach("l_hand", w, 0, "waist", (-0.05, 0.02, 0.0)),
    )
    return pair(a, b, style.u("apart", 0.17, 0.22), reach_a, reach_b)


def high_five(phase: Array, style: Style) -> list[Track]:
    a, b = _meet(phase, style, 0.4)
    w = hold(phase, (0.3, 0.52), (0.6, 0.8))
    up = hand(0.5, -0.1, style.u("up", 0.6, 0.8))
    for pose in (a, b):
        lay(pose, "r", up, w)
    clap = hold(phase, (0.4, 0.52), (0.58, 0.68))
    return pair(a, b, style.u("apart", 0.45, 0.55), (Reach("r_hand", clap, 1, "r_hand"),))


def push(phase: Array, style: Style) -> list[Track]:
    a, b = _meet(phase, style, 0.32)
    load = hold(phase, (0.24, 0.36), (0.42, 0.5))
    out = hold(phase, (0.38, 0.47), (0.62, 0.85))
    for side in "rl":
        lay(lay(a, side, hand(0.3, -0.05, -0.05), load), side, hand(0.97, -0.15, 0.0), out)
    a.add(
        {
            "bend": 14 * out,
            "pitch": 9 * out,
            "l_flex": 24 * out,
            "l_knee": 26 * out,
            "r_flex": -14 * out,
            "x": 0.1 * out,
        }
    )
    stumble(b, phase, 0.44, style.u("back", 0.25, 0.65), style.u("tilt", 12, 24))
    touch = hold(phase, (0.36, 0.45), (0.5, 0.56))
    on = (
        Reach("r_hand", touch, 1, "chest", (-0.06, -0.06, 0.05)),
        Reach("l_hand", touch, 1, "chest", (-0.06, -0.06, -0.05)),
    )
    return pair(a, b, style.u("apart", 0.4, 0.5), on)


def punch(phase: Array, style: Style) -> list[Track]:
    a, b = _meet(phase, style, 0.3)
    load = hold(phase, (0.24, 0.38), (0.42, 0.47))
    hit = hold(phase, (0.4, 0.47), (0.52, 0.68))
    lay(lay(a, "r", hand(0.15, 0.25, 0.05), load), "r", hand(0.97, -0.25, 0.2), hit)
    lay(a, "l", hand(0.35, -0.1, 0.1), hold(phase, (0.2, 0.36), (0.6, 0.8)))
    a.add({"twist": 30 * hit - 18 * load, "l_flex": 18 * hit, "l_knee": 16 * hit, "r_flex": -10 * hit, "bend": 8 * hit})
    shock = ballistic(phase, 0.46, 0.75)
    stumble(b, phase, 0.46, style.u("back", 0.08, 0.4), style.u("tilt", 8, 16))
    b.add({"nod": -18 * shock, "look": 30 * shock, "twist": 16 * shock})
    if style.chance("holds_face", 0.5):
        lay(b, "r", hand(0.3, -0.2, 0.3), ramp(phase, 0.55, 0.7))
    return pair(a, b, style.u("apart", 0.4, 0.48), (Reach("r_hand", hit, 1, "head", (-0.05, 0.0, 0.0)),))


def kick(phase: Array, style: Style) -> list[Track]:
    a, b = _meet(phase, style, 0.28)
    high = style.u("high", 45, 85)
    up = play(
        phase,
        [
            key(0.2),
            key(0.34, leg_r=(-12, 45)),
            key(0.43, leg_r=(0.75 * high, 70)),
            key(0.5, leg_r=(high, 6)),
            key(0.56, leg_r=(high, 8)),
            key(0.68, leg_r=(40, 55)),
            key(0.82),
        ],
        style,
    )
    w = hold(phase, (0.24, 0.34), (0.7, 0.84))
    lean = hold(phase, (0.36, 0.5), (0.56, 0.78))
    for name in ("flex", "knee"):
        a[f"r_{name}"] = (1 - w) * a[f"r_{name}"] + w * up[f"r_{name}"]
    a.add({"pitch": -14 * lean, "l_knee": 12 * lean, "l_flex": 5 * lean, "r_elev": 25 * lean, "l_elev": 35 * lean})
    shock = ballistic(phase, 0.49, 0.95)
    stumble(b, phase, 0.49, style.u("back", 0.15, 0.5), style.u("tilt", -10, 10))
    b.add({"bend": 24 * shock, "pitch": 12 * shock, "r_knee": 15 * shock, "l_knee": 15 * shock})
    return pair(a, b, style.u("apart", 0.55, 0.68))


def point_at(phase: Array, style: Style) -> list[Track]:
    a, b = _meet(phase, style, 0.25)
    w = hold(phase, (0.2, 0.42), (style.u("until", 0.7, 0.85), 0.98))
    lay(a, "r", (style.u("aim", 72, 100), style.u("across", -8, 22), 5, 20), w)
    a.add({"twist": 12 * w, "bend": 4 * w})
    react = ramp(phase, 0.45, 0.65)
    if style.chance("reacts", 0.4):
        b.add({"look": style.u("look", -45, 45) * react, "x": -style.u("away", 0, 0.12) * react})
    return pair(a, b, style.u("apart", 0.7, 1.3))


def hand_over(phase: Array, style: Style) -> list[Track]:
    a, b = _meet(phase, style)
    give, take = hold(phase, (0.2, 0.4), (0.58, 0.75)), hold(phase, (0.28, 0.46), (0.62, 0.9))
    lay(a, "r", hand(0.8, -0.2, -0.15), give)
    lay(b, "r", hand(0.75, -0.2, -0.2), take)
    lay(b, "r", hand(0.4, -0.1, -0.35), ramp(phase, 0.62, 0.8))
    tracks = pair(a, b, style.u("apart", 0.55, 0.66), (Reach("r_hand", give * take, 1, "r_hand"),))
    tracks[0 if style.chance("early", 0.5) else 1].prop = "cup"
    return tracks


def dance(phase: Array, style: Style) -> list[Track]:
    turn = style.u("turn", 0.1, 0.35) * 360 * phase
    poses = []
    for off in (0.0, 0.5):
        pose = Pose.standing(len(phase))
        step = wave(phase, off)
        pose.put({"r_flex": 10 + 18 * np.clip(step, 0, 1), "r_knee": 14 + 34 * np.clip(step, 0, 1)})
        pose.put({"l_flex": 10 + 18 * np.clip(-step, 0, 1), "l_knee": 14 + 34 * np.clip(-step, 0, 1)})
        pose.put({"lean": 6 * step, "roll": 4 * step})
        ones = np.ones(len(phase))
        poses.append(lay(lay(pose, "r", (72, 60, 45, 60), ones), "l", (72, 45, 50, 60), ones))
    half = style.u("apart", 0.17, 0.24)
    swirl = np.deg2rad(turn)
    for pose in poses:  # both circle the middle between them while they keep facing each other
        pose.put({"yaw": turn, "x": half * (1 - np.cos(swirl)), "z": half * np.sin(swirl)})
    w = np.ones(len(phase))
    return pair(
        poses[0],
        poses[1],
        2 * half,
        (Reach("r_hand", w, 1, "l_hand"), Reach("l_hand", w, 1, "l_shoulder")),
        (Reach("r_hand", w, 0, "waist"),),
    )


def wrestle(phase: Array, style: Style) -> list[Track]:
    rock = wave(phase)
    poses = []
    for s in (1.0, -1.0):
        pose = Pose.standing(len(phase)).put(
            {"pitch": 24 + 8 * s * rock, "bend": 20.0, "nod": -12.0, "twist": 14 * wave(phase, 0.3)}
        )
        pose.put(
            {
                "r_flex": -18 + 14 * s * rock,
                "r_knee": 26.0,
                "l_flex": 34 + 10 * s * rock,
                "l_knee": 42.0,
                "x": s * 0.09 * rock,
            }
        )
        ones = np.ones(len(phase))
        poses.append(lay(lay(pose, "r", hand(0.85, 0.0, 0.1), ones), "l", hand(0.8, 0.0, -0.1), ones))
    w = np.full(len(phase), 0.9)
    reach = [(Reach("r_hand", w, k, "l_shoulder"), Reach("l_hand", w, k, "r_elbow")) for k in (1, 0)]
    return pair(poses[0], poses[1], style.u("apart", 0.5, 0.62), *reach)


def pass_by(phase: Array, style: Style) -> list[Track]:
    far = style.u("far", 1.2, 2.0)
    a = gait(far * phase / 0.75 + style.u("foot", 0, 1), style, WALK, 20, 18, 0.0)
    a["x"] = far * (phase - 0.5)
    b = Pose.standing(len(phase)).put({"look": style.u("look", 0, 60) * wave(phase, 0.25)})
    if style.chance("both", 0.5):
        b = gait(far * phase / 0.75 + style.u("foot_b", 0, 1), style, WALK, 22, 18, 0.0)
        b["x"] = far * (phase - 0.5)
    aside = style.u("aside", 0.2, 0.4) * (1 if style.chance("front", 0.5) else -1)
    return [Track(a, (0.0, aside), 0.0), Track(b, (0.0, 0.0), 180.0)]


def talk(phase: Array, style: Style) -> list[Track]:
    poses = []
    for k, off in enumerate((0.0, 0.4)):
        w = pulse(phase + off)
        pose = lay(Pose.standing(len(phase)), "r", hand(0.5, style.u(f"s{k}", -0.2, 0.3), -0.3), w)
        lay(pose, "l", hand(0.5, 0.0, -0.35), pulse(2 * phase + off) * style.u(f"l{k}", 0, 1))
        poses.append(
            pose.put({"nod": 8 * pulse(2 * phase + off), "r_elbow": pose["r_elbow"] + 14 * wave(3 * phase, off)})
        )
    return pair(poses[0], poses[1], style.u("apart", 0.5, 0.9))


ACTIONS: tuple[Action, ...] = (
    once("pair", "shake_hands", "two people shaking hands", (1.8, 3.4), "pair", shake_hands),
    once("pair", "hug", "two people hugging each other", (2.0, 3.6), "pair", hug),
    once("pair", "high_five", "two people giving each other a high five", (1.4, 2.6), "pair", high_five),
    once("pair", "push_person", "a person pushing another person", (1.6, 2.6), "pair", push),
    once("pair", "punch_person", "a person punching another person", (1.4, 2.4), "pair", punch),
    once("pair", "kick_person", "a person kicking another person", (1.5, 2.5), "pair", kick),
    once("pair", "point_at_person", "a person pointing at another person", (1.6, 3.0), "pair", point_at),
    once("pair", "hand_over", "a person handing an object to another person", (1.8, 3.2), "pair", hand_over),
    cycle("pair", "dance_together", "two people dancing together", (0.5, 1.0), "pair", dance),
    cycle("pair", "wrestle", "two people wrestling", (0.5, 1.1), "pair", wrestle),
    once("pair", "pass_by", "a person walking past another person", (1.8, 3.4), "pair", pass_by),
    cycle("pair", "talk", "two people talking to each other", (0.4, 0.8), "pair", talk),
)
