"""Files of recordings: clips of events, the annotated copy, the time line; read back by a second reader."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from made_videos import number_of, numbered, write_video
from PIL import Image
from test_stream import scene

from m2df_runtime import Event, EventRules
from m2df_runtime.clips.opening import open_source
from m2df_runtime.clips.source import ArraySource, Picture
from m2df_runtime.errors import InputError
from m2df_runtime.match.results import ClassScore, Prediction, Timings
from m2df_runtime.show.timeline import Timeline
from m2df_runtime.sinks import held
from m2df_runtime.sinks.clips import ClipFolder, LiveClips, parse_size
from m2df_runtime.sinks.video import write_video as write_mp4
from m2df_runtime.stream.sources.given import GivenFrames
from m2df_runtime.stream.sources.timed import TimedFrames
from m2df_runtime.stream.stream import WindowAnswer


def event(start: float, end: float, *, id: int = 1, label: str = "wave", camera: str = "a/door.mp4") -> Event:
    return Event("end", id, camera, None, label, 0.8, 0.9, "clap", -1.0, 3, start, end, None, None)


def shown(path: Path) -> list[tuple[float, np.ndarray]]:
    """Time and frame of a file, by PyAV alone."""
    with av.open(str(path)) as container:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def test_a_clip_has_the_frames_of_its_event_and_a_little_around_in_their_own_times(tmp_path: Path) -> None:
    stamps = np.cumsum([0, *np.random.default_rng(2).choice([20, 40, 90], 99)]).tolist()
    recording = open_source(write_video(tmp_path / "long.mkv", numbered(100), stamps=stamps))
    path = ClipFolder(tmp_path / "out", 0.5, 0.25, None).save(event(2.0, 3.0), recording)
    assert path == tmp_path / "out" / "event-door-0001-wave.mp4"
    expected = [k for k, ms in enumerate(stamps) if 1500 <= ms <= 3250]
    found = shown(path)
    assert [number_of(frame) for _, frame in found] == expected
    times = [(stamps[k] - stamps[expected[0]]) / 1000 for k in expected]
    np.testing.assert_allclose([time for time, _ in found], times, atol=1e-4)


def live_event(start: float, end: float, id: int = 1) -> Event:
    return replace(event(start, end, id=id, camera="camera 0"), start_time=1.7e9 + start, end_time=1.7e9 + end)


def test_a_clip_of_a_camera_has_what_was_held_of_it(tmp_path: Path) -> None:
    """The camera is seen for two seconds, lost, and comes back larger; each event ends before its last frame came."""
    parts = [(numbered(50), 0.0), (numbered(50, 1280, 96), 10.0)]

    class Camera(TimedFrames):
        name = "camera 0"

        def frames(self) -> Iterator[tuple[float, Picture]]:
            raise AssertionError("it is read in parts")

        def parts(self) -> Generator[TimedFrames]:
            for frames, began in parts:
                yield GivenFrames(((began + k / 25, frame) for k, frame in enumerate(frames)), self.name)

    of_zone = replace(live_event(10.0, 10.17, 2), zone="gate/left")
    with LiveClips(ClipFolder(tmp_path / "out", 0.2, 0.4, None)) as clips:
        for part in clips.of(Camera()).parts():
            for time, _ in part.frames():
                for moment, ended in ((0.84, live_event(0.4, 0.8)), (10.2, of_zone)):
                    if abs(time - moment) < 0.01:
                        clips.add(ended)
            if time < 5:
                clips.add(live_event(1.8, 1.96, 3))  # told when the camera is lost
    names = {1: "20231114T221320Z", 2: "20231114T221330Z-gate_left", 3: "20231114T221321Z"}  # date -u -d @1700000000
    for number, expected in {1: range(5, 31), 2: range(15), 3: range(40, 50)}.items():
        found = shown(tmp_path / "out" / f"event-camera_0-{names[number]}-{number:04d}-wave.mp4")
        assert {frame.shape[1] for _, frame in found} == {640 if number == 2 else 160}
        if number != 2:  # the numbers of which are reduced, too
            assert [number_of(frame) for _, frame in found] == [*expected]
        np.testing.assert_allclose([time for time, _ in found], np.arange(len(expected)) / 25, atol=1e-4)
    assert (clips.counts.sent, dict(clips.counts.dropped)) == (3, {})


def test_of_a_long_event_of_a_camera_the_last_part_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = numbered(50)
    monkeypatch.setattr(held, "_MOST_BYTES", 40_000)
    said: list[str] = []
    with LiveClips(ClipFolder(tmp_path / "out", 1.0, 1.0, None), said.append) as clips:
        source = clips.of(GivenFrames((k / 25, frame) for k, frame in enumerate(frames)))
        for _ in source.frames():
            pass
        clips.add(replace(live_event(0.0, 2.0), camera=source.name))
    (path,) = (tmp_path / "out").iterdir()
    found = [number_of(frame) for _, frame in shown(path)]
    assert 2 < len(found) < 30 and found == [*range(50 - len(found), 50)]
    assert said == [] and clips.text() == f"{tmp_path / 'out'}: 1 written"


def test_a_clip_that_cannot_be_written_stops_no_other(tmp_path: Path) -> None:
    said: list[str] = []
    with LiveClips(ClipFolder(tmp_path / "out", 1.0, 1.0, None), said.append) as clips:
        source = clips.of(GivenFrames((k / 25, frame) for k, frame in enumerate(numbered(50))))
        for _ in source.frames():
            pass
        first, second = (replace(live_event(0.0, 1.0, number), camera=source.name) for number in (1, 2))
        (tmp_path / "out" / "event-the_stream-20231114T221320Z-0001-wave.mp4").mkdir()
        clips.add(first)
        clips.add(second)
    assert (clips.counts.sent, dict(clips.counts.dropped)) == (1, {"failed": 1})
    assert len(said) == 1 and "0001-wave.mp4" in said[0]
    with pytest.raises(OSError, match="/dev/null/out"):
        LiveClips(ClipFolder(Path("/dev/null/out"), 1.0, 1.0, None))


def test_odd_sizes_and_single_frames_can_be_written(tmp_path: Path) -> None:
    assert write_mp4(tmp_path / "odd.mp4", [(5.0, np.full((33, 51, 3), 90, np.uint8))], 25.0) == 1
    ((time, frame),) = shown(tmp_path / "odd.mp4")
    assert (time, frame.shape) == (0.0, (32, 50, 3)) and abs(int(frame.mean()) - 90) <= 2
    assert write_mp4(tmp_path / "none.mp4", [], 25.0) == 0
    assert not (tmp_path / "none.mp4").exists()


def test_the_oldest_clips_of_events_go_first_and_nothing_else_goes(tmp_path: Path) -> None:
    recording = ArraySource(scene(("red", 4)))
    for name in ("holiday.mp4", "event.mp4", "event-notes.txt"):
        (tmp_path / name).write_bytes(bytes(10**6))
    folder = ClipFolder(tmp_path, 0.0, 0.0, None)
    paths = [folder.save(event(0.0, 1.0, id=number), recording) for number in range(1, 5)]
    size = paths[0].stat().st_size
    for number, path in enumerate(paths):
        os.utime(path, (number, number))
    newest = ClipFolder(tmp_path, 0.0, 0.0, round(3.5 * size)).save(event(0.0, 1.0, id=5), recording)
    assert sorted(tmp_path.glob("event-*.mp4")) == [paths[2], paths[3], newest]
    alone = ClipFolder(tmp_path, 0.0, 0.0, 1).save(event(0.0, 1.0, id=6), recording)
    assert sorted(tmp_path.glob("event-*.mp4")) == [alone]
    assert all((tmp_path / name).exists() for name in ("holiday.mp4", "event.mp4", "event-notes.txt"))


def test_names_that_no_file_can_have_are_mended(tmp_path: Path) -> None:
    odd = event(0.0, 0.5, label="../sit\n" + "down" * 99, camera="rtsp://user:secret@host/../stream?x=1")
    path = ClipFolder(tmp_path / "out", 0, 0, None).save(odd, ArraySource(scene(("red", 1))))
    assert path.parent == tmp_path / "out" and path.exists() and len(path.name) < 160
    assert "secret" not in path.name


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2 * 10**9), ("500 mb", 5 * 10**8), ("1.5K", 1500), ("7", 7), ("3TB", 3 * 10**12)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "2GiB", "1e9", "two", "2 G B", "9" * 400 + "x"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not a size"):
        parse_size(text)


@pytest.fixture
def watch(run, tmp_path: Path):
    frames = scene((None, 2), ("red", 2), (None, 2), ("blue", 2))
    long = write_video(tmp_path / "long.mp4", frames)
    return partial(run, "--query", long, "--window", 1)


def test_a_recording_is_written_with_its_answers_below(watch, tmp_path: Path) -> None:
    assert watch("--save-video", tmp_path / "new" / "copy.mp4").returncode == 0
    found = shown(tmp_path / "new" / "copy.mp4")
    assert [round(time * 25) for time, _ in found] == list(range(200))
    # Frames of 64 x 48 are shown five times as large, with 52 rows below.
    assert {frame.shape for _, frame in found} == {(48 * 5 + 52, 64 * 5, 3)}
    strips = [frame[240:].astype(int) for _, frame in found]
    blue = [int((strip[38:44, :, 2] - strip[38:44, :, 0] > 80).sum(axis=1).max()) for strip in strips]
    assert max(blue[:25]) == 0, "no score where nothing moves"
    assert min(blue[70:90]) > 200, "a long bar while an event goes on"
    dark = [(strip[:34, :200] < 100).all(axis=2).sum() for strip in strips]
    assert min(dark[70:90]) > 50 > max(dark[:10]), "its name is written"


def test_clips_are_written_and_kept_below_a_size(watch, tmp_path: Path) -> None:
    done = watch("--save-clips", tmp_path / "clips", "--before", 0.5, "--after", 0, "--json")
    ends = [r for r in map(json.loads, done.stdout.splitlines()) if r["type"] == "end"]
    assert len(ends) == 2
    for one in ends:
        found = shown(tmp_path / "clips" / f"event-long-{one['id']:04d}-{one['label']}.mp4")
        first, last = max(one["start"] - 0.5, 0.0), min(one["end"], 199 / 25)
        assert abs(len(found) - (last - first) * 25) <= 1.01
    assert watch("--save-clips", tmp_path / "few", "--keep", "1kB").returncode == 0
    assert len(list((tmp_path / "few").iterdir())) == 1


def test_the_picture_of_a_recording_is_its_time_line(watch, tmp_path: Path) -> None:
    done = watch("--picture", tmp_path / "line.png", "--json")
    image = np.asarray(Image.open(tmp_path / "line.png").convert("RGB")).astype(int)
    events = [r for r in map(json.loads, done.stdout.splitlines()) if r["type"] == "end"]
    accent = (np.abs(image - [33, 102, 204]) < 3).all(axis=2)
    # A bar below the scores of its class, from its start to its end on a plot of 1,200 pixels for 8 seconds.
    for row in events:
        left, right = (170 + round(row[side] / 8 * 1200) for side in ("start", "end"))
        assert accent[:, left + 1 : right - 1].all(axis=1).sum() >= 5
    assert not accent[:, 170 : 170 + round(events[0]["start"] / 8 * 1200) - 1].any()


def test_files_of_several_recordings_are_numbered(run, query_dir: Path, tmp_path: Path) -> None:
    done = run("--query", query_dir, "--window", 1, "--picture", tmp_path / "t.png", "--save-video", tmp_path / "v.mp4")
    assert done.returncode == 0
    assert sorted(path.name for path in tmp_path.glob("[tv]-*")) == [
        *(f"t-{k}.png" for k in (1, 2, 3)), *(f"v-{k}.mp4" for k in (1, 2, 3))
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--keep", "2GB"], "--keep needs --save-clips DIR"),
        (["--save-clips", "c", "--keep", "much"], "'much' is not a size (for example 500MB or 2GB)"),
        (["--save-clips", "/dev/null/c"], "error: /dev/null/c"),
        (["--save-video", "/dev/null/v.mp4"], "error: /dev/null"),
        (["--picture", "/dev/null/p.png"], "error: /dev/null"),
    ],
)
def test_places_that_cannot_be_written_are_named(watch, options: list[str], message: str) -> None:
    done = watch(*options)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]


def test_a_time_line_of_anything_can_be_drawn() -> None:
    empty = Timeline("nothing.mp4", EventRules())
    assert empty.draw([]).width == 1456
    line = Timeline("a" * 300, EventRules())
    labels = [f"класс {k}" for k in range(20)]
    for k in range(400):
        scores = {label: (k % 7) / 7 for label in labels}
        prediction = Prediction("w", (ClassScore(labels[0], 1.0, 0.0),), False, "cpu", Timings(0, 0, 0, 0))
        found = [event(k - 0.5, k + 0.5, id=k, label=labels[k % 20])] if k % 2 else []
        line.add(WindowAnswer("w", None, float(k), k + 2.0, prediction, scores, False), found)
    frames = [np.zeros((60, 1000, 3), np.uint8)] * len(line.moments)
    assert 0 < len(frames) <= 12
    image = line.draw(frames)
    assert image.width == 1456 and image.height < 900
