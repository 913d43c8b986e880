"""Windows over a recording: which frames they hold, and that a model sees them as it sees any other clip."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_videos import moving_square, write_video
from numpy.typing import NDArray

from m2df_runtime.clips.opening import open_source
from m2df_runtime.clips.sampling import Sampler
from m2df_runtime.clips.source import FrameSource, Picture
from m2df_runtime.errors import ClipError
from m2df_runtime.pixels.load import load_clip
from m2df_runtime.pixels.scene_frame import SceneFrame
from m2df_runtime.pixels.spec import ClipSpec
from m2df_runtime.stream import read_ahead
from m2df_runtime.stream.frames import Frame, kept_frames
from m2df_runtime.stream.policy import Freshest
from m2df_runtime.stream.sources.file import FileFrames
from m2df_runtime.stream.sources.given import GivenFrames
from m2df_runtime.stream.sources.timed import RisingTimes
from m2df_runtime.stream.windows import Window, cut

CHANNELS = get_args(ClipSpec.model_fields["channels"].annotation)
SPECS = [
    ClipSpec(frames=4, size=32, short_side=36, sampler=sampler, region=region, channels=channels)
    for sampler in get_args(Sampler)
    if sampler != "segment"  # random
    for region in ("full", "motion")
    for channels in CHANNELS
]


class Part(FrameSource):
    """Frames of a file with start <= time < end, decoded anew from the file for every read."""

    def __init__(self, file: FrameSource, start: float, end: float) -> None:
        self.inside = np.flatnonzero((file.times >= start - 1e-6) & (file.times < end - 1e-6))
        self.file, self.length = file, end - start
        self.name, self.n_frames = "part", len(self.inside)
        self.times = file.times[self.inside] - start
        span = np.ptp(self.times)
        self.fps = (self.n_frames - 1) / span if span else 25.0

    @property
    def duration(self) -> float:
        return self.length

    def pictures(self, indices: NDArray[np.int64]) -> Iterator[Picture]:
        return self.file.pictures(self.inside[indices])


def windows(source: FrameSource, spec: ClipSpec, length: float, stride: float) -> list[Window]:
    return list(cut(kept_frames(RisingTimes(FileFrames(source)), spec, "r", [None]), length, stride, "r"))


def shaking(count: int) -> NDArray[np.uint8]:
    """A camera that pans over a textured ground, on which a square walks the other way."""
    ground = np.random.default_rng(3).integers(40, 200, (24, 60, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    frames = np.stack([ground[:160, 2 * t : 2 * t + 200] for t in range(count)])
    for t in range(count):
        frames[t, 60:100, 150 - 3 * t : 190 - 3 * t] = 250
    return frames


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("recordings")
    uneven = np.cumsum(np.random.default_rng(1).choice([20, 33, 40, 120], 45)).tolist()
    return {
        "constant": write_video(folder / "constant.mp4", moving_square(45, 96, 72)),
        "variable": write_video(folder / "variable.mkv", moving_square(45, 96, 72), stamps=uneven),
        "shaking": write_video(folder / "shaking.mp4", shaking(40)),
    }


def assert_seen_as_clips(path: Path, specs: list[ClipSpec], length: float, stride: float) -> None:
    """Specs of one region and channels, each at another window: it is seen as that part of the file."""
    file = open_source(path)
    frames = list(kept_frames(RisingTimes(FileFrames(file)), specs[0], "r", [None]))
    found = list(cut(frames, length, stride, "r"))
    assert len(found) > 3
    for place, spec in zip(np.linspace(0, len(found) - 1, len(specs)).astype(int), specs, strict=True):
        window = found[place]
        np.testing.assert_array_equal(load_clip(window, spec), load_clip(Part(file, window.start, window.end), spec))


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("region", ["full", "motion"])
def test_a_window_is_seen_as_the_clip_that_it_is(recordings: dict[str, Path], region: str, channels: str) -> None:
    for path in recordings.values():
        specs = [spec for spec in SPECS if (spec.region, spec.channels) == (region, channels)]
        assert_seen_as_clips(path, specs, 0.8, 0.3)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("region", ["full", "motion"])
def test_windows_of_real_clips_too(shared_dir: Path, region: str, channels: str) -> None:
    clips = shared_dir / "data" / "clips"
    specs = [spec for spec in SPECS if (spec.region, spec.channels) == (region, channels)]
    for name in ("walk/weizmann_ido_walk.mp4", "punch/ut_set1_seq01_00.mp4", "tennis_serve/tennis_serve1.mp4"):
        assert_seen_as_clips(clips / name, specs, 0.9, 0.3)


@pytest.mark.parametrize("spec", SPECS[::3], ids=lambda spec: f"{spec.sampler}-{spec.region}-{spec.channels}")
def test_a_window_longer_than_the_file_is_the_file(recordings: dict[str, Path], spec: ClipSpec) -> None:
    for path in recordings.values():
        (window,) = windows(open_source(path), spec, 60.0, 15.0)
        np.testing.assert_array_equal(load_clip(window, spec), load_clip(open_source(path), spec))


class Blank(Picture):
    """A picture that takes a byte."""

    nbytes = 1

    def rgb(self) -> NDArray[np.uint8]:
        return np.zeros((2, 2, 3), np.uint8)


def frames_at(times: list[float]) -> Iterator[list[Frame]]:
    return ([Frame(number, time, Blank(), False)] for number, time in enumerate(times))


@given(
    gaps=st.lists(st.sampled_from([0.04, 0.04, 0.04, 0.1, 0.5, 3.7]), min_size=0, max_size=60),
    first=st.sampled_from([0.0, 0.3, 100.7]),
    length=st.sampled_from([0.2, 1.0, 2.5]),
    parts=st.sampled_from([1, 2, 4, 7]),
)
def test_windows_are_those_of_the_definition(gaps: list[float], first: float, length: float, parts: int) -> None:
    times = np.round(np.cumsum([first, *gaps]), 6)
    stride = length / parts
    found = [
        (round(w.start, 6), [f.number for f in w.frames]) for w in cut(frames_at(times.tolist()), length, stride, "r")
    ]
    expected = []
    for number in range(int((times[-1] - first) / stride) + 2):
        start = first + number * stride
        inside = np.flatnonzero((times >= start - 1e-6) & (times < start + length - 1e-6)).tolist()
        if inside and times[-1] >= start + length - 1e-6:
            expected.append((round(start, 6), inside))
    whole = len(expected)
    assert found[:whole] == expected
    assert len(found) <= whole + 1
    # All frames are in a window, and the last one adds frames, or half a frame time on screen.
    assert {number for _, inside in found for number in inside} == set(range(len(times)))
    assert all(start <= times[inside[0]] + 1e-6 for start, inside in found)


def test_the_end_of_a_recording_is_in_a_shorter_window() -> None:
    found = list(cut(frames_at([k / 10 for k in range(47)]), 2.0, 1.0, "r"))
    assert [(w.start, round(w.end, 6), w.n_frames) for w in found] == [
        (0.0, 2.0, 20), (1.0, 3.0, 20), (2.0, 4.0, 20), (3.0, 4.7, 17)
    ]  # fmt: skip
    assert [(w.start, round(w.end, 6)) for w in cut(frames_at([k / 10 for k in range(40)]), 2.0, 2.0, "r")] == [
        (0.0, 2.0), (2.0, 4.0)
    ]  # fmt: skip
    assert list(cut(frames_at([]), 2.0, 1.0, "r")) == []
    (only,) = cut(frames_at([5.0]), 2.0, 1.0, "r")
    assert (only.start, only.end, only.duration) == (5.0, 5.04, pytest.approx(0.04))


def test_a_gap_of_a_day_makes_no_windows_without_frames() -> None:
    times = [0.0, 0.5, 86400.25, 86400.5]
    assert [(w.start, w.n_frames) for w in cut(frames_at(times), 1.0, 0.5, "r")] == [
        (0.0, 2), (0.5, 1), (86399.5, 1), (86400.0, 2)
    ]  # fmt: skip


def test_frames_are_held_for_one_window_only() -> None:
    alive: weakref.WeakSet[Blank] = weakref.WeakSet()

    def endless() -> Iterator[list[Frame]]:
        for number in range(20_000):
            picture = Blank()
            alive.add(picture)
            yield [Frame(number, number / 60, picture, False)]

    assert max(len(alive) for _ in cut(endless(), 2.0, 0.5, "r")) <= 2 * 60 + 2


def test_what_follows_from_a_frame_alone_is_made_once_for_all_windows(recordings: dict[str, Path]) -> None:
    spec = ClipSpec(frames=4, size=32, region="motion", channels="motion")
    first, second, *_ = windows(open_source(recordings["constant"]), spec, 0.8, 0.2)
    shared = {frame.number for frame in first.frames} & {frame.number for frame in second.frames}
    made: list[SceneFrame] = []

    def make(picture: Picture) -> SceneFrame:
        made.append(SceneFrame.of(picture))
        return made[-1]

    by_number = [{frame.number: frame.picture.made_once(make) for frame in window.frames} for window in (first, second)]
    assert len(shared) == 15 and all(by_number[0][number] is by_number[1][number] for number in shared)
    assert len(made) == first.n_frames + second.n_frames - len(shared)


def test_a_window_that_takes_too_much_memory_is_refused() -> None:
    class Large(Blank):
        nbytes = 1 << 28

    frames = ([Frame(number, number / 60, Large(), False)] for number in itertools.count())
    with pytest.raises(ClipError, match=r"r: 9 frames take 2415919104 bytes.*choose a shorter window"):
        list(cut(frames, 2.0, 0.5, "r"))


def test_after_frames_that_were_too_large_come_the_windows_of_those_that_fit() -> None:
    class Large(Blank):
        nbytes = 1 << 28

    frames = ([Frame(k, k / 10, Large() if k < 25 else Blank(), False)] for k in range(60))
    refused: list[tuple[str | None, str]] = []
    found = list(cut(frames, 2.0, 0.5, "r", ["door"], lambda zone, error: refused.append((zone, error.reason))))
    assert [zone for zone, _ in refused] == ["door", "door"]  # the ninth and the eighteenth
    assert [(w.start, w.zone, w.n_frames) for w in found if w.duration == 2] == [
        (start, "door", 20) for start in (2.0, 2.5, 3.0, 3.5, 4.0)
    ]


def test_windows_that_share_frames_wait_together_however_large_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """26 windows of 10 frames wait for an answer. 44 frames are held, which is what counts."""

    class Large(Blank):
        nbytes = 2 << 20

    monkeypatch.setattr(read_ahead, "Freshest", partial(Freshest, budget=60.0))  # on a busy machine
    frames = ([Frame(number, number / 10, Large(), False)] * 2 for number in range(22))
    found = list(read_ahead.read_freshest(cut(frames, 1.0, 0.1, "r", ["left", "right"]), lambda skipped: None))
    expected = [round(number / 10, 6) for number in range(12)]
    for zone in ("left", "right"):
        assert [round(w.start, 6) for w in found if w.zone == zone][:12] == expected


def given_times(*times: float) -> tuple[RisingTimes, list[float]]:
    frame = np.zeros((8, 8, 3), np.uint8)
    rising = RisingTimes(GivenFrames([(time, frame) for time in times]))
    return rising, [round(time, 6) for time, _ in rising]


def test_windows_that_are_known_to_have_ended_when_they_are_long_past_are_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ten frames a second for three seconds, and again from second 203 on; a window of one may wait for a minute."""
    monkeypatch.setattr(read_ahead, "Freshest", partial(Freshest, budget=60.0))
    times = [*range(30), *range(2030, 2050)]
    frames = ([Frame(number, time / 10, Blank(), False)] for number, time in enumerate(times))
    skipped: list[int] = []
    found = [(w.start, w.end) for w in read_ahead.read_freshest(cut(frames, 1.0, 0.25, "r"), skipped.append)]
    assert [start for start, _ in found if start < 100] == [0.25 * k for k in range(8)]
    assert sum(skipped) == 4, "those that end at 3.0, 3.25, 3.5 and 3.75"
    assert min(start for start, _ in found if start > 100) == 202.25


def test_times_that_step_back_are_mended_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    rising, times = given_times(0.0, 0.1, 0.2, 0.15, 0.2, 0.3)  # one late, one twice
    assert (times, rising.left_out, rising.restarts) == ([0.0, 0.1, 0.2, 0.3], 2, 0)
    assert "2 frames that are not later than the one before were left out" in caplog.text
    rising, times = given_times(5.0, 5.1, 0.0, 0.1, 0.2, -9.0, -8.9)
    assert (times, rising.left_out, rising.restarts) == ([5.0, 5.1, 5.2, 5.3, 5.4, 5.5, 5.6], 0, 2)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ClipError, match="a frame has the time"):
            given_times(0.0, bad)


def test_frames_of_another_size_are_fitted_into_the_first() -> None:
    small, wide = np.full((40, 40, 3), 200, np.uint8), np.full((30, 80, 3), 100, np.uint8)
    first, second = (picture.rgb() for _, picture in GivenFrames([(0, small), (1, wide)]).frames())
    assert first.shape == second.shape == (40, 40, 3)
    assert (second[:12] == 0).all() and (second[13:27] == 100).all() and (second[28:] == 0).all()


def test_a_frame_that_its_giver_overwrites_is_kept() -> None:
    buffer = np.zeros((8, 8, 3), np.uint8)

    def reused() -> Iterator[tuple[float, NDArray[np.uint8]]]:
        for value in (10, 20, 30):
            buffer[:] = value
            yield value / 10, buffer

    pictures = [picture for _, picture in GivenFrames(reused()).frames()]
    assert [int(picture.rgb()[0, 0, 0]) for picture in pictures] == [10, 20, 30]


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (3, "frame 2 is not a time in seconds and a frame"),
        (("a", np.zeros((4, 4, 3), np.uint8)), "not a time"),
        ((1.0, np.zeros((4, 4), np.uint8)), r"frame 2 is not a picture, uint8 \[H, W, 3\]"),
        ((1.0, np.zeros((4, 4, 3))), "not a picture"),
        ((1.0, np.zeros((0, 4, 3), np.uint8)), "frame 2 is empty"),
        ((1.0, np.broadcast_to(np.uint8(0), (1 << 14, 1 << 14, 3))), "more than the limit"),
    ],
)
def test_what_is_no_frame_is_refused(pair: object, message: str) -> None:
    frames = GivenFrames([(0.0, np.zeros((4, 4, 3), np.uint8)), pair], "door").frames()  # type: ignore[list-item]
    next(frames)
    with pytest.raises(ClipError, match=f"door: .*{message}"):
        next(frames)


def test_what_moves_is_told_from_noise_and_light(recordings: dict[str, Path]) -> None:
    rng, spec = np.random.default_rng(0), ClipSpec()
    scene = rng.integers(0, 200, (120, 160, 3), dtype=np.uint8)
    noisy = [np.clip(scene + rng.normal(0, 4, scene.shape), 0, 255).astype(np.uint8) for _ in range(20)]
    brighter = [scene + np.uint8(2 * k) for k in range(20)]
    walks = [scene.copy() for _ in range(20)]
    for k, frame in enumerate(walks):
        frame[50:70, 5 * k : 5 * k + 10] = 255
    for frames, moves in ((noisy, False), (brighter, False), (walks, True)):
        kept = kept_frames(
            ((k / 10, p) for k, (_, p) in enumerate(GivenFrames(enumerate(frames)).frames())), spec, "r", [None]
        )
        assert [w.still for w in cut(kept, 1.0, 1.0, "r")] == [not moves] * 2
