"""The look of a person: random proportions, flesh and clothes, and their drawing as shaded polygons far to near."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from m2df_train.synthetic.kinematics import JOINT, Array, Proportions, Skeleton

SHIFT = 4  # fractional bits of the vertices handed to OpenCV
_FAN = np.linspace(-np.pi / 2, np.pi / 2, 6)
_RING = np.linspace(0, 2 * np.pi, 8, endpoint=False)
# Capsules: first joint, second joint, radii in body heights, colour slot and a depth bias towards the viewer.
_PARTS: tuple[tuple[str, str, float, float, str, float], ...] = (
    ("chest", "head", 0.030, 0.028, "skin", -0.01),
    ("head", "crown", 0.046, 0.052, "skin", 0.01),
    *(
        part
        for side in "rl"
        for part in (
            (f"{side}_shoulder", f"{side}_elbow", 0.034, 0.026, "sleeve", 0.03),
            (f"{side}_elbow", f"{side}_wrist", 0.025, 0.018, "cuff", 0.04),
            (f"{side}_wrist", f"{side}_hand", 0.020, 0.015, "skin", 0.045),
            (f"{side}_hip", f"{side}_knee", 0.056, 0.038, "trousers", 0.0),
            (f"{side}_knee", f"{side}_ankle", 0.038, 0.024, "shin", 0.0),
            (f"{side}_heel", f"{side}_toe", 0.024, 0.016, "shoe", 0.01),
        )
    ),
)
_FIRST = np.array([JOINT[p[0]] for p in _PARTS])
_SECOND = np.array([JOINT[p[1]] for p in _PARTS])
_RADII = np.array([p[2:4] for p in _PARTS])
_BIAS = np.array([p[5] for p in _PARTS])
_HEAD = 1
_SKINS = np.array(
    [[236, 205, 180], [224, 182, 150], [205, 155, 120], [170, 118, 85], [128, 84, 58], [84, 56, 42]], dtype=np.float64
)


@dataclass(frozen=True)
class Look:
    """Flesh and clothes of one person; colours are RGB floats per capsule."""

    body: Proportions
    radii: Array  # [L, 2]
    colours: Array  # [L, 3]
    hair: Array
    long_hair: bool
    shirt: Array  # [bands, 3] from the shoulders down
    hips: Array
    widths: Array  # [4 rings, 2] half width and half depth at shoulder, chest, waist and hip
    skirt: float  # length as a part of the thigh, 0 for trousers
    shade: float


class Shape(NamedTuple):
    """A filled polygon in the image: vertices int32 [K, 2] with SHIFT fractional bits, colour and depth order."""

    depth: float
    points: NDArray[np.int32]
    colour: Sequence[float]


def _cloth(rng: np.random.Generator) -> Array:
    """A clothes colour: grey shades and dark blues are as common as saturated colours."""
    kind = rng.random()
    if kind < 0.4:
        return np.clip(np.full(3, rng.uniform(10, 245)) + rng.normal(0, 8, 3), 0, 255)
    if kind < 0.6:
        return np.clip(np.array([40, 55, 90]) * rng.uniform(0.4, 1.9) + rng.normal(0, 12, 3), 0, 255)
    return np.asarray(rng.uniform(10, 250, 3))


def _proportions(rng: np.random.Generator, child: float) -> tuple[Proportions, float, float]:
    """Return segment lengths, size against an adult and the girth factor."""
    small = rng.random() < child
    j = np.exp(0.06 * np.clip(rng.standard_normal(6), -2, 2))
    base = Proportions()
    leg, big_head = (0.86, 1.3) if small else (1.0, 1.0)
    body = Proportions(
        thigh=base.thigh * j[0] * leg,
        shin=base.shin * j[0] * leg * rng.uniform(0.95, 1.05),
        foot=base.foot * j[1],
        heel=base.heel,
        hip=base.hip * j[2],
        spine=base.spine * j[3],
        thorax=base.thorax * j[3],
        shoulder=base.shoulder * j[4] * rng.uniform(0.88, 1.08),
        neck=base.neck * big_head**0.5,
        head=base.head * big_head,
        upper_arm=base.upper_arm * j[5],
        forearm=base.forearm * j[5],
        hand=base.hand * j[5],
    )
    return body, (rng.uniform(0.6, 0.8) if small else rng.uniform(0.92, 1.08)), float(np.exp(rng.normal(0.03, 0.14)))


def sample_look(rng: np.random.Generator, child: float = 0.1) -> Look:
    """Draw proportions and clothes of one person, who is a child with probability `child`."""
    body, size, girth = _proportions(rng, child)
    skin = np.clip(_SKINS[rng.integers(len(_SKINS))] + rng.normal(0, 8, 3), 20, 255)
    shirt, trousers = _cloth(rng), _cloth(rng)
    if rng.random() < 0.12:
        trousers = shirt
    skirt = rng.uniform(0.5, 1.6) if rng.random() < 0.08 else 0.0
    long_sleeve, short_leg = rng.random() < 0.5, rng.random() < 0.2 or skirt > 0
    slots = {
        "skin": skin,
        "sleeve": shirt if rng.random() < 0.9 else skin,
        "cuff": shirt if long_sleeve else skin,
        "trousers": skin if skirt > 1 else trousers,
        "shin": skin if short_leg else trousers,
        "shoe": _cloth(rng),
    }
    colours = np.stack([slots[p[4]] for p in _PARTS])
    radii = _RADII * np.exp(0.08 * np.clip(rng.standard_normal((len(_PARTS), 2)), -2, 2))
    radii[2:] *= girth
    radii[:2] *= body.head / 0.07
    if rng.random() < 0.35:  # loose clothes hide the taper of the limbs
        for i, part in enumerate(_PARTS):
            if part[4] in ("trousers", "shin") or (part[4] == "sleeve") or (part[4] == "cuff" and long_sleeve):
                radii[i] = np.maximum(radii[i] * 1.12, radii[i].mean())
    s, h = body.shoulder, body.hip
    widths = np.array([[s * 1.02, 0.052], [s * 0.98, 0.075], [0.5 * s + 0.45 * h + 0.012, 0.066], [h + 0.042, 0.078]])
    widths[1:] *= girth
    if rng.random() < 0.3:
        bands = np.where((np.arange(9) % 2 == 0)[:, None], shirt, _cloth(rng))
    elif rng.random() < 0.3:
        bands = np.stack([shirt, shirt, np.clip(shirt * 0.55 + 0.45 * _cloth(rng), 0, 255)])
    else:
        bands = shirt[None]
    hair = np.array([[30, 25, 22], [70, 48, 32], [120, 90, 55], [190, 160, 110], [150, 150, 150]])[rng.integers(5)]
    hair = skin if rng.random() < 0.08 else hair * rng.uniform(0.6, 1.1)
    body = Proportions(**{name: size * value for name, value in vars(body).items()})
    radii, widths = size * radii, size * widths
    return Look(
        body,
        radii,
        colours,
        np.asarray(hair, dtype=np.float64),
        rng.random() < 0.3,
        bands,
        trousers,
        widths,
        skirt,
        rng.uniform(0.05, 0.4),
    )


def capsules(p0: Array, p1: Array, r0: Array, r1: Array) -> Array:
    """Outlines [..., 12, 2] of tapered capsules between image points [..., 2] with radii [...]."""
    d = p1 - p0
    angle = np.arctan2(d[..., 1], d[..., 0])[..., None]
    front, back = angle + _FAN, angle + np.pi + _FAN
    head = p1[..., None, :] + r1[..., None, None] * np.stack([np.cos(front), np.sin(front)], -1)
    tail = p0[..., None, :] + r0[..., None, None] * np.stack([np.cos(back), np.sin(back)], -1)
    return np.concatenate([head, tail], axis=-2)


def to_fixed(points: Array) -> NDArray[np.int32]:
    """Round image points to OpenCV's fixed-point vertices."""
    return np.asarray(np.rint(np.minimum(np.maximum(points, -2000.0), 2000.0) * (1 << SHIFT)), dtype=np.int32)


def torso_rings(person: Skeleton, look: Look, frames: NDArray[np.int64]) -> Array:
    """Cross-sections of the trunk at shoulder, chest, waist and hip, [M, 4, 8, 3] in the world."""
    j = person.joints[frames]
    centres = np.stack(
        [
            0.08 * j[:, 1] + 0.92 * j[:, 2],
            0.42 * j[:, 1] + 0.58 * j[:, 2],
            0.3 * j[:, 0] + 0.7 * j[:, 1],
            j[:, 0] - 0.01 * person.pelvis[frames][:, :, 1],
        ],
        axis=1,
    )
    axes = np.stack([person.chest[frames], person.chest[frames], person.waist[frames], person.pelvis[frames]], axis=1)
    ring = np.stack([np.cos(_RING), np.zeros(8), np.sin(_RING)], -1)  # (8, 3) forward, up, right
    flat = ring[None] * np.stack([look.widths[:, 1], np.zeros(4), look.widths[:, 0]], -1)[:, None]
    return np.asarray(centres[:, :, None] + np.einsum("mrij,rkj->mrki", axes, flat))


class Camera:
    """Scaled orthographic camera with mild perspective; maps world points to pixels per frame."""

    def __init__(self, yaw: float, pitch: float, distance: float) -> None:
        y, p = np.deg2rad([yaw, pitch])
        turn = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
        tilt = np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
        self.view = tilt @ turn
        self._distance = distance

    def project(self, points: Array) -> tuple[Array, Array, Array]:
        """Return screen points [..., 2] (y down, body heights), depth towards the viewer [...] and magnification."""
        seen = points @ self.view.T
        near = 1.0 / np.maximum(1.0 - seen[..., 2] / self._distance, 0.6)
        return seen[..., :2] * np.array([1.0, -1.0]) * near[..., None], seen[..., 2], near


def person_shapes(
    person: Skeleton,
    look: Look,
    camera: Camera,
    scale: Array,
    origin: Array,
    frames: NDArray[np.int64],
    flip: float,
) -> list[list[Shape]]:
    """Polygons of a person for each of `frames`.

    Args:
        person: Solved skeleton over all frames of the clip.
        look: Flesh and clothes.
        camera: View of the scene.
        scale: Pixels per body height [M].
        origin: Image position [M, 2] of the world origin.
        frames: Indices [M] of the wanted frames.
        flip: -1 mirrors the scene left to right, else 1.
    """
    to_image = scale[:, None, None] * np.array([flip, 1.0])
    xy, depth, near = camera.project(person.joints[frames])
    xy = xy * to_image + origin[:, None]
    zoom = (near * scale[:, None])[:, _FIRST]
    p0, p1 = xy[:, _FIRST].copy(), xy[:, _SECOND]
    p0[:, _HEAD] += 0.15 * (p0[:, _HEAD] - p1[:, _HEAD])
    p1[:, _HEAD] -= 0.55 * (p1[:, _HEAD] - p0[:, _HEAD])
    outline = to_fixed(capsules(p0, p1, zoom * look.radii[:, 0], zoom * look.radii[:, 1]))
    order = 0.5 * (depth[:, _FIRST] + depth[:, _SECOND]) + _BIAS
    lean = np.abs(p1 - p0)
    lit = 1.0 - look.shade * (0.35 + 0.5 * lean[..., 0] / (lean.sum(-1) + 1e-6))
    lit += 0.6 * look.shade * (order - order.mean(axis=1, keepdims=True))
    lit[:, _HEAD] = 1.0
    colours = np.minimum(np.maximum(look.colours * lit[..., None], 0), 255).tolist()
    depths = order.tolist()
    rings, ring_depth, _ = camera.project(torso_rings(person, look, frames))
    trunk = _trunk(rings * to_image[:, None] + origin[:, None, None], ring_depth.mean(axis=(1, 2)), xy, look)
    face = person.head[frames][:, :, 0] @ camera.view.T
    hair = _hair(xy, order[:, _HEAD], face * np.array([flip, -1.0, 1.0]), scale, look)
    return [
        [Shape(*part) for part in zip(depths[m], outline[m], colours[m], strict=True)] + trunk[m] + hair[m]
        for m in range(len(frames))
    ]


def _trunk(rings: Array, depth: Array, xy: Array, look: Look) -> list[list[Shape]]:
    """Hulls of hips, shirt, shirt bands and skirt from image rings [M, 4, 8, 2]."""
    m = len(rings)
    layers: list[tuple[float, Array, list[float]]] = [
        (-0.004, rings[:, 2:].reshape(m, 16, 2), look.hips.tolist()),
        (-0.002, rings[:, :3].reshape(m, 24, 2), look.shirt[0].tolist()),
    ]
    n = len(look.shirt)
    cuts = np.linspace(0, 2, n + 1)
    for k in range(1, n):
        low, high = (
            rings[:, min(int(c), 1)] + (c - min(int(c), 1)) * (rings[:, min(int(c), 1) + 1] - rings[:, min(int(c), 1)])
            for c in cuts[k : k + 2]
        )
        layers.append((-0.002 + 1e-5 * k, np.concatenate([low, high], axis=1), look.shirt[k].tolist()))
    if look.skirt > 0:
        knees, hips = xy[:, [JOINT["r_knee"], JOINT["l_knee"]]], xy[:, [JOINT["r_hip"], JOINT["l_hip"]]]
        hem = hips + min(look.skirt, 1.3) * (knees - hips)
        spread = 0.3 * np.ptp(rings[:, 3, :, 0], axis=1)[:, None, None] * np.array([1.0, 0.0])
        hem = np.concatenate([rings[:, 3], hem + spread, hem - spread], axis=1)
        layers.append((0.02, hem, look.hips.tolist()))
    out: list[list[Shape]] = [[] for _ in range(m)]
    for bias, points, colour in layers:
        fixed = to_fixed(points)
        for k, d in enumerate(depth.tolist()):
            out[k].append(Shape(d + bias, cv2.convexHull(fixed[k]), colour))
    return out


def _hair(xy: Array, order: Array, face: Array, scale: Array, look: Look) -> list[list[Shape]]:
    """Hair as a cap shifted to the back of the head, seen in full from behind.

    `face` is the gaze [M, 3] in the image.
    """
    back = -face[:, :2]
    head, crown = xy[:, JOINT["head"]], xy[:, JOINT["crown"]]
    up = crown - head
    r = scale * 0.05 * look.body.head / 0.07
    top = head + 0.55 * up + back * (0.35 * r)[:, None]
    low = head + (-0.7 if look.long_hair else 0.1) * up + back * (0.7 * r)[:, None]
    frontal = face[:, 2] > 0.35
    if not look.long_hair:
        low = np.where((face[:, 2] > 0.5)[:, None], head + 0.5 * up + back * (0.35 * r)[:, None], low)
    caps = to_fixed(capsules(low, top, 0.8 * r, 1.02 * r))
    fringes = to_fixed(capsules(head + 0.78 * up, head + 0.8 * up, 0.85 * r, 0.85 * r))
    colour = look.hair.tolist()
    hidden = -0.03 if look.long_hair else -0.002
    out = []
    for cap, fringe, front, depth in zip(caps, fringes, frontal.tolist(), order.tolist(), strict=True):
        shapes = [Shape(depth + (hidden if front else 0.002), cap, colour)]
        if front:
            shapes.append(Shape(depth + 0.003, fringe, colour))
        out.append(shapes)
    return out


def draw(image: NDArray[np.uint8], shapes: list[Shape]) -> None:
    """Fill polygons from far to near."""
    for shape in sorted(shapes, key=lambda s: s.depth):
        cv2.fillConvexPoly(image, shape.points, shape.colour, cv2.LINE_AA, SHIFT)
