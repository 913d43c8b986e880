"""Composed actions between two people: what A does to or towards B, how B answers and how they meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from m2df_train.synthetic.kinematics import Array, Pose, Reach, Track
from m2df_train.synthetic.motion import Arm, Style, hand, hold, pulse, ramp
from m2df_train.synthetic.pairs import lay, pair, stroll, stumble
from m2df_train.synthetic.parts import ARMS, LEGS, limb_curve

# Where A's hands go, as joints of B, and the arm posture that leads there.
TOUCHES: dict[str, tuple[str, str, Arm]] = {
    "head": ("touching the head of", "head", hand(0.75, -0.2, 0.3)),
    "shoulder": ("laying a hand on the shoulder of", "r_shoulder", hand(0.8, -0.1, 0.05)),
    "belly": ("touching the belly of", "waist", hand(0.8, -0.2, -0.35)),
    "elbow": ("holding the arm of", "r_elbow", hand(0.75, -0.2, -0.3)),
    "hand": ("taking the hand of", "r_hand", hand(0.6, -0.2, -0.55)),
    "knee": ("touching the knee of", "r_knee", hand(0.55, -0.15, -0.8)),
}
Answer = Callable[[Pose, Array, Style], Pose]


def _arms_up(pose: Pose, t: Array, style: Style) -> Pose:
    w = hold(t, (0.42, 0.58), (0.85, 1.0))
    return lay(lay(pose, "r", (150, 60, 20, 10), w), "l", (150, 60, 20, 10), w)


def _cover(pose: Pose, t: Array, style: Style) -> Pose:
    w = hold(t, (0.4, 0.52), (0.8, 0.95))
    lay(lay(pose, "r", hand(0.4, -0.25, 0.25), w), "l", hand(0.35, -0.25, 0.2), w)
    return pose.add({"bend": 12 * w, "nod": 12 * w, "x": -0.05 * w})


def _push_off(pose: Pose, t: Array, style: Style) -> Pose:
    w = hold(t, (0.45, 0.55), (0.62, 0.8))
    lay(lay(pose, "r", hand(0.9, -0.15, 0.0), w), "l", hand(0.9, -0.15, 0.0), w)
    return pose.add({"bend": 10 * w})


def _walk_off(pose: Pose, t: Array, style: Style) -> Pose:
    turn = ramp(t, 0.5, 0.65)
    away = stroll(t, style, 0.6, 0.6, 1.0)
    for name in ("r_flex", "l_flex", "r_knee", "l_knee", "r_elev", "l_elev", "r_plane", "l_plane"):
        pose[name] = (1 - turn) * pose[name] + turn * away[name]
    return pose.add({"yaw": 180 * turn, "x": -0.6 * ramp(t, 0.6, 1.0)})


ANSWERS: dict[str, tuple[str, Answer]] = {
    "still": ("stands still", lambda p, t, s: p),
    "step_back": ("steps back", lambda p, t, s: stumble(p, t, 0.45, s.u("back", 0.2, 0.4), 3.0)),
    "stumble": ("stumbles back", lambda p, t, s: stumble(p, t, 0.45, s.u("back", 0.3, 0.6), 18.0)),
    "double_up": (
        "bends over",
        lambda p, t, s: p.add(
            {"bend": 42 * hold(t, (0.44, 0.58), (0.85, 1.0)), "pitch": 26 * hold(t, (0.44, 0.58), (0.85, 1.0))}
        ),
    ),
    "arms_up": ("raises both arms", _arms_up),
    "cover": ("covers the face", _cover),
    "push_off": ("pushes back", _push_off),
    "crouch": (
        "crouches",
        lambda p, t, s: p.add(
            {
                "r_flex": 60 * hold(t, (0.42, 0.6), (0.86, 1.0)),
                "l_flex": 60 * hold(t, (0.42, 0.6), (0.86, 1.0)),
                "r_knee": 100 * hold(t, (0.42, 0.6), (0.86, 1.0)),
                "l_knee": 100 * hold(t, (0.42, 0.6), (0.86, 1.0)),
                "pitch": 20 * hold(t, (0.42, 0.6), (0.86, 1.0)),
            }
        ),
    ),
    "turn": ("turns away", lambda p, t, s: p.add({"yaw": s.u("turn", 120, 180) * ramp(t, 0.45, 0.7)})),
    "walk_off": ("walks away", _walk_off),
    "nod": ("nods", lambda p, t, s: p.add({"nod": 18 * pulse(4 * t) * hold(t, (0.45, 0.5), (0.9, 1.0))})),
}


@dataclass(frozen=True)
class PairRecipe:
    """The parts of one composed two-person action."""

    touch: str
    arm: str
    both_hands: bool
    leg: str
    answer: str
    beats: float
    lean: float
    apart: float
    meet: tuple[float, float]
    numbers: tuple[float, float]

    def __call__(self, phase: Array, style: Style) -> list[Track]:
        """Perform both roles, the second person mirrored in place."""
        meet = [style.vary(f"meet{k}", d, 2.0) for k, d in enumerate(self.meet)]
        a, b = (stroll(phase, style, d, 0.0, 0.3) for d in meet)
        w = hold(phase, (0.26, 0.44), (0.66, 0.9))
        reaches: list[Reach] = []
        sides = "rl" if self.both_hands else "r"
        if self.touch:
            _, joint, arm = TOUCHES[self.touch]
            for side in sides:
                lay(a, side, arm, w)
                where = joint if side == "r" else joint.replace("r_", "l_")
                inward = 0.02 if side == "r" else -0.02
                reaches.append(
                    Reach(f"{side}_hand", hold(phase, (0.34, 0.45), (0.54, 0.64)), 1, where, (-0.03, 0.0, inward))
                )
        if self.arm:
            angles = limb_curve(ARMS[self.arm], self.beats * (phase - 0.3), self.numbers, style.vary("arm", 1.0))
            for side in sides:
                for k, name in enumerate(("elev", "plane", "elbow", "roll")):
                    channel = f"{side}_{name}"
                    a[channel] = (1 - w) * a[channel] + w * angles[:, k]
        if self.leg:
            lift = hold(phase, (0.28, 0.34), (0.6, 0.7))
            angles = limb_curve(
                LEGS[self.leg], np.clip((phase - 0.32) / 0.55, 0, 0.9), self.numbers, style.vary("leg", 1.0)
            )
            for k, name in enumerate(("flex", "abd", "knee")):
                a[f"r_{name}"] = (1 - lift) * a[f"r_{name}"] + lift * angles[:, k]
        a.add({"bend": self.lean * w, "pitch": 0.4 * self.lean * w})
        ANSWERS[self.answer][1](b, phase, style)
        return pair(a, b, style.vary("apart", self.apart, 0.5), tuple(reaches))

    def text(self) -> str:
        """Describe the composition in words."""
        if self.touch:
            doing = f"{TOUCHES[self.touch][0]} another person" + (" with both hands" if self.both_hands else "")
        elif self.arm:
            doing = ARMS[self.arm].verb.format("both arms" if self.both_hands else "one arm") + " at another person"
        else:
            doing = f"{LEGS[self.leg].verb} at another person"
        return f"a person {doing} who {ANSWERS[self.answer][0]}"


def draw_pair(rng: np.random.Generator) -> PairRecipe:
    """Draw a composition; named two-person actions (kicks, punches, pushes, handshakes) are left out."""
    kind = rng.random()
    touch = str(rng.choice(list(TOUCHES))) if kind < 0.5 else ""
    arms = [n for n, p in ARMS.items() if p.moves and n not in ("punch_forward", "swing", "hang")]
    arm = str(rng.choice(arms)) if 0.5 <= kind < 0.85 else ""
    leg = str(rng.choice(["kick_side", "kick_back", "heel_kick", "tap_front", "open_knee"])) if kind >= 0.85 else ""
    answers = [n for n in ANSWERS if not (touch == "hand" and n == "still")]
    apart = {"": rng.uniform(0.5, 1.0)}.get(touch, rng.uniform(0.35, 0.48))
    walks = rng.random(2) < 0.5
    meet = np.where(walks, rng.uniform(0.3, 0.8, 2), 0.0)
    return PairRecipe(
        touch=touch,
        arm=arm,
        both_hands=bool(rng.random() < 0.4),
        leg=leg,
        answer=str(rng.choice(answers)),
        beats=float(rng.integers(1, 5)),
        lean=float(rng.uniform(0, 18)),
        apart=float(apart),
        meet=(float(meet[0]), float(meet[1])),
        numbers=(float(rng.random()), float(rng.random())),
    )
