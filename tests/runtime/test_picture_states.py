"""Frozen, blank and turned pictures: each told, and what only looks like one of them not."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pytest
from made_videos import write_video
from numpy.typing import NDArray
from test_camera import landscape

from m2df_runtime.clips.opening import open_source
from m2df_runtime.stream.picture_states import BLANK, FROZEN, TURNED, PictureWatch

PLACES = [landscape(seed)[:144, :200].astype(np.float64) for seed in range(4)]


def noisy(scenes: Iterable[NDArray[np.float64]], sigma: float = 2.0) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [np.clip(scene + rng.normal(0, sigma, scene.shape), 0, 255).astype(np.uint8) for scene in scenes]


def changes(frames: Iterable[NDArray[np.uint8]], every: float = 0.5) -> list[tuple[float, str | None]]:
    """The states of frames so many seconds apart, with the second at which each begins."""
    watch, told = PictureWatch(), [(0.0, None)]
    for number, frame in enumerate(frames):
        state = watch.seen(every * number, lambda frame=frame: frame)
        if state != told[-1][1]:
            told.append((every * number, state))
    return told[1:]


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"crf": "18", "g": "8"}),
        ("libx264", {"crf": "35", "g": "8", "tune": "zerolatency"}),
        ("mjpeg", {"qscale": "4"}),
    ],
)
def test_a_frozen_camera_is_told_from_a_still_scene(codec: str, options: dict[str, str], tmp_path: Path) -> None:
    """As files of one frame every half second, which are what a watch looks at."""
    count = round(4 * FROZEN) + 40
    still = noisy([PLACES[0][:72, :96]] * count, 1.0)
    frozen = [*still[:20], *[still[20]] * (count - 20)]
    for frames, told in ((still, []), (frozen, ["frozen"])):
        video = np.repeat(np.stack(frames)[..., None], 3, axis=-1)
        pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        source = open_source(write_video(tmp_path / f"{len(told)}.mkv", video, codec, pixels, options=options))
        greys = [picture.grey() for picture in source.pictures(np.arange(source.n_frames))]
        assert [state for _, state in changes(greys)] == told


def test_a_camera_that_froze_may_go_on() -> None:
    live = noisy([PLACES[0]] * 40)
    frames = [*live[:20], *[live[20]] * 300, *live[21:]]
    (frozen, state), (thawed, none) = changes([*frames, *noisy([PLACES[0]] * 40, 3.0)])
    assert (state, none) == ("frozen", None)
    assert frozen == pytest.approx(10 + 1.5 * FROZEN, abs=1) and thawed == pytest.approx(160 + 10, abs=1)


def test_blank_pictures_may_carry_a_clock() -> None:
    ramp = np.linspace(0, 6, 200)[None, :] + np.zeros((144, 1))  # a lens that is covered lets some light through
    for scene in (np.zeros((144, 200)), 90 + ramp):
        frames = noisy([scene] * 30)
        for number, frame in enumerate(frames):
            cv2.putText(frame, f"{number:02}", (2, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, 255, 1)
        told = changes([*noisy([PLACES[0]] * 4), *frames, *noisy([PLACES[0]] * 4)])
        assert told == [(2 + BLANK, "blank"), (17, None)]
    dim = (PLACES[0] - PLACES[0].min()) / np.ptp(PLACES[0]) * 40
    assert changes(noisy([dim] * 60)) == [], "at night little is seen, and that is not nothing"


WALL = np.full((144, 200), 60.0)


def walker(number: int, width: int = 60) -> NDArray[np.float64]:
    scene = PLACES[0].copy()
    left = (3 * number) % 240 - width
    scene[30:, max(0, left) : max(0, left + width)] = 40
    return scene


def before_it(scene: NDArray[np.float64]) -> NDArray[np.float64]:
    """Somebody stands before two thirds of the picture."""
    return np.concatenate([WALL[:, :133], scene[:, 133:]], axis=1)


LONG = round(2 * TURNED) + 60  # frames; longer than either place must be seen
BEFORE = [PLACES[0]] * LONG
NOTHING_WRONG = {
    "who walks about": [walker(number) for number in range(2 * LONG)],
    "who stands close": [*BEFORE, *[before_it(PLACES[0])] * 80, *BEFORE[:20]],
    "who stays there": [*BEFORE, *[before_it(PLACES[0])] * LONG],
    "light goes": [*BEFORE, *[0.3 * PLACES[0] + 5] * LONG],
    "light comes": [*BEFORE, *[np.clip(1.6 * PLACES[0] + 30, 0, 255)] * LONG],
    "wind": [landscape()[number % 3 : 144 + number % 3, number % 2 : 200 + number % 2] for number in range(2 * LONG)],
    "a patrol": [PLACES[number // 60 % 3] for number in range(4 * LONG)],
    "a look aside": [*BEFORE, *[PLACES[1]] * 80, *BEFORE[:20]],
    "nothing to tell places by": [*[WALL + np.linspace(0, 30, 200)] * LONG, *[WALL + np.linspace(30, 0, 200)] * LONG],
}


@pytest.mark.parametrize("scenes", NOTHING_WRONG.values(), ids=NOTHING_WRONG)
def test_what_changes_before_a_camera_that_hangs_still_is_not_another_place(scenes: list[NDArray[np.float64]]) -> None:
    assert changes(noisy(scenes)) == []


@pytest.mark.parametrize("other", [PLACES[1], landscape()[:144, 60:260]], ids=["elsewhere", "a little aside"])
def test_a_camera_that_was_turned_is_told_until_it_is_turned_back(other: NDArray[np.float64]) -> None:
    told = changes(noisy([*BEFORE, *[other] * (LONG + 20), *BEFORE[:60]]))
    assert [state for _, state in told] == ["turned", None]
    turned, back = (second - LONG / 2 for second, _ in told)
    assert TURNED <= turned <= TURNED + 15
    assert LONG / 2 + 10 <= back <= LONG / 2 + 25, "as soon as most of what is averaged is the first place"


def test_after_an_hour_the_other_place_is_the_one_to_be_seen() -> None:
    every = 4.0
    scenes = [*[PLACES[0]] * 40, *[PLACES[1]] * 1000, *[PLACES[0]] * 40]
    told = changes(noisy(scenes), every)
    assert [state for _, state in told] == ["turned", None, "turned"]
    assert 3600 <= told[1][0] - 160 <= 3700


def test_only_two_pictures_a_second_are_looked_at() -> None:
    watch, asked = PictureWatch(), []
    for number in range(300):
        watch.seen(number / 30, lambda number=number: asked.append(number) or noisy([PLACES[0]])[0])
    assert len(asked) == 20
