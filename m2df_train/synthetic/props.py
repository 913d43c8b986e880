"""Things a person holds: cup, stick, racket, bat, club, ball and box, drawn with the hand."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from m2df_train.synthetic.body import Shape, capsules, to_fixed
from m2df_train.synthetic.kinematics import JOINT, Array

# Length of the shaft, radius of the shaft and half width of the head, in body heights.
_HELD: dict[str, tuple[float, float, float]] = {
    "cup": (0.05, 0.022, 0.0),
    "stick": (0.20, 0.007, 0.0),
    "racket": (0.26, 0.010, 0.065),
    "bat": (0.45, 0.018, 0.0),
    "club": (0.55, 0.008, 0.018),
    "ball": (0.0, 0.065, 0.0),
    "ball_small": (0.0, 0.025, 0.0),
}
HAND_HELD = ("cup", "racket", "ball_small")  # by the right hand, in the way of nothing


def prop_shapes(name: str, xy: Array, order: float, scale: float, colour: Sequence[float]) -> list[Shape]:
    """Polygons of the prop `name` for one frame, from image joints [J, 2]."""
    right, left = xy[JOINT["r_hand"]], xy[JOINT["l_hand"]]
    if name == "box":
        centre, half = 0.5 * (right + left), 0.13 * scale
        corner = np.array([[-1.0, -0.7], [1.0, -0.7], [1.0, 0.7], [-1.0, 0.7]]) * half
        return [Shape(order + 0.2, to_fixed(centre + corner), colour)]
    length, radius, head = _HELD[name]
    out = []
    hands = ("r", "l") if name == "stick" else ("r",)
    for side in hands:
        grip, wrist = xy[JOINT[f"{side}_hand"]], xy[JOINT[f"{side}_wrist"]]
        along = (grip - wrist) / (0.075 * scale)
        if name in ("bat", "club"):  # two-handed: the shaft leaves the line of the forearms
            between = left - xy[JOINT["l_elbow"]] + right - xy[JOINT["r_elbow"]]
            along = between / (np.linalg.norm(between) + 1e-6)
        if name == "cup":
            along = np.array([0.0, -1.0])
        tip = grip + along * length * scale
        r = np.asarray(radius * scale)
        out.append(Shape(order + 0.25, to_fixed(capsules(grip, tip, r, r)), colour))
        if head:
            angle = float(np.rad2deg(np.arctan2(along[1], along[0])))
            axes = (max(int(1.3 * head * scale), 1), max(int(head * scale), 1))
            ring = cv2.ellipse2Poly((int(tip[0]), int(tip[1])), axes, int(angle), 0, 360, 30)
            out.append(Shape(order + 0.24, to_fixed(np.asarray(ring, dtype=np.float64)), colour))
    return out
