"""Taking camera movement out: exact paths on drawn scenes, and a box that follows a figure through a pan."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from m2df_runtime.clips.source import ArraySource
from m2df_runtime.pixels.background import median_background
from m2df_runtime.pixels.load import load_clip
from m2df_runtime.pixels.scene_frame import SceneFrame
from m2df_runtime.pixels.spec import ClipSpec
from m2df_runtime.pixels.stabilise import camera_path, steady_scene

COUNT, HEIGHT, WIDTH = 25, 144, 200
ALL = np.arange(COUNT)


def landscape(seed: int = 0) -> NDArray[np.uint8]:
    """A scene three frames wide with coarse and fine structure."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.normal(0, 40, (8, 24)).astype(np.float32), (640, 220), interpolation=cv2.INTER_CUBIC)
    fine = cv2.GaussianBlur(rng.normal(0, 60, (220, 640)).astype(np.float32), (5, 5), 0)
    return np.clip(120 + coarse + fine, 0, 255).astype(np.uint8)


def filmed(path: NDArray[np.int64], sigma: float = 2.0) -> NDArray[np.uint8]:
    """Frames of the landscape whose first pixels lie at `path` [n, 2], with sensor noise."""
    scene = landscape()
    frames = np.stack([scene[y : y + HEIGHT, x : x + WIDTH] for x, y in path.tolist()]).astype(np.float64)
    return np.clip(frames + np.random.default_rng(1).normal(0, sigma, frames.shape), 0, 255).astype(np.uint8)


def seen(frames: NDArray[np.uint8]) -> list[SceneFrame]:
    return [SceneFrame(frame) for frame in frames]


PATHS = {
    "pan": np.stack([5 * ALL, 0 * ALL], -1),
    "pan back and tilt": np.stack([200 - 6 * ALL, ALL], -1),
    "slow": np.stack([ALL // 2, 0 * ALL], -1),
    "shake": np.random.default_rng(3).integers(0, 5, (COUNT, 2)),
    "start and stop": np.stack([np.clip(8 * (ALL - 6), 0, 90), 0 * ALL], -1),
}


@pytest.mark.parametrize("name", PATHS)
def test_the_path_of_a_camera_is_found(name: str) -> None:
    path = PATHS[name] - PATHS[name][0]
    np.testing.assert_allclose(camera_path(seen(filmed(PATHS[name]))), path, atol=1)


@pytest.mark.parametrize("sigma", [0.0, 8.0])
def test_a_still_camera_changes_nothing(sigma: float) -> None:
    """Also with a large figure that walks through half of the picture."""
    frames = filmed(np.zeros((COUNT, 2), dtype=np.int64), sigma)
    for index, frame in enumerate(frames):
        cv2.ellipse(frame, (20 + 5 * index, 80), (22, 60), 0, 0, 360, 20, -1)
        cv2.putText(frame, "ABC", (5 * index, 80), cv2.FONT_HERSHEY_SIMPLEX, 1.0, 250, 2)
    given = seen(frames)
    scene = steady_scene(given, ALL[::2])
    assert scene.frames is given and not scene.corners.any()
    np.testing.assert_array_equal(scene.background, median_background(frames[::2]))


def test_a_change_of_exposure_and_a_cut_are_no_movement() -> None:
    still = filmed(np.zeros((COUNT, 2), dtype=np.int64), 0.0).astype(np.int16)
    lit = np.clip(still + (20 * np.sin(ALL))[:, None, None].astype(np.int16), 0, 255).astype(np.uint8)
    assert not camera_path(seen(lit)).any()
    other = landscape(5)[:HEIGHT, :WIDTH]
    cut = np.concatenate([still[:12].astype(np.uint8), np.repeat(other[None], 13, 0)])
    assert not camera_path(seen(cut)).any()


def test_frames_stand_in_one_scene_and_the_figure_leaves_the_background() -> None:
    path = PATHS["pan"]
    frames = filmed(path, 0.0)
    for index, frame in enumerate(frames):  # a figure that the camera follows
        cv2.ellipse(frame, (100, 80), (8, 24), 0, 0, 360, 10 + index % 2, -1)
    scene = steady_scene(seen(frames), ALL)
    expected = landscape()[:HEIGHT, : path[-1, 0] + WIDTH]
    assert scene.background.shape == expected.shape
    assert np.mean(np.abs(scene.background.astype(int) - expected) > 20) < 0.01
    windows = scene.cut(np.stack([frame.grey for frame in scene.frames])[..., None], ALL, (HEIGHT, WIDTH))[..., 0]
    np.testing.assert_array_equal(windows, frames)


@pytest.mark.parametrize("name", PATHS)
def test_what_becomes_of_a_frame_does_not_depend_on_which_others_are_there(name: str) -> None:
    frames, still = filmed(PATHS[name]), ALL[::3]
    whole = steady_scene(seen(frames), still)
    np.testing.assert_allclose(whole.corners - whole.corners[0], PATHS[name] - PATHS[name][0], atol=1)
    for other in (1, 14):
        some = np.union1d(still, [other])
        part = steady_scene(seen(frames[some]), np.searchsorted(some, still))
        for frame, place in zip(part.frames, some.tolist(), strict=True):
            np.testing.assert_array_equal(frame.grey, whole.frames[place].grey)
        np.testing.assert_array_equal(part.corners, whole.corners[some])


def film(frames: NDArray[np.uint8]) -> ArraySource:
    return ArraySource(np.repeat(frames[..., None], 3, axis=-1))


@pytest.mark.parametrize("channels", ["rgb", "motion"])
def test_the_box_follows_a_walker_through_a_pan(channels: str) -> None:
    frames = filmed(PATHS["pan"])
    for index, frame in enumerate(frames):  # the walker is slower than the camera
        cv2.ellipse(frame, (150 - 4 * index, 70), (8, 22), 0, 0, 360, 5, -1)
    spec = ClipSpec(frames=8, size=64, interpolation="bilinear", region="motion", channels=channels)
    crops = load_clip(film(frames), spec)[..., 0].astype(int)
    dark = crops < 40
    assert (dark.sum(axis=(1, 2)) > 100).all()  # 44 of at most 100 rows high: enlarged, not lost
    rows, columns = np.nonzero(dark.any(axis=0))[0], [np.nonzero(d)[1].mean() for d in dark]
    assert abs(rows.mean() - 32) < 10
    np.testing.assert_allclose(columns, 32, atol=10)


def test_full_frames_of_a_moving_camera_keep_their_own_grey() -> None:
    frames = filmed(PATHS["pan"])
    plain = load_clip(film(frames), ClipSpec(frames=6, size=72, interpolation="bilinear"))
    moving = load_clip(film(frames), ClipSpec(frames=6, size=72, interpolation="bilinear", channels="motion"))
    np.testing.assert_allclose(moving[..., 0].astype(int), plain[..., 0].astype(int), atol=1)
    assert np.abs(moving[..., 1].astype(int) - 128).mean() < 4  # what the pan alone would change is taken out
