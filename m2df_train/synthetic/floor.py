"""Named actions that get down to the floor or a seat, up from it, or happen there."""

from __future__ import annotations

import numpy as np

from m2df_train.synthetic.kinematics import Array, Pose, Track
from m2df_train.synthetic.motion import Arm, Style, cyclic, hand, key, play, pulse, ramp, solo, wave
from m2df_train.synthetic.table import Action, cycle, once


def sit_down(phase: Array, style: Style) -> list[Track]:
    arms: Arm = hand(0.5, -0.05, -0.62)
    seat = {"pitch": 4.0, "x": -0.24}
    keys = [
        key(0),
        key(0.35, legs=(45, 62), pitch=30, bend=20, x=-0.12, arms=(40, 20, 20, 20)),
        key(0.62, seat, legs=(86, 88), arms=arms),
        key(1.0, seat, legs=(86, 88), arms=arms),
    ]
    return solo(play(phase, keys, style))


def stand_up(phase: Array, style: Style) -> list[Track]:
    return sit_down(1.0 - phase, style)


def kneel(phase: Array, style: Style) -> list[Track]:
    arms = hand(0.45, 0, -0.6)
    down = [key(at, arms=arms, leg_l=(2, 92), leg_r=(86, 88)) for at in (0.5, 1.0)]
    return solo(play(phase, [key(0), key(0.25, leg_l=(-4, 48), leg_r=(56, 66), pitch=12, x=0.05), *down], style))


def fall(phase: Array, style: Style) -> list[Track]:
    flat = {"pitch": -84.0, "x": -0.45} if style.chance("back", 0.5) else {"pitch": 86.0, "x": 0.45}
    s = np.sign(flat["pitch"])
    lying = (-85.0, 6.0) if s > 0 else (80.0, 14.0)
    arms: Arm = (100, 20, 50, 30) if s > 0 else (70, 80, 30, 60)
    keys = [
        key(0),
        key(0.25, legs=(10, 28), pitch=8 * s, arms=(60, 60, 40, 40)),
        key(0.45, legs=(34, 84), pitch=34 * s, arms=arms, x=flat["x"] / 2),
        key(0.68, flat, arms=arms, legs=lying),
        key(1.0, flat, arms=arms, legs=lying),
    ]
    return solo(play(phase, keys, style))


def crawl(phase: Array, style: Style) -> list[Track]:
    pose = Pose.standing(len(phase)).put({"pitch": 84.0, "nod": -45.0, "x": 0.42 * phase})
    for side, off in (("r", 0.0), ("l", 0.5)):
        pose.put(
            {
                f"{side}_elev": 84 + 24 * wave(phase, off + 0.5),
                f"{side}_plane": 6.0,
                f"{side}_elbow": 8 + 28 * pulse(phase + off),
            }
        )
        pose.put(
            {
                f"{side}_flex": 4 + 24 * wave(phase, off),
                f"{side}_knee": 92 + 10 * pulse(phase + off),
                f"{side}_ankle": -60.0,
            }
        )
    return solo(pose)


def push_up(phase: Array, style: Style) -> list[Track]:
    d = pulse(phase)
    pose = Pose.standing(len(phase)).put(
        {"pitch": 70 + 15 * d, "nod": -25.0, "r_flex": -70 - 15 * d, "l_flex": -70 - 15 * d}
    )
    for side in "rl":
        pose.put(
            {
                f"{side}_elev": 78 - 42 * d,
                f"{side}_plane": 25 + 20 * d,
                f"{side}_elbow": 6 + 88 * d,
                f"{side}_roll": 30 * (1 - d),
                f"{side}_knee": 2.0,
                f"{side}_ankle": 20.0,
            }
        )
    return solo(pose)


def sit_up(phase: Array, style: Style) -> list[Track]:
    up = style.vary("up", 62) * pulse(phase)
    pose = Pose.standing(len(phase)).put({"pitch": -88 + up * 0.75, "bend": 8 + up * 0.6, "nod": 10.0})
    head = hand(0.15, 0.0, 0.42, (0.6, 1.0, 0.2))
    for side in "rl":
        pose.put(dict(zip((f"{side}_elev", f"{side}_plane", f"{side}_elbow", f"{side}_roll"), head, strict=True)))
        pose.put({f"{side}_flex": 140.0, f"{side}_knee": 100.0})
    return solo(pose)


def row(phase: Array, style: Style) -> list[Track]:
    pull = pulse(phase)
    pose = Pose.standing(len(phase)).put({"pitch": 22 - 40 * pull, "bend": 14 - 8 * pull, "x": 0.1 - 0.2 * pull})
    far, near = hand(0.97, -0.15, -0.05), hand(0.35, 0.1, -0.3, (-1, 0.6, 0))
    for side in "rl":
        for k, name in enumerate(("elev", "plane", "elbow", "roll")):
            pose[f"{side}_{name}"] = far[k] + (near[k] - far[k]) * cyclic(
                phase + 0.05, [0, 0.1, 0.4, 0.9, 1, 0.8, 0.4, 0.1]
            )
        pose.put({f"{side}_flex": 118 - 26 * pull, f"{side}_knee": 75 - 62 * pull})
    return solo(pose)


def climb_over(phase: Array, style: Style) -> list[Track]:
    up = ramp(phase, 0.3, 0.6)
    keys = [key(0), key(0.3, leg_r=(80, 90), arms=hand(0.6, 0, -0.3)), key(0.6, leg_l=(-14, 30), pitch=12), key(1.0)]
    pose = play(phase, keys, style)
    return solo(pose.put({"lift": style.u("step", 0.12, 0.2) * up, "x": 0.25 * up}))


ACTIONS: tuple[Action, ...] = (
    once("floor", "sit_down", "a person sitting down", (1.2, 2.2), "side", sit_down),
    once("floor", "stand_up", "a person standing up from a seat", (1.2, 2.2), "side", stand_up),
    once("floor", "kneel_down", "a person kneeling down", (1.3, 2.4), "side", kneel),
    once("floor", "fall_down", "a person falling down", (1.0, 1.8), "side", fall),
    cycle("floor", "crawl", "a person crawling on hands and knees", (0.6, 1.1), "side", crawl, travels=True),
    cycle("floor", "push_up", "a person doing push-ups", (0.5, 1.0), "side", push_up),
    cycle("floor", "sit_up", "a person doing sit-ups", (0.4, 0.8), "side", sit_up),
    cycle("floor", "row", "a person rowing", (0.4, 0.8), "side", row),
    once("floor", "step_up", "a person stepping up onto a step", (1.2, 2.0), "side", climb_over),
)
