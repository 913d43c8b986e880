"""An endless family of composed training actions, one per index, put together from independent parts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from m2df_train.synthetic.composed_pairs import draw_pair
from m2df_train.synthetic.kinematics import STAND, Array, Pose, Track, channel_vector
from m2df_train.synthetic.motion import Style, hold
from m2df_train.synthetic.parts import ARMS, LEGS, PATHS, TRUNKS, apply_arm, apply_legs, limb_curve
from m2df_train.synthetic.table import Action, View

PAIRS = 0.25  # share of two-person compositions
# Compositions that repeat a named action: (right arm, left arm, legs or path).
_NAMED = frozenset(
    {
        ("raise_side", "raise_side", "straddle"),
        ("flap", "flap", "straddle"),
        ("swing", "swing", "walk"),
        ("swing", "swing", "march"),
        ("hang", "hang", "*"),
        ("hips", "hips", "lunge"),
        ("swing", "swing", "run"),
    }
)

_IDLE_ARMS = frozenset({"swing", *(name for name, part in ARMS.items() if not part.moves)})


@dataclass(frozen=True)
class Recipe:
    """The parts of one composed action and the numbers that make it this class."""

    right: str
    left: str
    alternate: bool
    legs: str
    path: str
    trunk: str
    arm_numbers: tuple[float, float]
    leg_numbers: tuple[float, float]
    trunk_number: float
    arm_tempo: float
    trunk_tempo: float
    offset: float
    periodic: bool

    def __call__(self, phase: Array, style: Style) -> list[Track]:
        """Perform the parts together."""
        if self.path:
            pose = PATHS[self.path][1](phase, style, self.trunk_number)
        else:
            pose = Pose.standing(len(phase))
            apply_legs(pose, self.legs, phase, self.leg_numbers, style.vary("legs", 1.0))
        beat = self.arm_tempo * phase + self.offset
        for side, name, shift in (("r", self.right, 0.0), ("l", self.left, 0.5 if self.alternate else 0.0)):
            if name == "hang" and self.path:
                continue
            gain = style.vary("arm" if self.right == self.left else f"arm_{side}", 1.0)
            angles = limb_curve(ARMS[name], beat + shift, self.arm_numbers, gain)
            tilt = style.noise(211 if self.right == self.left else 211 + ord(side), 4) * [5, 6, 5, 6]
            apply_arm(pose, side, angles + tilt * style.jitter / 0.12)
        TRUNKS[self.trunk][1](pose, self.trunk_tempo * phase, style.vary("trunk", self.trunk_number))
        if not self.periodic:
            rest = channel_vector(STAND)
            share = hold(phase, (0.0, 0.22), (0.78, 1.0))[:, None]
            pose.q = rest + share * (pose.q - rest)
        return [Track(pose)]

    def text(self) -> str:
        """Describe the composition in words."""
        if self.right == self.left:
            arm_part = ARMS[self.right].verb.format("both arms in turn" if self.alternate else "both arms")
        elif self.left == "hang":
            arm_part = ARMS[self.right].verb.format("one arm")
        else:
            arm_part = f"{ARMS[self.right].verb.format('one arm')} and {ARMS[self.left].verb.format('the other')}"
        base = PATHS[self.path][0] if self.path else LEGS[self.legs].verb
        trunk = TRUNKS[self.trunk][0]
        moving_legs = bool(self.path) or self.legs != "still"
        pieces = [] if self.right == self.left == "hang" else [arm_part]
        if moving_legs or not pieces:
            pieces.append(base)
        out = " while ".join(pieces)
        if trunk:
            out += f" {trunk}" if trunk.startswith("with") else f" and {trunk}"
        once = "" if self.periodic else " once"
        return f"a person {out}{once}"


def _draw(rng: np.random.Generator) -> Recipe:
    names, moving = list(ARMS), [n for n, p in ARMS.items() if p.moves]
    right = str(rng.choice(names if rng.random() < 0.35 else moving))
    mode = rng.random()
    left = right if mode < 0.5 else ("hang" if mode < 0.75 else str(rng.choice(names)))
    path = str(rng.choice(list(PATHS))) if rng.random() < 0.3 else ""
    legs = "still" if rng.random() < 0.3 else str(rng.choice(list(LEGS)))
    trunk = str(rng.choice(list(TRUNKS))) if rng.random() < (0.25 if path else 0.5) else "still"
    if path and trunk == "turn":
        trunk = "still"
    pair = tuple(float(x) for x in rng.random(2))
    other = tuple(float(x) for x in rng.random(2))
    return Recipe(
        right=right,
        left=left,
        alternate=bool(rng.random() < 0.4) and right == left and ARMS[right].moves,
        legs=legs,
        path=path,
        trunk=trunk,
        arm_numbers=(pair[0], pair[1]),
        leg_numbers=(other[0], other[1]),
        trunk_number=float(rng.random()),
        arm_tempo=float(rng.choice([1.0, 1.0, 2.0, 0.5])),
        trunk_tempo=float(rng.choice([1.0, 1.0, 0.5])),
        offset=float(rng.choice([0.0, 0.25, 0.5, 0.75])),
        periodic=bool(path) or bool(rng.random() < 0.6),
    )


def _accepted(recipe: Recipe) -> bool:
    """Whether a composition moves in at least two parts, or in two different ways, and repeats no named action."""
    where = recipe.path or recipe.legs
    if {(recipe.right, recipe.left, where), (recipe.right, recipe.left, "*")} & _NAMED and recipe.trunk == "still":
        return False
    # With idle arms, only legs or only a trunk in motion is a named gait, jump, march, side bend or twist.
    idle = {recipe.right, recipe.left} <= _IDLE_ARMS
    if idle and (recipe.trunk == "still" or where in ("still", "wide")):
        return False
    arms = ARMS[recipe.right].moves + (recipe.left != recipe.right and ARMS[recipe.left].moves)
    held = recipe.right != "hang" and not ARMS[recipe.right].moves
    parts = arms + bool(recipe.path or LEGS[recipe.legs].moves) + (recipe.trunk not in ("still", "crouch"))
    return parts + 0.5 * held >= 1.5


def composed_action(index: int) -> Action:
    """Return the composed action that belongs to a non-negative index.

    Clips of one composed action share its parts, amplitudes, tempo ratios and phase couplings up to the style of the
    performer; the body, the clothes, the view, the pace and the start phase vary. None repeats a named action.
    """
    rng = np.random.default_rng([index & 0xFFFFFFFF, index >> 32, 4242])
    if rng.random() < PAIRS:
        both = draw_pair(rng)
        low = float(rng.uniform(1.5, 2.6))
        text = both.text()
        return Action(f"composed_{index}", text, 2, True, "train", both, "composed", (low, 1.3 * low), False, "pair")
    recipe = _draw(rng)
    while not _accepted(recipe):
        recipe = _draw(rng)
    pace = float(rng.uniform(0.7, 1.3)) / max(recipe.arm_tempo, 1.0) ** 0.5
    rate = (0.85 * pace, 1.15 * pace) if recipe.periodic else (1.1 / pace, 1.6 / pace)
    view: View = "any"
    if recipe.path:
        view = "front" if recipe.path == "sideways" else "side"
    return Action(
        f"composed_{index}",
        recipe.text(),
        1,
        True,
        "train",
        recipe,
        "composed",
        rate,
        recipe.periodic,
        view,
        bool(recipe.path),
        not recipe.path and recipe.legs in ("still", "wide"),
    )
