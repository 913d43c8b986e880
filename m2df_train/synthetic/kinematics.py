"""Small 3-D human skeleton: pose channels in degrees, vectorised forward kinematics and two-bone inverse kinematics.

Body axes are x forward, y up, z to the person's right, so a person with heading 0 walks to the right of the screen and
shows the right side to a viewer who stands on +z. Lengths are in body heights of an average adult.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_ARM = ("elev", "plane", "elbow", "roll")
_LEG = ("flex", "abd", "turn", "knee", "ankle")
CHANNELS: tuple[str, ...] = (
    "x", "z", "lift", "yaw", "pitch", "roll", "bend", "lean", "twist", "nod", "look",
    *(f"{side}_{name}" for side in "rl" for name in _ARM),
    *(f"{side}_{name}" for side in "rl" for name in _LEG),
)  # fmt: skip
INDEX: dict[str, int] = {name: i for i, name in enumerate(CHANNELS)}
POSITION_CHANNELS = 3  # x, z and lift are lengths; every later channel is an angle in degrees

JOINTS: tuple[str, ...] = (
    "pelvis", "waist", "chest", "head",
    "r_shoulder", "r_elbow", "r_wrist", "r_hand", "l_shoulder", "l_elbow", "l_wrist", "l_hand",
    "r_hip", "r_knee", "r_ankle", "r_toe", "l_hip", "l_knee", "l_ankle", "l_toe", "r_heel", "l_heel", "crown",
)  # fmt: skip
JOINT: dict[str, int] = {name: i for i, name in enumerate(JOINTS)}

# Thickness of the flesh below each joint, in body heights, for resting on the ground.
_ARM_CLEARANCE, _LEG_CLEARANCE = (0.05, 0.03, 0.02, 0.012), (0.07, 0.045, 0.035, 0.012)
_CLEARANCE = np.array(
    [0.075, 0.075, 0.075, 0.06, *_ARM_CLEARANCE, *_ARM_CLEARANCE, *_LEG_CLEARANCE, *_LEG_CLEARANCE, 0.012, 0.012, 0.06]
)

STAND: dict[str, float] = {
    "r_elev": 8, "r_plane": 60, "r_elbow": 14, "r_roll": 60, "l_elev": 8, "l_plane": 60, "l_elbow": 14, "l_roll": 60,
    "r_abd": 4, "l_abd": 4, "r_knee": 3, "l_knee": 3, "r_flex": 2, "l_flex": 2, "r_turn": 8, "l_turn": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Proportions:
    """Segment lengths in adult body heights (average values after Winter, Biomechanics of Human Movement)."""

    thigh: float = 0.245
    shin: float = 0.235
    foot: float = 0.115
    heel: float = 0.04
    hip: float = 0.055
    spine: float = 0.15
    thorax: float = 0.15
    shoulder: float = 0.115
    neck: float = 0.10
    head: float = 0.07
    upper_arm: float = 0.175
    forearm: float = 0.145
    hand: float = 0.075


@dataclass
class Pose:
    """Pose channels over frames, `q` float64 [M, len(CHANNELS)] in degrees and body heights."""

    q: Array

    @classmethod
    def standing(cls, frames: int) -> Pose:
        """Return `frames` copies of a relaxed standing pose."""
        return cls(np.tile(channel_vector(STAND), (frames, 1)))

    def __getitem__(self, name: str) -> Array:
        return np.asarray(self.q[:, INDEX[name]])

    def __setitem__(self, name: str, value: Array | float) -> None:
        self.q[:, INDEX[name]] = value

    def put(self, values: Mapping[str, Array | float]) -> Pose:
        """Overwrite several channels and return self."""
        for name, value in values.items():
            self[name] = value
        return self

    def add(self, values: Mapping[str, Array | float]) -> Pose:
        """Add to several channels and return self."""
        for name, value in values.items():
            self.q[:, INDEX[name]] += value
        return self


@dataclass(frozen=True)
class Skeleton:
    """Solved joints [M, J, 3] in the world and the segment frames [M, 3, 3] used to hang flesh on them."""

    joints: Array
    pelvis: Array
    waist: Array
    chest: Array
    head: Array


@dataclass(frozen=True)
class Reach:
    """Pull the end of a limb of one person to a joint of another (or the same) person.

    `weight` [M] in 0..1 blends from the posed position to the target; `offset` is world x, y, z.
    """

    limb: str  # "r_hand", "l_hand", "r_foot" or "l_foot"
    weight: Array
    person: int
    joint: str
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass
class Track:
    """One person of an action: the pose, where the person starts in the scene and which contacts hold."""

    pose: Pose
    at: tuple[float, float] = (0.0, 0.0)
    heading: float = 0.0
    reaches: tuple[Reach, ...] = ()
    prop: str = ""
    body: Proportions = field(default_factory=Proportions)


def channel_vector(values: Mapping[str, float]) -> Array:
    """Return a full channel vector with zeros where `values` names nothing."""
    out = np.zeros(len(CHANNELS))
    for name, value in values.items():
        out[INDEX[name]] = value
    return out


def rotation(axis: int, degrees: Array) -> Array:
    """Rotation matrices [M, 3, 3] about axis 0, 1 or 2 by angles [M] in degrees."""
    a = np.deg2rad(degrees)
    out = np.zeros((*a.shape, 3, 3))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    out[..., axis, axis] = 1.0
    out[..., i, i] = out[..., j, j] = np.cos(a)
    out[..., j, i] = np.sin(a)
    out[..., i, j] = -out[..., j, i]
    return out


def _arm_directions(pose: Pose, side: str) -> tuple[Array, Array]:
    s = 1.0 if side == "r" else -1.0
    e, p, k, r = (np.deg2rad(pose[f"{side}_{name}"]) for name in _ARM)
    zero = np.zeros_like(e)
    upper = np.stack([np.sin(e) * np.cos(p), -np.cos(e), s * np.sin(e) * np.sin(p)], -1)
    raised = np.stack([np.cos(e) * np.cos(p), np.sin(e), s * np.cos(e) * np.sin(p)], -1)
    medial = np.stack([np.sin(p), zero, -s * np.cos(p)], -1)
    bend = np.cos(r)[:, None] * raised + np.sin(r)[:, None] * medial
    return upper, np.cos(k)[:, None] * upper + np.sin(k)[:, None] * bend


def _leg_directions(pose: Pose, side: str) -> tuple[Array, Array, Array]:
    s = 1.0 if side == "r" else -1.0
    flex, abd, turn, knee, ankle = (pose[f"{side}_{name}"] for name in _LEG)
    flat = np.clip(knee - flex, -55.0, 28.0)  # an ankle keeps the sole level as far as it bends
    flex = flex + pose["pitch"]  # hip flexion is given against the vertical, so a tilted pelvis leaves the legs
    shin = flex - knee
    frame = rotation(0, -s * abd) @ rotation(1, -s * turn)
    angles = np.deg2rad(np.stack([flex, shin, shin + 90.0 + np.clip(flat + ankle, -65.0, 35.0)], -1))
    local = np.stack([np.sin(angles), -np.cos(angles), np.zeros_like(angles)], -1)  # (M, 3 segments, 3)
    thigh, calf, foot = np.moveaxis(np.einsum("mij,msj->msi", frame, local), 1, 0)
    return thigh, calf, foot


def solve(track: Track) -> Skeleton:
    """Forward kinematics of one person, with the lowest body part resting `lift` above the ground."""
    pose, b = track.pose, track.body
    m = len(pose.q)
    pelvis = rotation(1, pose["yaw"]) @ rotation(2, -pose["pitch"]) @ rotation(0, pose["roll"])
    half = rotation(1, pose["twist"] / 2) @ rotation(2, -pose["bend"] / 2) @ rotation(0, pose["lean"] / 2)
    waist = pelvis @ half
    chest = waist @ half
    head = chest @ rotation(1, pose["look"]) @ rotation(2, -pose["nod"])
    out = np.zeros((m, len(JOINTS), 3))
    out[:, 1] = b.spine * pelvis[:, :, 1]
    out[:, 2] = out[:, 1] + b.thorax * chest[:, :, 1]
    out[:, 3] = out[:, 2] + b.neck * head[:, :, 1] + 0.015 * head[:, :, 0]
    out[:, JOINT["crown"]] = out[:, 3] + b.head * head[:, :, 1]
    for first, side, s in ((4, "r", 1.0), (8, "l", -1.0)):
        upper, lower = _arm_directions(pose, side)
        raised = np.clip(upper[:, 1], 0.0, 1.0)[:, None]  # the shoulder girdle rises with the arm
        out[:, first] = out[:, 2] + chest @ np.array([0.0, -0.012, s * b.shoulder]) + 0.03 * raised * chest[:, :, 1]
        for k, (length, direction) in enumerate(((b.upper_arm, upper), (b.forearm, lower), (b.hand, lower))):
            out[:, first + k + 1] = out[:, first + k] + length * np.einsum("mij,mj->mi", chest, direction)
    for first, side, s in ((12, "r", 1.0), (16, "l", -1.0)):
        thigh, calf, foot = _leg_directions(pose, side)
        out[:, first] = pelvis @ np.array([0.0, -0.015, s * b.hip])
        for k, (length, direction) in enumerate(((b.thigh, thigh), (b.shin, calf), (b.foot, foot))):
            out[:, first + k + 1] = out[:, first + k] + length * np.einsum("mij,mj->mi", pelvis, direction)
        heel = b.heel * (0.8 * calf - 0.55 * foot)
        out[:, JOINT[f"{side}_heel"]] = out[:, first + 2] + np.einsum("mij,mj->mi", pelvis, heel)
        out[:, first + 3] += np.einsum("mij,mj->mi", pelvis, 0.8 * b.heel * calf)
    out[..., 1] += (pose["lift"] - np.min(out[..., 1] - _CLEARANCE, axis=1))[:, None]
    out[..., 0] += pose["x"][:, None]
    out[..., 2] += pose["z"][:, None]
    turn = rotation(1, np.full(1, track.heading))[0]
    out = out @ turn.T + np.array([track.at[0], 0.0, track.at[1]])
    return Skeleton(out, *(turn @ frame for frame in (pelvis, waist, chest, head)))


def bend_limb(joints: Array, chain: tuple[int, int, int], target: Array, weight: Array) -> None:
    """Two-bone inverse kinematics in place: move joint `chain[2]` towards `target` [M, 3], bending as before.

    Joints that hang on the end of the limb move along unturned.
    """
    root, middle, end = (joints[:, i] for i in chain)
    a = np.linalg.norm(middle - root, axis=-1, keepdims=True)
    b = np.linalg.norm(end - middle, axis=-1, keepdims=True)
    wish = end + weight[:, None] * (target - end)
    line = wish - root
    dist = np.clip(np.linalg.norm(line, axis=-1, keepdims=True), 1e-6, None)
    line = line / dist
    dist = np.clip(dist, np.abs(a - b) + 1e-3, (a + b) * 0.999)
    along = (a * a - b * b + dist * dist) / (2 * dist)
    pole = middle - root
    pole = pole - np.sum(pole * line, -1, keepdims=True) * line + np.array([0.0, -1e-4, 0.0])
    pole = pole / np.clip(np.linalg.norm(pole, axis=-1, keepdims=True), 1e-6, None)
    joints[:, chain[1]] = root + along * line + np.sqrt(np.clip(a * a - along * along, 0.0, None)) * pole
    joints[:, chain[2]] = root + dist * line


def solve_scene(tracks: list[Track]) -> list[Skeleton]:
    """Solve every person, then make the contacts between them hold."""
    people = [solve(track) for track in tracks]
    for track, person in zip(tracks, people, strict=True):
        for reach in track.reaches:
            side, hand = reach.limb[0], reach.limb.endswith("hand")
            first = JOINT[f"{side}_shoulder" if hand else f"{side}_hip"]
            tip = first + 3
            target = people[reach.person].joints[:, JOINT[reach.joint]] + np.array(reach.offset)
            before = person.joints[:, first + 2].copy()
            overhang = person.joints[:, tip] - before
            bend_limb(person.joints, (first, first + 1, first + 2), target - 0.6 * overhang, reach.weight)
            person.joints[:, tip] = person.joints[:, first + 2] + overhang
            if not hand:
                person.joints[:, JOINT[f"{side}_heel"]] += person.joints[:, first + 2] - before
    return people
