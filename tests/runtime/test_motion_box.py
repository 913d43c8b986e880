"""The motion box on drawn scenes: it holds what moves, follows it, and gives up where it should."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from m2df_runtime.pixels.background import BACKGROUND_FRAMES, background_indices, median_background
from m2df_runtime.pixels.motion_box import motion_boxes
from m2df_runtime.pixels.scene_frame import SceneFrame

COUNT, HEIGHT, WIDTH = 17, 120, 160
TIMES = np.arange(COUNT) * 0.1


def wall(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).integers(60, 200, (height, width), dtype=np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (7, 7), 0), dtype=np.uint8)


def noisy(frames: NDArray[np.uint8], sigma: float = 2.0) -> NDArray[np.uint8]:
    noise = np.random.default_rng(1).normal(0, sigma, frames.shape)
    return np.clip(frames + noise, 0, 255).astype(np.uint8)


def walker(centres: list[tuple[float, float]], axes: tuple[int, int] = (9, 24)) -> NDArray[np.uint8]:
    """An ellipse before a wall, one frame per centre."""
    frames = np.repeat(wall()[None], len(centres), axis=0)
    for frame, (x, y) in zip(frames, centres, strict=True):
        cv2.ellipse(frame, (round(x), round(y)), axes, 0, 0, 360, 15, -1)
    return noisy(frames)


def boxes_of(frames: NDArray[np.uint8], at: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    return motion_boxes([SceneFrame(frame) for frame in frames], median_background(frames), TIMES[: len(frames)], at)


def assert_squares_of_one_size(boxes: NDArray[np.float64]) -> None:
    np.testing.assert_allclose(boxes[:, 2:], boxes[0, 2])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 16, 17, 23])
def test_median_background_is_the_lower_median(count: int) -> None:
    frames = np.random.default_rng(count).integers(0, 256, (count, 13, 21), dtype=np.uint8)
    before = frames.copy()
    np.testing.assert_array_equal(median_background(frames), np.sort(frames, axis=0)[(count - 1) // 2])
    np.testing.assert_array_equal(frames, before)


def test_background_indices_spread_over_the_clip() -> None:
    assert background_indices(5).tolist() == [0, 1, 2, 3, 4]
    chosen = background_indices(1000)
    assert len(chosen) == BACKGROUND_FRAMES and len(set(np.diff(chosen).tolist())) <= 2
    assert chosen[0] == 999 - chosen[-1]


def test_box_follows_a_walker() -> None:
    centres = [(20 + 7.0 * i, 70.0) for i in range(COUNT)]
    boxes = boxes_of(walker(centres))
    assert_squares_of_one_size(boxes)
    middle = boxes[:, :2] + boxes[:, 2:] / 2
    np.testing.assert_allclose(middle, centres, atol=4)
    assert 48 <= boxes[0, 2] <= 75  # the figure is 48 high


def test_box_follows_a_jump_in_time_not_in_frames() -> None:
    centres = [(20 + 7.0 * i, 70 - 40 * (1 - ((i - 8) / 8) ** 2)) for i in range(COUNT)]
    at = np.asarray([0.05, 0.8, 1.55])
    boxes = boxes_of(walker(centres), at)
    expected_x = 20 + 70 * at
    np.testing.assert_allclose(boxes[:, 0] + boxes[:, 2] / 2, expected_x, atol=5)
    assert boxes[1, 1] < boxes[0, 1] - 25


def test_waving_arm_before_a_still_body() -> None:
    frames = np.repeat(wall()[None], COUNT, axis=0)
    for index, frame in enumerate(frames):
        cv2.ellipse(frame, (80, 80), (10, 26), 0, 0, 360, 20, -1)
        angle = np.deg2rad(-60 + 50 * np.sin(index))
        tip = (round(84 + 26 * np.cos(angle)), round(62 + 26 * np.sin(angle)))
        cv2.line(frame, (84, 62), tip, 20, 5)
    boxes = boxes_of(noisy(frames))
    assert_squares_of_one_size(boxes)
    middle = boxes[:, :2] + boxes[:, 2:] / 2
    assert (np.abs(middle - [96, 50]) < 12).all()
    assert boxes[0, 2] < 70


def test_stray_frames_do_not_pull_the_box() -> None:
    centres = [(20 + 7.0 * i, 70.0) for i in range(COUNT)]
    frames = walker(centres)
    clean = boxes_of(frames)
    cv2.circle(frames[5], (150, 12), 6, 255, -1)  # a reflection in one frame
    np.testing.assert_allclose(boxes_of(frames), clean, atol=6)


def test_flicker_is_not_motion() -> None:
    centres = [(20 + 7.0 * i, 70.0) for i in range(COUNT)]
    frames = walker(centres).astype(np.int16)
    frames += (25 * np.sin(np.arange(COUNT)))[:, None, None].astype(np.int16)
    boxes = boxes_of(np.clip(frames, 0, 255).astype(np.uint8))
    np.testing.assert_allclose(boxes[:, 0] + boxes[:, 2] / 2, [x for x, _ in centres], atol=6)


CENTRED = [20.0, 0.0, 120.0, 120.0]


def test_nothing_moves() -> None:
    still = np.repeat(wall()[None], COUNT, axis=0)
    np.testing.assert_allclose(boxes_of(noisy(still)), np.tile(CENTRED, (COUNT, 1)))
    np.testing.assert_allclose(boxes_of(still[:1]), [CENTRED])


def test_camera_pan() -> None:
    wide = np.random.default_rng(0).integers(0, 256, (HEIGHT // 4, 120), dtype=np.uint8)
    scene = cv2.resize(wide, (480, HEIGHT), interpolation=cv2.INTER_NEAREST)
    frames = np.stack([scene[:, 18 * i : 18 * i + WIDTH] for i in range(COUNT)]).astype(np.uint8)
    np.testing.assert_allclose(boxes_of(frames), np.tile(CENTRED, (COUNT, 1)))


def test_size_limits() -> None:
    tiny = boxes_of(walker([(40 + 2.0 * i, 60.0) for i in range(COUNT)], axes=(3, 3)))
    assert tiny[0, 2] >= HEIGHT / 6
    both_sides = walker([(12.0 if i % 2 else 148.0, 60.0) for i in range(COUNT)], axes=(8, 40))
    boxes = boxes_of(both_sides)
    assert boxes[0, 2] <= np.sqrt(HEIGHT * WIDTH) + 1e-9
    quarter = boxes[:, 2:] / 4
    assert (boxes[:, :2] >= -quarter - 1e-9).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= [WIDTH, HEIGHT] + quarter + 1e-9).all()


@pytest.mark.parametrize("size", [(8, 8), (40, 30), (95, 200), (240, 320)])
def test_any_size_works_and_is_deterministic(size: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (COUNT, *size), dtype=np.uint8)
    frames[:, size[0] // 4 :] = 90
    boxes = boxes_of(frames)
    assert np.isfinite(boxes).all() and (boxes[:, 2:] > 0).all()
    np.testing.assert_array_equal(boxes, boxes_of(frames))
