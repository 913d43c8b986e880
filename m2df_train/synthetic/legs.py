"""Named actions that are mostly in the legs: gaits, jumps, kicks and getting down and up."""

from __future__ import annotations

import numpy as np

from m2df_train.synthetic.gaits import gallop, high_knees, march, run, skip_alternate, walk
from m2df_train.synthetic.kinematics import Array, Pose, Track
from m2df_train.synthetic.motion import (
    Arm,
    Style,
    ballistic,
    hand,
    key,
    play,
    pulse,
    ramp,
    solo,
    wave,
)
from m2df_train.synthetic.table import Action, cycle, once


def _hop(phase: Array, style: Style, height: float, bend: float, grounded: float = 0.38) -> tuple[Array, Array]:
    """Lift and knee flexion of a repeated hop whose ground contact lasts `grounded` of the cycle."""
    p = np.mod(phase, 1.0)
    lift = style.vary("height", height, 1.5) * ballistic(p, grounded, 1.0)
    knee = 10 + style.vary("dip", bend) * np.clip(np.sin(np.pi * p / grounded), 0, 1) * (p < grounded)
    return lift, knee


def _both_legs(pose: Pose, knee: Array, tip: Array | float = 0.0) -> Pose:
    half = {"r_flex": 0.5 * knee + tip, "l_flex": 0.5 * knee + tip, "r_knee": knee, "l_knee": knee}
    return pose.put({**half, "pitch": 0.25 * knee, "bend": 0.15 * knee})


def jump_in_place(phase: Array, style: Style) -> list[Track]:
    lift, knee = _hop(phase, style, 0.10, 40)
    pose = _both_legs(Pose.standing(len(phase)), knee)
    toes = -40 * np.clip(lift / 0.05, 0, 1)
    arm = style.u("arms", 0, 1)
    elev = 12 + arm * (25 * wave(phase, 0.6) + 20)
    pose.put({"lift": lift, "r_ankle": toes, "l_ankle": toes, "r_elev": elev, "l_elev": elev})
    return solo(pose.put({"r_elbow": 20 + 50 * arm, "l_elbow": 20 + 50 * arm}))


def jump_forward(phase: Array, style: Style) -> list[Track]:
    lift, knee = _hop(phase, style, 0.07, 40)
    p = np.mod(phase, 1.0)
    flying = ramp(p, 0.38, 1.0) * (p > 0.38)
    pose = _both_legs(Pose.standing(len(phase)), knee, 14 * np.sin(np.pi * flying) * np.where(flying > 0.5, 1, -1))
    step = style.u("step", 0.18, 0.5)
    pose.put({"lift": lift, "x": step * (np.floor(phase) + np.clip((p - 0.36) / 0.64, 0, 1)), "pitch": 6 + 0.3 * knee})
    swing = style.u("arms", 0, 35) * wave(phase, 0.55)
    elev, plane = np.abs(swing + 15) + 4, np.where(swing + 15 > 0, 10.0, 165.0)
    for side in "rl":
        pose.put(
            {
                f"{side}_elev": elev,
                f"{side}_plane": plane,
                f"{side}_roll": plane,
                f"{side}_elbow": style.u("elb", 15, 75),
            }
        )
    return solo(pose)


def jumping_jack(phase: Array, style: Style) -> list[Track]:
    open_ = 0.5 - 0.5 * np.cos(2 * np.pi * phase)
    pose = Pose.standing(len(phase))
    top = style.u("top", 135, 170)
    for side in "rl":
        pose.put(
            {
                f"{side}_elev": 10 + (top - 10) * open_,
                f"{side}_plane": 86.0,
                f"{side}_elbow": 10 + 22 * open_,
                f"{side}_roll": 30.0 * (1 - open_),
                f"{side}_abd": 2 + style.vary("wide", 24) * open_,
            }
        )
    knee = 8 + 22 * pulse(2 * phase + 0.5, 1.5)
    pose = _both_legs(pose, knee)
    return solo(pose.put({"lift": style.vary("height", 0.06) * pulse(2 * phase, 1.2)}))


def _one_leg(phase: Array, style: Style, travel: float) -> Pose:
    lift, knee = _hop(phase, style, 0.075, 34, 0.45)
    p = np.mod(phase, 1.0)
    swing = 18 * travel * np.cos(2 * np.pi * (p - 0.02))
    pose = Pose.standing(len(phase)).put({"l_flex": 0.5 * knee + swing, "l_knee": knee, "lift": lift})
    pose.put(
        {"r_flex": style.u("held", -5, 35) + 14 * wave(phase, 0.1), "r_knee": style.u("fold", 55, 95), "r_ankle": -15.0}
    )
    arm = style.u("arms", 15, 40)
    for side, off in (("r", 0.1), ("l", 0.6 if style.chance("counter", 0.5) else 0.1)):
        a = arm * wave(phase, off) + 12
        pose.put(
            {
                f"{side}_elev": np.abs(a) + 5,
                f"{side}_plane": np.where(a > 0, 20.0, 160.0),
                f"{side}_elbow": 55.0,
                f"{side}_roll": np.where(a > 0, 20.0, 160.0),
            }
        )
    return pose.put({"pitch": 5 + 4 * travel, "roll": -3.0})


def hop(phase: Array, style: Style) -> list[Track]:
    return solo(_one_leg(phase, style, 0.0))


def skip(phase: Array, style: Style) -> list[Track]:
    pose = _one_leg(phase, style, 1.0)
    p = np.mod(phase, 1.0)
    smooth = np.floor(phase) + 0.35 * np.clip(p / 0.45, 0, 1) + 0.65 * np.clip((p - 0.45) / 0.55, 0, 1)
    return solo(pose.put({"x": style.u("step", 0.3, 0.55) * smooth}))


def squat(phase: Array, style: Style) -> list[Track]:
    deep = style.u("deep", 85, 120)
    arms = hand(0.95, -0.05, 0.0) if style.chance("arms", 0.6) else hand(0.4, -0.2, 0.1)
    low = {"pitch": 32.0, "bend": 12.0, "r_turn": 22.0, "l_turn": 22.0, "r_abd": 8.0, "l_abd": 8.0}
    return solo(play(phase, [key(0), key(0.5, low, arms=arms, legs=(0.68 * deep, deep))], style, loop=True))


def lunge(phase: Array, style: Style) -> list[Track]:
    legs = {"l_flex": -18.0, "l_knee": 68.0, "l_ankle": -30.0, "x": 0.28}
    arms: Arm = hand(0.0, 0.15, -0.72, (-0.6, 1.0, 0.0)) if style.chance("hips", 0.5) else (10, 60, 12, 60)
    keys = [
        key(0, arms=arms),
        key(0.2, arms=arms, leg_r=(55, 60), x=0.08),
        key(0.45, legs, arms=arms, leg_r=(72, 80)),
        key(0.6, legs, arms=arms, leg_r=(72, 80)),
        key(0.82, arms=arms, leg_r=(50, 60), x=0.08),
    ]
    return solo(play(phase, keys, style, loop=True))


def _kick(phase: Array, style: Style, keys_at: list[tuple[float, float, float, float]], lean: float) -> list[Track]:
    """Kick with the right leg through (phase, hip flexion, knee, abduction) points."""
    guard = hand(0.35, -0.1, 0.1) if style.chance("guard", 0.5) else (28.0, 70.0, 40.0, 60.0)
    keys = [key(0, arms=guard)]
    for at, flex, knee, abd in keys_at:
        away = max(flex, abd) / 90
        keys.append(
            key(
                at,
                arms=guard,
                leg_r=(flex, knee),
                leg_l=(4, 14),
                r_abd=abd,
                pitch=-lean * away,
                bend=0.5 * lean * away,
                roll=-0.25 * abd,
            )
        )
    return solo(play(phase, [*keys, key(1.0, arms=guard)], style))


def front_kick(phase: Array, style: Style) -> list[Track]:
    top = style.u("top", 70, 100)
    return _kick(
        phase,
        style,
        [(0.2, -14, 30, 4), (0.38, 65, 85, 4), (0.5, top, 8, 4), (0.58, top, 10, 4), (0.72, 55, 70, 4)],
        14,
    )


def side_kick(phase: Array, style: Style) -> list[Track]:
    top = style.u("top", 55, 80)
    return _kick(phase, style, [(0.3, 70, 100, 25), (0.48, 18, 8, top), (0.58, 18, 8, top), (0.74, 55, 90, 22)], 6)


def kick_ball(phase: Array, style: Style) -> list[Track]:
    swing = style.u("swing", 45, 75)
    pose = _kick(phase, style, [(0.3, -32, 70, 6), (0.45, 12, 32, 4), (0.55, swing, 8, 2), (0.75, 25, 20, 2)], 8)[
        0
    ].pose
    pose["x"] = 0.35 * ramp(phase, -0.15, 0.3)
    return solo(pose, "")


def knee_lift(phase: Array, style: Style) -> list[Track]:
    up = (style.u("top", 85, 105), 100.0)
    hold_ = hand(0.55, -0.2, -0.5)
    return solo(
        play(
            phase,
            [key(0), key(0.25, arms=hold_, leg_r=up), key(0.5), key(0.75, arms=hold_, leg_l=up)],
            style,
            loop=True,
        )
    )


def jump_rope(phase: Array, style: Style) -> list[Track]:
    lift, knee = _hop(phase, style, 0.05, 22)
    pose = _both_legs(Pose.standing(len(phase)), knee)
    for side in "rl":
        pose.put(
            {
                f"{side}_elev": 28 + 8 * wave(phase),
                f"{side}_plane": 85 + 12 * wave(phase, 0.25),
                f"{side}_elbow": 75.0,
                f"{side}_roll": 75 + 25 * wave(phase, 0.25),
            }
        )
    return solo(pose.put({"lift": lift, "r_ankle": -20.0, "l_ankle": -20.0}))


def spin(phase: Array, style: Style) -> list[Track]:
    arms = (style.u("open", 20, 85), 85.0, 15.0, 60.0)
    pose = play(phase, [key(0, arms=arms), key(0.5, arms=arms)], style, loop=True)
    step = 20 * wave(3 * phase)
    pose.put({"yaw": 360 * phase, "r_knee": 8 + np.clip(step, 0, None), "l_knee": 8 + np.clip(-step, 0, None)})
    return solo(pose.put({"r_flex": 4 + 0.5 * np.clip(step, 0, None), "l_flex": 4 + 0.5 * np.clip(-step, 0, None)}))


ACTIONS: tuple[Action, ...] = (
    cycle("travel", "walk", "a person walking", (0.75, 1.1), "side", walk, travels=True),
    cycle("travel", "run", "a person running", (1.2, 1.7), "side", run, travels=True),
    cycle("travel", "skip", "a person skipping along on one leg", (1.5, 2.3), "side", skip, travels=True),
    cycle(
        "travel",
        "skip_alternate",
        "a person skipping from one leg to the other",
        (0.8, 1.2),
        "side",
        skip_alternate,
        travels=True,
    ),
    cycle("travel", "gallop_sideways", "a person galloping sideways", (1.4, 2.2), "front", gallop, travels=True),
    cycle(
        "travel",
        "jump_forward",
        "a person jumping forward on both legs",
        (1.3, 2.1),
        "side",
        jump_forward,
        travels=True,
    ),
    cycle("jump", "jump_in_place", "a person jumping in place", (1.3, 2.2), "any", jump_in_place),
    cycle("jump", "jumping_jack", "a person doing jumping jacks", (0.8, 1.5), "front", jumping_jack),
    cycle("jump", "hop_on_one_leg", "a person hopping on one leg in place", (1.4, 2.3), "any", hop),
    cycle("jump", "jump_rope", "a person jumping rope", (1.5, 2.5), "any", jump_rope),
    cycle("leg", "march_in_place", "a person marching in place", (0.7, 1.1), "any", march),
    cycle("leg", "high_knees", "a person running in place with high knees", (1.2, 1.8), "any", high_knees),
    cycle("leg", "squat", "a person doing squats", (0.4, 0.8), "any", squat),
    cycle("leg", "lunge", "a person doing lunges", (0.35, 0.65), "side", lunge),
    once("leg", "front_kick", "a person kicking to the front", (0.9, 1.6), "side", front_kick),
    once("leg", "side_kick", "a person kicking to the side", (0.9, 1.6), "front", side_kick),
    once("leg", "kick_ball", "a person kicking a ball", (1.0, 1.7), "side", kick_ball),
    cycle("leg", "knee_lift", "a person lifting the knees one after the other", (0.4, 0.8), "any", knee_lift),
    cycle("leg", "spin_around", "a person spinning around", (0.35, 0.7), "any", spin),
)
