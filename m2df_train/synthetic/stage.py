"""People in a scene, and the pictures that a camera takes of them.

A stage holds everything that its frames depend on, so a frame has the same pixels whatever was rendered before it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from m2df_train.synthetic.body import Camera, Look, draw, person_shapes
from m2df_train.synthetic.kinematics import JOINT, Array, Skeleton
from m2df_train.synthetic.props import prop_shapes
from m2df_train.synthetic.scene import Film, Image

_GROUNDED = [JOINT[name] for name in ("pelvis", "r_ankle", "l_ankle")]


@dataclass(frozen=True)
class Stage:
    """Everything needed to draw any of n frames."""

    height: int
    width: int
    people: list[Skeleton]
    looks: list[Look]
    props: list[list[str]]  # for every person and frame, empty where nothing is held
    camera: Camera
    flip: float  # -1 mirrors the scene left to right, else 1
    scale: Array  # [n] pixels per body height
    origin: Array  # [n, 2]
    view: Array | None  # [n, 2, 3] frame to background maps of a zooming camera, else None
    corner: NDArray[np.int64]  # [n, 2] first column and row of the background in view
    backdrop: Image
    shadow: NDArray[np.uint16] | None  # [h, w, 1] gain in 1/256 around the feet
    film: Film
    prop_colour: tuple[float, float, float]
    numbers: NDArray[np.int64]  # [n] of the frames on the film

    def render(self, frames: NDArray[np.int64]) -> Image:
        """Frames by their index in 0..n-1, uint8 [M, H, W, 3] RGB."""
        out = np.empty((len(frames), self.height, self.width, 3), dtype=np.uint8)
        drawings = [
            person_shapes(person, look, self.camera, self.scale[frames], self.origin[frames], frames, self.flip)
            for person, look in zip(self.people, self.looks, strict=True)
        ]
        feet = [self._feet(person, frames).tolist() for person in self.people]
        for m, index in enumerate(frames.tolist()):
            image = self._backdrop(index)
            shapes = [shape for drawing in drawings for shape in drawing[m]]
            for person, props, below in zip(self.people, self.props, feet, strict=True):
                self._cast_shadow(image, *below[m])
                if prop := props[index]:
                    xy, depth, _ = self.camera.project(person.joints[index])
                    xy = xy * (self.scale[index] * np.array([self.flip, 1.0])) + self.origin[index]
                    order = float(depth[JOINT["r_hand"]]) - 0.2
                    shapes += prop_shapes(prop, xy, order, float(self.scale[index]), self.prop_colour)
            draw(image, shapes)
            out[m] = self.film.develop(image, int(self.numbers[index]), self.height, self.width)
        return out

    def _backdrop(self, index: int) -> Image:
        if self.view is None:
            high, wide = self.backdrop.shape[:2]
            x = min(max(int(self.corner[index, 0]), 0), wide - self.width)
            y = min(max(int(self.corner[index, 1]), 0), high - self.height)
            return self.backdrop[y : y + self.height, x : x + self.width].copy()
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        size = (self.width, self.height)
        warped = cv2.warpAffine(self.backdrop, self.view[index], size, flags=flags, borderMode=cv2.BORDER_REFLECT)
        return np.asarray(warped, dtype=np.uint8)

    def _feet(self, person: Skeleton, frames: NDArray[np.int64]) -> NDArray[np.int64]:
        """Image points [M, 2] on the ground below a person."""
        below = person.joints[frames][:, _GROUNDED].mean(axis=1) * np.array([1.0, 0.0, 1.0])
        to_image = self.scale[frames, None] * np.array([self.flip, 1.0])
        xy = self.camera.project(below)[0] * to_image + self.origin[frames]
        return np.asarray(np.clip(np.rint(xy), -10_000, 10_000), dtype=np.int64)

    def _cast_shadow(self, image: Image, x: int, y: int) -> None:
        """Darken the ground around an image point."""
        if self.shadow is None:
            return
        half_h, half_w = self.shadow.shape[0] // 2, self.shadow.shape[1] // 2
        x0, x1 = max(x - half_w, 0), min(x + half_w, self.width)
        y0, y1 = max(y - half_h, 0), min(y + half_h, self.height)
        if x1 > x0 and y1 > y0:
            dark = self.shadow[y0 - y + half_h : y1 - y + half_h, x0 - x + half_w : x1 - x + half_w]
            image[y0:y1, x0:x1] = (image[y0:y1, x0:x1] * dark) >> 8


def shadow(depth: float, scale: float) -> NDArray[np.uint16]:
    """Gain of an elliptic shadow that takes away `depth` of the light in its middle."""
    half_w, half_h = int(0.24 * scale) + 2, int(0.07 * scale) + 2
    x, y = (np.arange(-half, half) / half for half in (half_w, half_h))
    dark = depth * np.maximum(1 - x[None] ** 2 - y[:, None] ** 2, 0)
    return np.asarray(np.rint(256 * (1 - dark)), dtype=np.uint16)[..., None]


def exposed(look: Look, film: Film) -> Look:
    """The look with its colours as the film shows them."""

    def tone(colours: Array) -> Array:
        flat = np.clip(colours, 0, 255).astype(np.uint8).reshape(1, -1, 3)
        return film.expose(flat).reshape(colours.shape).astype(np.float64)

    return replace(look, colours=tone(look.colours), hair=tone(look.hair), shirt=tone(look.shirt), hips=tone(look.hips))
