"""Named actions from sports and work."""

from __future__ import annotations

from m2df_train.synthetic.kinematics import Array, Track
from m2df_train.synthetic.motion import Arm, Style, hand, key, play, solo, wave
from m2df_train.synthetic.table import Action, cycle, once

READY: dict[str, float] = {
    "pitch": 8.0,
    "r_flex": 18.0,
    "r_knee": 28.0,
    "l_flex": 18.0,
    "l_knee": 28.0,
    "r_abd": 12.0,
    "l_abd": 12.0,
}
LOW: Arm = hand(0.55, -0.1, -0.4)


def _prop(style: Style, name: str) -> str:
    return name if style.chance("prop", 0.7) else ""


def throw_over(phase: Array, style: Style) -> list[Track]:
    stride = {"l_flex": 28.0, "l_knee": 26.0, "r_flex": -16.0, "r_knee": 18.0, "x": 0.12}
    keys = [
        key(0),
        key(0.3, right=(100, 110, 95, 20), left=(70, 40, 20, 20), twist=-38, yaw=-25, bend=-8),
        key(0.45, stride, right=(140, 75, 80, 10), left=(45, 60, 40, 40), twist=0),
        key(0.55, stride, right=(110, 12, 12, 20), twist=28, bend=14),
        key(0.7, stride, right=(35, -20, 20, 30), twist=38, bend=28, pitch=10),
        key(1.0),
    ]
    return solo(play(phase, keys, style))


def throw_under(phase: Array, style: Style) -> list[Track]:
    stride = {"l_flex": 26.0, "l_knee": 34.0, "r_flex": -14.0, "r_knee": 22.0, "x": 0.1}
    keys = [
        key(0),
        key(0.35, right=(50, 170, 6, 170), bend=14, twist=-14),
        key(0.5, stride, right=(5, 90, 6, 90), bend=16, pitch=6),
        key(0.62, stride, right=(85, 5, 10, 10), bend=8, twist=14),
        key(0.75, stride, right=(105, 5, 25, 10), bend=4, twist=14),
        key(1.0),
    ]
    return solo(play(phase, keys, style))


def bowling(phase: Array, style: Style) -> list[Track]:
    deep = {"l_flex": 62.0, "l_knee": 78.0, "r_flex": -32.0, "r_knee": 26.0, "x": 0.6, "pitch": 34.0}
    keys = [
        key(0, arms=hand(0.4, -0.2, -0.2)),
        key(0.25, right=(25, 20, 10, 10), leg_r=(25, 20), x=0.2, bend=10),
        key(0.45, right=(62, 174, 4, 174), left=(40, 60, 10, 30), leg_l=(28, 30), x=0.42, bend=22),
        key(0.6, deep, right=(8, 90, 4, 80), left=(60, 110, 10, 30), bend=22),
        key(0.72, deep, right=(95, 0, 10, 10), left=(60, 120, 10, 30), bend=18),
        key(0.88, deep, right=(120, 0, 25, 10), left=(50, 110, 10, 30), bend=14),
        key(1.0, x=0.6),
    ]
    return solo(play(phase, keys, style), _prop(style, "ball"))


def golf(phase: Array, style: Style) -> list[Track]:
    base = {"pitch": 26.0, "bend": 16.0, **{k: v for k, v in READY.items() if k != "pitch"}}
    down: Arm = (38, -18, 6, 20)
    keys = [
        key(0, base, arms=down),
        key(0.15, base, arms=down),
        key(0.42, base, right=(82, 62, 82, 10), left=(95, -42, 14, 20), twist=-62, yaw=-22),
        key(0.56, base, arms=down, twist=8, yaw=14),
        key(
            0.7,
            right=(100, -40, 14, 20),
            left=(92, 64, 84, 10),
            twist=60,
            yaw=44,
            pitch=10,
            r_ankle=-25,
            l_abd=12,
            r_abd=12,
        ),
        key(
            1.0,
            right=(110, -40, 35, 20),
            left=(100, 64, 95, 10),
            twist=62,
            yaw=48,
            pitch=6,
            r_ankle=-30,
            l_abd=12,
            r_abd=12,
        ),
    ]
    return solo(play(phase, keys, style), _prop(style, "club"))


def baseball(phase: Array, style: Style) -> list[Track]:
    keys = [
        key(0, READY, right=(72, 80, 118, 10), left=(80, -30, 85, 30), twist=-38, yaw=-10),
        key(
            0.35,
            {**READY, "l_flex": 45.0, "l_knee": 58.0},
            right=(80, 90, 120, 10),
            left=(85, -38, 60, 30),
            twist=-52,
            yaw=-18,
        ),
        key(0.52, READY, right=(62, 10, 50, 40), left=(75, -10, 22, 30), twist=10, yaw=28),
        key(0.62, READY, right=(80, -30, 10, 40), left=(82, 30, 12, 30), twist=46, yaw=52),
        key(0.8, READY, right=(95, -45, 60, 30), left=(95, 70, 95, 10), twist=64, yaw=66, r_ankle=-25),
        key(1.0, READY, right=(95, -45, 60, 30), left=(95, 70, 95, 10), twist=60, yaw=66, r_ankle=-25),
    ]
    return solo(play(phase, keys, style), _prop(style, "bat"))


def forehand(phase: Array, style: Style) -> list[Track]:
    step = {"l_flex": 30.0, "l_knee": 32.0, "r_flex": -10.0, "r_knee": 24.0, "pitch": 6.0}
    keys = [
        key(0, READY, right=hand(0.5, -0.15, -0.3), left=LOW),
        key(0.3, READY, right=(70, 120, 45, 60), left=(75, 25, 20, 20), twist=-48, yaw=-30),
        key(0.44, step, right=(45, 100, 20, 60), left=(60, 50, 40, 20), twist=-24, yaw=-14),
        key(0.55, step, right=(68, 25, 14, 40), left=(45, 70, 60, 30), twist=22, yaw=12),
        key(0.7, step, right=(105, -38, 70, 30), left=(40, 60, 70, 40), twist=50, yaw=25),
        key(1.0, READY, right=hand(0.5, -0.15, -0.3), left=LOW),
    ]
    return solo(play(phase, keys, style), _prop(style, "racket"))


def backhand(phase: Array, style: Style) -> list[Track]:
    two = style.chance("two_handed", 0.5)
    step = {"r_flex": 30.0, "r_knee": 32.0, "l_flex": -10.0, "l_knee": 24.0, "pitch": 6.0}
    load: Arm = (62, -50, 60, 40)
    left = (
        ((62, 70, 85, 40), (66, 20, 45, 40), (90, -20, 60, 30))
        if two
        else ((60, 30, 80, 40), (45, 120, 15, 60), (55, 150, 15, 90))
    )
    keys = [
        key(0, READY, right=hand(0.5, -0.15, -0.3), left=LOW),
        key(0.3, READY, right=load, left=left[0], twist=52, yaw=34),
        key(0.45, step, right=(48, -35, 22, 30), left=left[0], twist=30, yaw=20),
        key(0.56, step, right=(70, 15, 10, 30), left=left[1], twist=-4, yaw=4),
        key(0.72, step, right=(112, 75, 20, 30), left=left[2], twist=-36, yaw=-14),
        key(1.0, READY, right=hand(0.5, -0.15, -0.3), left=LOW),
    ]
    return solo(play(phase, keys, style), _prop(style, "racket"))


def serve(phase: Array, style: Style) -> list[Track]:
    side = {"yaw": -40.0}
    keys = [
        key(0, side, right=hand(0.45, -0.1, -0.4), left=hand(0.6, -0.1, -0.35)),
        key(0.22, side, right=(35, 110, 20, 60), left=(60, 10, 5, 10)),
        key(0.42, side, right=(90, 110, 85, 20), left=(165, 20, 4, 10), legs=(24, 44), bend=-14, twist=-24),
        key(
            0.52,
            right=(135, 95, 115, 10),
            left=(110, 20, 30, 20),
            legs=(10, 18),
            bend=-10,
            twist=-8,
            yaw=-22,
            lift=0.02,
        ),
        key(
            0.6,
            right=(172, 40, 6, 10),
            left=(55, 30, 70, 30),
            legs=(0, 4),
            r_ankle=-35,
            l_ankle=-35,
            twist=14,
            yaw=0,
            lift=0.05,
        ),
        key(
            0.74,
            right=(62, -25, 22, 20),
            left=(40, 60, 60, 40),
            bend=34,
            pitch=18,
            twist=32,
            yaw=10,
            l_flex=24,
            l_knee=30,
            r_flex=-22,
            r_knee=42,
            x=0.15,
        ),
        key(1.0, {**READY, "l_flex": 24.0}, right=LOW, left=LOW, x=0.2),
    ]
    return solo(play(phase, keys, style), _prop(style, "racket"))


def smash(phase: Array, style: Style) -> list[Track]:
    jump = style.u("jump", 0.0, 0.12)
    keys = [
        key(0, READY, right=hand(0.5, -0.15, -0.2), left=LOW),
        key(0.3, right=(105, 105, 110, 15), left=(140, 15, 8, 10), twist=-36, yaw=-32, bend=-8, nod=-20, legs=(18, 34)),
        key(
            0.46,
            right=(170, 40, 10, 10),
            left=(80, 30, 70, 30),
            twist=14,
            yaw=0,
            nod=-14,
            lift=jump,
            r_ankle=-30,
            l_ankle=-30,
        ),
        key(0.6, right=(55, -22, 15, 20), left=(40, 60, 60, 40), twist=34, yaw=14, bend=32, pitch=14, legs=(22, 34)),
        key(1.0, READY, right=hand(0.5, -0.15, -0.2), left=LOW),
    ]
    return solo(play(phase, keys, style), _prop(style, "racket"))


def dribble(phase: Array, style: Style) -> list[Track]:
    keys = [key(0, READY, right=hand(0.55, 0.1, -0.25)), key(0.5, READY, right=hand(0.5, 0.1, -0.75))]
    pose = play(phase, keys, style, loop=True)
    return solo(pose.add({"bend": 16 + 4 * wave(phase), "r_knee": 5 * wave(phase), "l_knee": 5 * wave(phase)}))


def hammer(phase: Array, style: Style) -> list[Track]:
    keys = [
        key(0, arms=(150, 15, 50, 10), bend=-6),
        key(0.35, arms=(50, 2, 8, 10), bend=24, pitch=20, legs=(20, 34)),
        key(0.5, arms=(50, 2, 8, 10), bend=24, pitch=20, legs=(20, 34)),
    ]
    return solo(play(phase, keys, style, loop=True), _prop(style, "bat"))


def sweep(phase: Array, style: Style) -> list[Track]:
    lean = {"pitch": 12.0, "bend": 16.0, "l_flex": 16.0, "l_knee": 18.0, "r_flex": -8.0}
    keys = [
        key(0, lean, right=hand(0.35, -0.1, -0.75), left=hand(0.5, -0.25, -0.25), twist=-24),
        key(0.5, lean, right=hand(0.75, -0.3, -0.55), left=hand(0.5, -0.1, -0.25), twist=22),
    ]
    return solo(play(phase, keys, style, loop=True), _prop(style, "bat"))


ACTIONS: tuple[Action, ...] = (
    once("sport", "throw_overarm", "a person throwing a ball overarm", (1.0, 1.9), "side", throw_over),
    once("sport", "throw_underarm", "a person throwing underarm", (1.0, 1.9), "side", throw_under),
    once("sport", "bowling", "a person bowling", (1.6, 2.6), "side", bowling),
    once("sport", "golf_swing", "a person swinging a golf club", (1.4, 2.4), "any", golf),
    once("sport", "baseball_swing", "a person swinging a baseball bat", (1.1, 2.0), "any", baseball),
    once("sport", "forehand", "a person hitting a forehand stroke", (1.1, 2.0), "any", forehand),
    once("sport", "backhand", "a person hitting a backhand stroke", (1.1, 2.0), "any", backhand),
    once("sport", "serve", "a person serving a ball overhead", (1.4, 2.6), "any", serve),
    once("sport", "smash", "a person smashing a ball overhead", (1.1, 2.0), "any", smash),
    cycle("sport", "dribble", "a person dribbling a ball", (1.2, 2.2), "any", dribble),
    cycle("sport", "hammer", "a person swinging a hammer", (0.5, 0.9), "side", hammer),
    cycle("sport", "sweep", "a person sweeping the floor", (0.6, 1.1), "any", sweep),
)
