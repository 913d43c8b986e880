"""Gaits: walking, running and what is built on the same two-legged stride."""

from __future__ import annotations

import numpy as np

from m2df_train.synthetic.kinematics import Array, Pose, Proportions, Track
from m2df_train.synthetic.motion import Style, cyclic, pulse, solo, wave

# Hip flexion, knee flexion and ankle offset at every tenth of a stride from heel strike, in degrees: means of normal
# adult gait rounded from Winter (walking) and Novacheck (running).
WALK = (
    [27, 23, 15, 7, -2, -10, -7, 9, 24, 30],
    [5, 15, 13, 8, 6, 13, 38, 60, 48, 15],
    [10, 0, 0, 0, -4, -18, -24, -6, 4, 12],
)


RUN = (
    [34, 29, 16, 2, -12, -20, -8, 18, 42, 44],
    [18, 38, 38, 28, 20, 32, 72, 104, 96, 52],
    [2, 0, 0, -6, -22, -30, -20, -6, 0, 4],
)


def stride_of(hip: Array, knee: Array, start: int = 1, end: int = 4) -> float:
    """Travel per cycle that keeps the supporting foot still, from tables of ten values (stance from start to end)."""
    b = Proportions()
    foot = b.thigh * np.sin(np.deg2rad(hip)) + b.shin * np.sin(np.deg2rad(hip - knee))
    return float(foot[start] - foot[end]) / ((end - start) / 10)


def gait(
    phase: Array, style: Style, table: tuple[list[int], list[int], list[int]], swing: float, elbow: float, flight: float
) -> Pose:
    """Two-legged symmetric gait with counter-swinging arms and travel without sliding feet."""
    hip, knee, ankle = (np.asarray(t, dtype=np.float64) for t in table)
    hip, knee = hip * style.vary("hip", 1.0, 1.3), knee * style.vary("knee", 1.0)
    pose = Pose.standing(len(phase))
    for side, off in (("r", 0.0), ("l", 0.5)):
        p = phase + off
        arm = style.vary("swing", swing, 2.0) * wave(
            p, 0.75 - 0.02
        )  # the arm is back when the leg of its side is ahead
        elev = np.abs(arm + 4) + 4
        pose.put(
            {
                f"{side}_flex": cyclic(p, list(hip)),
                f"{side}_knee": np.clip(cyclic(p, list(knee)), 2, 140),
                f"{side}_ankle": cyclic(p, list(ankle)),
                f"{side}_abd": style.u("width", 0, 4),
                f"{side}_turn": style.u("toe", 0, 12),
                f"{side}_elev": elev,
                f"{side}_plane": np.where(arm + 4 >= 0, 8.0, 172.0),
                f"{side}_elbow": np.clip(style.vary("elbow", elbow) + 0.4 * arm, 3, 140),
                f"{side}_roll": np.where(arm + 4 >= 0, 12.0, 168.0),
            }
        )
    stride = stride_of(hip, knee)
    pose.put(
        {"x": stride * phase, "yaw": -4 * wave(phase, 0.25), "twist": 8 * wave(phase, 0.25), "roll": 2 * wave(phase)}
    )
    return pose.put({"lift": flight * (np.clip(np.cos(4 * np.pi * (phase - 0.45)), 0.25, 1.0) - 0.25)})


def walk(phase: Array, style: Style) -> list[Track]:
    return solo(
        gait(phase, style, WALK, 22, 18, 0.0).put({"pitch": style.u("lean", 0, 5), "bend": style.u("stoop", 0, 10)})
    )


def run(phase: Array, style: Style) -> list[Track]:
    pose = gait(phase, style, RUN, 36, 88, style.u("flight", 0.02, 0.05))
    pose["x"] *= style.u("flight_gain", 1.0, 1.25)
    return solo(pose.put({"pitch": style.u("lean", 6, 13), "bend": style.u("stoop", 2, 9)}))


def march(phase: Array, style: Style, top: float = 75.0) -> list[Track]:
    hip = style.vary("hip", top)
    table = (
        [4, 2, 2, 2, 2, 6, int(0.6 * hip), int(hip), int(0.8 * hip), int(0.3 * hip)],
        [4, 3, 3, 3, 4, 20, int(0.9 * hip), int(1.15 * hip), int(0.9 * hip), 30],
        [0] * 10,
    )
    return solo(gait(phase, style, table, 32, 45, 0.0).put({"x": 0.0}))


def high_knees(phase: Array, style: Style) -> list[Track]:
    track = march(phase, style, 92)[0]
    track.pose.put({"lift": 0.025 * pulse(2 * phase), "r_elbow": 90.0, "l_elbow": 90.0})
    return [track]


def skip_alternate(phase: Array, style: Style) -> list[Track]:
    """Step and hop on one leg, then on the other: a child's skip."""
    table = (
        [30, 22, 12, 4, -4, -8, 20, 55, 62, 48],
        [10, 20, 14, 8, 8, 20, 60, 90, 85, 45],
        [0, 0, 0, -10, -25, -20, -5, 0, 0, 5],
    )
    pose = gait(phase, style, table, 45, 40, 0.0)
    return solo(
        pose.put({"lift": 0.06 * pulse(2 * phase + 0.25, 1.5), "pitch": 5.0, "x": style.u("step", 0.75, 1.1) * phase})
    )


def gallop(phase: Array, style: Style) -> list[Track]:
    p = np.mod(phase, 1.0)
    wide = style.vary("wide", 20)
    lead, trail = (
        wide * (0.5 + 0.5 * np.cos(2 * np.pi * (p - 0.12))),
        wide * (0.5 + 0.5 * np.cos(2 * np.pi * (p - 0.32))),
    )
    pose = Pose.standing(len(phase))
    for side, abd, off in (("r", lead, 0.0), ("l", trail, 0.25)):
        knee = 12 + 20 * pulse(phase + off + 0.3)
        pose.put({f"{side}_abd": abd + 1, f"{side}_knee": knee, f"{side}_flex": 0.5 * knee})
        pose.put({f"{side}_elev": 12 + style.u("arms", 0, 35) * pulse(phase, 1.0), f"{side}_plane": 80.0})
    pose.put({"lift": style.vary("height", 0.05) * pulse(phase + 0.05, 1.6), "roll": -3.0})
    return solo(pose.put({"z": style.u("step", 0.4, 0.65) * (phase + 0.06 * wave(phase))}))
