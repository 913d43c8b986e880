"""Frames to look at come from the one reading that the model's frames come from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from m2df_runtime.backends.model import Model
from m2df_runtime.bank.bank import SupportBank
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.clips.opening import open_source
from m2df_runtime.clips.source import ArraySource, Picture
from m2df_runtime.match import reading
from m2df_runtime.match.matcher import Matcher
from m2df_runtime.pixels.load import load_clip
from m2df_runtime.pixels.spec import ClipSpec
from m2df_runtime.pixels.thumbnails import WatchedClip, shown_frames
from m2df_runtime.show.filmstrip import display_spec


class CountedSource(ArraySource):
    """Counts how often its frames are decoded."""

    passes = 0

    def pictures(self, indices: NDArray[np.int64]) -> Iterator[Picture]:
        self.passes += 1
        return super().pictures(indices)


def moving_square(height: int, width: int) -> CountedSource:
    frames = np.random.default_rng(0).integers(90, 110, (1, height, width, 3)).repeat(40, axis=0).astype(np.uint8)
    side = height // 4
    for number, frame in enumerate(frames):
        left = number * (width - side) // 40
        frame[side : 2 * side, left : left + side] = (220, 40, 10)
    return CountedSource(frames)


@pytest.mark.parametrize(("region", "channels"), list(itertools.product(("full", "motion"), ("rgb", "motion"))))
def test_one_reading_gives_both(region, channels):
    spec = ClipSpec(frames=8, size=64, region=region, channels=channels)
    look = display_spec(spec)
    source = moving_square(120, 160)
    watched = WatchedClip(source, look)
    pixels = load_clip(watched, spec)
    frames = shown_frames(watched.small, look)
    assert source.passes == 1
    assert (pixels == load_clip(source, spec)).all()
    assert (frames == shown_frames(source, look)).all()


def test_large_frames_are_kept_small():
    spec = ClipSpec(frames=8, size=64, region="motion")
    look = display_spec(spec)
    source = moving_square(720, 1280)
    watched = WatchedClip(source, look)
    load_clip(watched, spec)
    assert next(watched.small.pictures(np.array([2]))).rgb().shape == (360, 640, 3)
    difference = shown_frames(watched.small, look).astype(int) - shown_frames(source, look)
    assert np.abs(difference).mean() < 3


def test_a_prediction_keeps_what_drawing_needs(
    tiny_bundle: Path, support_dir: Path, query_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    model = Model(Bundle.open(tiny_bundle), backend="cpu", threads=1)
    matcher = Matcher(model, SupportBank.of(model, support_dir))
    spec, query = model.bundle.manifest.clip, query_dir / "red.mp4"
    look = display_spec(spec)
    opened = []
    monkeypatch.setattr(reading, "open_source", lambda path: opened.append(path) or open_source(path))
    plain, drawn = matcher.predict(query), matcher.predict(query, look=look)
    assert opened == [query, query]
    assert drawn == plain
    features = model.encode_clips(load_clip(open_source(query), spec)[None])[0]
    assert plain.frames is None
    assert (plain.features == features).all()
    assert (drawn.features == features).all()
    assert (drawn.frames == shown_frames(open_source(query), look)).all()
