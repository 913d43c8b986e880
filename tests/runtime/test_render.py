"""The filmstrip of a prediction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m2df_runtime.match.results import ClassScore, Prediction, Timings
from m2df_runtime.pixels.spec import ClipSpec
from m2df_runtime.show.filmstrip import display_spec, filmstrip, save_picture

NO_TIME = Timings(0, 0, 0, 0)


def prediction(labels: list[str], query: str = "dir/query.mp4", rejected: bool = False) -> Prediction:
    share = 1 / len(labels)
    return Prediction(query, tuple(ClassScore(label, share, 1.0) for label in labels), rejected, "cpu", NO_TIME)


def clip(colour: tuple[int, int, int], frames: int = 8, side: int = 112) -> np.ndarray:
    return np.full((frames, side, side, 3), colour, np.uint8)


def test_both_clips_are_shown_whole() -> None:
    image = filmstrip(clip((200, 0, 0)), clip((0, 0, 200)), prediction(["jump", "run"]), "jump/a.mp4")
    pixels = np.asarray(image)
    for colour in ((200, 0, 0), (0, 0, 200)):
        assert (pixels == colour).all(axis=2).sum() == 8 * 112 * 112


@pytest.mark.parametrize(
    "labels",
    [
        ["跳ぶ", "élan", "прыжок"],
        ["🤸 cartwheel"],
        ["x" * 500],
        ["a\nb\x00"],
        ["bad \udcff name"],
        [str(i) for i in range(99)],
    ],
)
@pytest.mark.parametrize("rejected", [False, True])
def test_any_label_can_be_drawn(labels: list[str], rejected: bool) -> None:
    image = filmstrip(clip((9, 9, 9), 1), clip((9, 9, 9), 1), prediction(labels, rejected=rejected), labels[0])
    assert image.width >= 112


def test_saved_picture_is_a_png(tmp_path: Path) -> None:
    image = filmstrip(clip((1, 2, 3)), clip((1, 2, 3)), prediction(["jump"]))
    save_picture(tmp_path / "new" / "strip.png", image)
    with Image.open(tmp_path / "new" / "strip.png") as saved:
        assert saved.format == "PNG"
        assert saved.size == image.size


@pytest.mark.parametrize("frames", [1, 8, 32])
def test_frames_are_shown_in_natural_colours_at_a_size_that_fits(frames: int) -> None:
    spec = ClipSpec(frames=frames, size=64, short_side=80, channels="motion", interpolation="bilinear", antialias=False)
    shown = display_spec(spec)
    assert ClipSpec.model_validate(shown.model_dump()) == shown
    assert shown.channels == "rgb"
    assert shown.frames == frames
    assert frames * shown.size <= 1600
