"""Streams over real files and iterators with a real bundle: answers, events, what is encoded, what cannot be."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from made_videos import write_video
from numpy.typing import NDArray
from test_windows import Part
from tiny_bundle import COLOURS, FRAMES

import m2df_runtime as m2df
from m2df_runtime.backends.model import Model
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.clips.opening import open_source
from m2df_runtime.clips.sampling import sample_indices
from m2df_runtime.errors import ClipError, InputError
from m2df_runtime.stream.default_window import default_window
from m2df_runtime.stream.sources.given import HeldPicture

FPS = 25


def scene(*parts: tuple[str | None, float], size: tuple[int, int] = (64, 48), seed: int = 0) -> NDArray[np.uint8]:
    """A square that walks to and fro, in the colour and for the seconds of each part; None: nothing moves but noise."""
    rng, (width, height) = np.random.default_rng(seed), size
    frames = []
    for colour, seconds in parts:
        for t in range(round(seconds * FPS)):
            picture = rng.integers(0, 20, (height, width, 3)).astype(np.uint8)
            if colour is not None:
                left = abs((4 * t) % (2 * (width - 16)) - (width - 16))
                picture[16:32, left : left + 16] = COLOURS[colour]
            frames.append(picture)
    return np.stack(frames)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    frames = scene((None, 3), ("red", 3), (None, 3), ("blue", 2), ("green", 2.4))
    return write_video(tmp_path_factory.mktemp("recording") / "long.mp4", frames)


def matcher_with(bundle: Path, support: Path, **look: object) -> m2df.Matcher:
    """A matcher of the tiny bundle that looks at clips in another way."""
    opened = Bundle.open(bundle)
    model = Model(opened.with_clip(opened.manifest.clip.model_copy(update=look)))
    return m2df.Matcher(model, m2df.SupportBank.of(model, support))


@pytest.fixture
def matcher(tiny_bundle: Path, support_dir: Path) -> m2df.Matcher:
    return matcher_with(tiny_bundle, support_dir)


def ended(stream: m2df.Stream) -> list[m2df.Event]:
    return [event for event in stream if event.type == "end"]


def test_what_happens_is_told_once_each_with_its_time(matcher: m2df.Matcher, recording: Path) -> None:
    stream = m2df.Stream(matcher, recording, window=1.0, stride=0.25)
    events = ended(stream)
    assert [event.label for event in events] == ["red", "blue", "green"]
    for event, (start, end) in zip(events, [(3, 6), (9, 11), (11, 13.4)], strict=True):
        assert abs(event.start - start) <= 1 and abs(event.end - end) <= 1  # a window
        assert (event.camera, event.zone, event.start_time) == (str(recording), None, None)
    assert (stream.counts.events, stream.counts.frames) == (3, round(13.4 * FPS))
    asked = [event for step in stream.steps(every=True) for event in step.events if event.type == "end"]
    assert asked == events, "answers to windows in which nothing moves change no event"
    assert events == ended(m2df.Stream(matcher, recording, window=1.0, stride=0.25))
    assert events == ended(stream), "a file is read anew by every iteration"


LOOKS = {
    "full rgb": {},
    "grid": {"sampler": "grid"},
    "moving rgb": {"region": "motion"},
    "motion": {"region": "motion", "channels": "motion", "sampler": "linspace"},
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_a_windows_answer_is_that_of_the_same_clip(
    tiny_bundle: Path, support_dir: Path, recording: Path, look: dict[str, object]
) -> None:
    matcher, file = matcher_with(tiny_bundle, support_dir, **look), open_source(recording)
    answers = list(m2df.Stream(matcher, recording, window=1.0, stride=0.5).windows())
    assert [(a.start, round(a.end, 6)) for a in answers] == [*((k / 2, k / 2 + 1) for k in range(25)), (12.5, 13.4)]
    for answer in answers:
        clip = matcher.predict(Part(file, answer.start, answer.end))
        assert (answer.prediction.label, answer.prediction.rejected) == (clip.label, clip.rejected)
        np.testing.assert_allclose(answer.prediction.features, clip.features, atol=1e-5)
        np.testing.assert_allclose(
            [(one.probability, one.distance) for one in answer.prediction.classes],
            [(one.probability, one.distance) for one in clip.classes],
            atol=1e-4,
        )


def test_a_recording_shorter_than_a_window_is_answered_as_the_clip(matcher: m2df.Matcher, query_dir: Path) -> None:
    matcher = m2df.Matcher(matcher.model, matcher.bank, reject="off")
    (answer,) = m2df.Stream(matcher, query_dir / "red.mp4", window=60.0).windows()
    assert (answer.start, round(answer.end, 6)) == (0.0, 12 / 25)
    assert answer.prediction.classes == matcher.predict(query_dir / "red.mp4").classes
    (event,) = ended(m2df.Stream(matcher, query_dir / "red.mp4", window=60.0))
    assert (event.label, event.start, round(event.end, 6)) == ("red", 0.0, 12 / 25)


def test_on_the_grid_every_frame_is_encoded_once_whatever_the_overlap(
    tiny_bundle: Path, support_dir: Path, tmp_path: Path
) -> None:
    path = write_video(tmp_path / "even.mp4", scene(("red", 6)))
    matcher = matcher_with(tiny_bundle, support_dir, sampler="grid")
    for stride, windows in ((1.0, 6), (0.5, 11), (0.25, 21)):
        stream = m2df.Stream(matcher, path, window=1.0, stride=stride)
        assert len(list(stream.windows())) == windows == stream.counts.windows
        assert stream.counts.encoded == 6 * FRAMES  # four in each second


def test_other_samplers_encode_distinct_frames_once_and_moving_regions_every_window(
    tiny_bundle: Path, support_dir: Path, tmp_path: Path
) -> None:
    path = write_video(tmp_path / "even.mp4", scene(("red", 4)))
    stream = m2df.Stream(matcher_with(tiny_bundle, support_dir), path, window=1.0, stride=0.24)
    starts = [6 * number for number in range(14)]  # six frames of a stride
    sizes = [min(25, 100 - start) for start in starts]  # the last window is shorter
    chosen = [
        start + index
        for start, size in zip(starts, sizes, strict=True)
        for index in sample_indices("uniform", size, FRAMES)
    ]
    list(stream)
    assert (stream.counts.windows, stream.counts.encoded) == (14, len(set(chosen)))
    assert len(set(chosen)) < 14 * FRAMES
    moving = m2df.Stream(matcher_with(tiny_bundle, support_dir, region="motion"), path, window=1.0, stride=0.5)
    list(moving)
    assert (moving.counts.windows, moving.counts.encoded) == (7, 7 * FRAMES)


def test_a_stride_is_rounded_to_the_grid_and_that_is_said(
    tiny_bundle: Path, support_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    matcher = matcher_with(tiny_bundle, support_dir, sampler="grid")
    assert m2df.Stream(matcher, scene(("red", 1)), window=2.0, stride=0.6).stride == 0.5
    assert "the stride of 0.6 s becomes 0.5 s" in caplog.text
    caplog.clear()
    assert m2df.Stream(matcher, scene(("red", 1)), window=2.0, stride=0.1).stride == 0.5
    caplog.clear()
    assert [m2df.Stream(matcher, scene(("red", 1)), window=2.0, stride=s).stride for s in (1.0, 1.5, None)] == [
        1,
        1.5,
        0.5,
    ]
    assert not caplog.text


def test_the_window_is_as_long_as_the_clips_unless_said(matcher: m2df.Matcher, tmp_path: Path) -> None:
    assert default_window(matcher.bank) == 1.0  # the clips last half a second
    longer = [
        write_video(tmp_path / f"{k}.mp4", scene(("white", seconds), seed=k))
        for k, seconds in enumerate((2, 3, 3, 4, 5, 9, 9))
    ]
    assert default_window(matcher.bank.add("white", longer)) == 2.0  # the middle of six short ones and these
    stream = m2df.Stream(matcher, scene(("red", 1)))
    assert (stream.window, stream.stride) == (1.0, 0.25)


def test_frames_may_come_from_any_iterator(matcher: m2df.Matcher) -> None:
    frames = scene((None, 2), ("red", 2), (None, 2))
    threads = set()

    def pairs() -> Iterator[tuple[float, NDArray[np.uint8]]]:
        for number, frame in enumerate(frames):
            threads.add(threading.current_thread())
            yield number / FPS, frame

    from_pairs = ended(m2df.Stream(matcher, pairs(), window=1.0))
    from_array = ended(m2df.Stream(matcher, frames, window=1.0))
    assert [(e.label, e.start, e.end) for e in from_pairs] == [(e.label, e.start, e.end) for e in from_array]
    assert [event.label for event in from_pairs] == ["red"]
    assert threads == {threading.current_thread()}


def test_events_come_while_the_recording_goes_on(matcher: m2df.Matcher) -> None:
    read = []

    def endless() -> Iterator[tuple[float, NDArray[np.uint8]]]:
        frames = scene(("red", 4))
        for number in range(10**9):
            read.append(number)
            yield number / FPS, frames[number % len(frames)]

    events = iter(m2df.Stream(matcher, endless(), window=1.0))
    assert next(events).type == "new"
    assert len(read) <= 1.5 * FPS


def test_leaving_early_ends_the_reader(matcher: m2df.Matcher, recording: Path) -> None:
    before = threading.active_count()
    for _ in range(3):
        for _answer in m2df.Stream(matcher, recording, window=1.0).windows():
            break
    assert threading.active_count() == before


def test_nothing_moving_is_nothing(matcher: m2df.Matcher, recording: Path) -> None:
    red = np.repeat(scene(("red", 0.04)), 100, axis=0)  # a still picture of what is taught
    stream = m2df.Stream(matcher, red, window=1.0)
    assert [answer.prediction.label for answer in stream.windows()] == ["red"] * stream.counts.windows
    assert list(stream) == []
    assert (stream.counts.windows, stream.counts.still, stream.counts.encoded) == (13, 13, 0)
    assert all(answer.still and max(answer.scores.values()) == 0 for answer in stream.windows())
    assert list(m2df.Stream(matcher, red[:1], window=1.0)) == []


def test_uneven_times_are_not_warned_of_in_every_window(
    matcher: m2df.Matcher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stamps = [burst + k for burst in range(0, 6000, 1200) for k in range(0, 120, 20)]
    path = write_video(tmp_path / "uneven.mkv", scene(("red", len(stamps) / FPS)), stamps=stamps)
    stream = m2df.Stream(matcher, path, window=1.5, stride=0.25)
    assert len(list(stream.windows())) > 5
    assert not caplog.text
    matcher.predict(Part(open_source(path), 0.0, 1.5))
    assert "so uneven in time" in caplog.text


def test_what_is_rejected_has_no_score(tiny_bundle: Path, support_dir: Path) -> None:
    matcher = m2df.Matcher(model := m2df.load(tiny_bundle), m2df.SupportBank.of(model, support_dir), reject=1.0)
    stream = m2df.Stream(matcher, scene(("red", 3)), window=1.0)
    assert {answer.prediction.rejected for answer in stream.windows()} == {True}
    assert list(stream) == []


def test_clocks_and_sizes_that_change_are_mended(matcher: m2df.Matcher) -> None:
    frames = scene((None, 2), ("red", 2), (None, 2))
    larger = scene((None, 2), ("red", 2), (None, 2), size=(128, 96))

    def odd() -> Iterator[tuple[float, NDArray[np.uint8]]]:
        for number, frame in enumerate(frames):
            time = number / FPS if number < 75 else number / FPS - 40
            yield time, larger[number] if number % 2 else frame
            if number % 10 == 0:
                yield time - 0.5, frame

    (event,) = ended(m2df.Stream(matcher, odd(), window=1.0))
    assert event.label == "red" and abs(event.start - 2) <= 1 and abs(event.end - 4) <= 1


def test_a_rectangle_is_cut_out_of_every_frame(matcher: m2df.Matcher) -> None:
    two = np.concatenate([scene(("red", 3)), scene(("blue", 3), seed=1)], axis=2)
    for roi, label in (((0, 0, 64, 48), "red"), ((64, 0, 64, 48), "blue")):
        answers = [a.prediction for a in m2df.Stream(matcher, two, window=1.0, roi=roi).windows()]
        assert {answer.label for answer in answers} == {label}
        np.testing.assert_allclose(answers[0].features, matcher.predict(two[:25], roi=roi).features, atol=1e-5)
    with pytest.raises(ClipError, match="lies outside the 128x48 frame"):
        list(m2df.Stream(matcher, two, window=1.0, roi=(500, 0, 10, 10)))


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_zones_are_watched_side_by_side_and_decoded_once(
    tiny_bundle: Path, support_dir: Path, look: dict[str, object]
) -> None:
    matcher = matcher_with(tiny_bundle, support_dir, **look)
    left, right = scene((None, 1), ("red", 3), (None, 1)), scene((None, 2), ("blue", 2), (None, 1), seed=1)
    two, read = np.concatenate([left, right], axis=2), []

    class Counted(HeldPicture):
        def rgb(self) -> NDArray[np.uint8]:
            read.append(self)
            return super().rgb()

    zones = {"left": (0.0, 0.0, 0.5, 1.0), "right": (64, 0, 64, 48)}
    pairs = ((t / FPS, Counted(frame)) for t, frame in enumerate(two))
    stream = m2df.Stream(matcher, pairs, window=1.0, zones=zones)
    answers, told = [], []
    for step in stream.steps(every=True):
        answers += [step.answer] if step.answer else []
        told += step.events
    for zone, frames in (("left", left), ("right", right)):
        alone = m2df.Stream(matcher, frames, window=1.0)
        for answer, other in zip([a for a in answers if a.zone == zone], alone.windows(), strict=True):
            np.testing.assert_allclose(answer.prediction.features, other.prediction.features, atol=1e-5)
        of_zone = [(e.type, e.label, e.start, e.end, e.score) for e in told if e.zone == zone]
        assert of_zone == [(e.type, e.label, e.start, e.end, pytest.approx(e.score)) for e in alone]
    new = [event for event in told if event.type == "new"]
    assert [event.id for event in new] == list(range(1, len(new) + 1)), "one row of numbers for all zones"
    known = set() if look.get("channels") == "motion" else {("left", "red"), ("right", "blue")}  # changes are never red
    assert {(event.zone, event.label) for event in new} == known
    assert stream.counts.frames == len(two)
    assert look or len(read) == len(two), "converted once for both"
    assert not known or any(e.text().startswith("the stream, left: red from") for e in told)
    assert answers[0].record()["zone"] == "left" and answers[0].text().startswith("the stream, left, 0:00.0")


def test_only_labels_of_interest_are_told(matcher: m2df.Matcher, recording: Path) -> None:
    found = ended(m2df.Stream(matcher, recording, window=1.0, labels=["Green", "red"]))
    assert [(event.id, event.label) for event in found] == [(1, "red"), (2, "green")]


@pytest.mark.parametrize(
    ("zone", "message"),
    [
        ((0, 0, 0.5), "are not four numbers"),
        ((-1, 0, 5, 5), "is no part of a picture"),
        ((0, 0, 0, 5), "is no part of a picture"),
        ((0, 0, float("nan"), 5), "is no part of a picture"),
        ((0.5, 0, 20, 20), "neither pixels nor fractions"),
        ((1, 0, 1, 1), "lies outside the picture"),
    ],
)
def test_zones_that_are_none_are_refused(matcher: m2df.Matcher, zone: tuple[float, ...], message: str) -> None:
    with pytest.raises(InputError, match=f"zone door: .*{message}"):
        m2df.Stream(matcher, scene(("red", 1)), zones={"door": zone})
    with pytest.raises(InputError, match="a rectangle and zones at once"):
        m2df.Stream(matcher, scene(("red", 1)), zones={"door": (0, 0, 1, 1)}, roi=(0, 0, 9, 9))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 2.0, "stride": 3.0}, "a stride of 3 s is longer than the window of 2 s"),
        ({"window": 0.0}, "a window of 0.0 s"),
        ({"window": float("nan")}, "a window of nan s"),
        ({"window": float("inf")}, "a window of inf s"),
        ({"stride": 1e-9}, "a stride of 1e-09 s"),
    ],
)
def test_windows_that_make_no_sense_are_refused(matcher: m2df.Matcher, options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        m2df.Stream(matcher, scene(("red", 1)), **options)


def test_what_is_no_recording_is_refused(matcher: m2df.Matcher, tiny_bundle: Path, support_dir: Path) -> None:
    with pytest.raises(ClipError, match=r"gone\.mp4: no such file"):
        m2df.Stream(matcher, "gone.mp4")
    with pytest.raises(InputError, match="not float"):
        m2df.Stream(matcher, 3.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"ftp://a:\*\*\*@cam/x: not an address that is read"):
        m2df.Stream(matcher, "ftp://a:hunter2@cam/x")
    with pytest.raises(ClipError, match="frame 1 is not a time"):
        list(m2df.Stream(matcher, [1, 2, 3]))  # type: ignore[list-item]
    for label in ("red", "green"):
        for clip in (support_dir / label).iterdir():
            clip.unlink()
    with pytest.raises(InputError, match=r"the bank has one class \(blue\).*teach a second"):
        m2df.Stream(matcher_with(tiny_bundle, support_dir), scene(("red", 1)))


def test_an_unreadable_frame_is_told_where_it_is_asked_for(matcher: m2df.Matcher) -> None:
    class Broken(m2df.FrameSource):
        name, n_frames, fps = "broken", 100, 25.0
        times = np.arange(100) / 25

        def pictures(self, indices):
            yield from open_pictures(scene(("red", 2)))
            raise ClipError("broken", "the disk went away")

    def open_pictures(frames: NDArray[np.uint8]) -> Iterator[object]:
        from m2df_runtime.clips.source import ArrayPicture

        return map(ArrayPicture, frames)

    told = []
    with pytest.raises(ClipError, match="the disk went away"):
        told.extend(m2df.Stream(matcher, Broken(), window=1.0))
    assert [event.type for event in told][:1] == ["new"]


def test_a_bank_may_be_swapped_between_two_windows(matcher: m2df.Matcher, support_dir: Path) -> None:
    frames = scene(("white", 4))
    stream = m2df.Stream(matcher, ((t / FPS, frame) for t, frame in enumerate(frames)), window=1.0)
    labels = []
    for number, answer in enumerate(stream.windows()):
        labels.append(len(answer.scores))
        if number == 2:
            clips = [write_video(support_dir / f"w{k}.mp4", scene(("white", 1), seed=k)) for k in range(2)]
            matcher.swap(matcher.bank.add("white", clips))
    assert labels == [3] * 3 + [4] * (len(labels) - 3)
    assert answer.prediction.label == "white"
