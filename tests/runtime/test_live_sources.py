"""Cameras on a network: real servers on loopback, real video, and each fault really done."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cache, partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from live_servers import (
    CERTIFICATE,
    LOGIN,
    LONGEST,
    Http,
    Play,
    Rtsp,
    closed_port,
    film,
    jpegs,
    sending,
    serving,
    silent,
)
from made_videos import number_of, numbered, write_video

from m2df_runtime.clips.source import ArrayPicture, Picture
from m2df_runtime.errors import ClipError, InputError
from m2df_runtime.stream import picture_states
from m2df_runtime.stream.policy import Freshest
from m2df_runtime.stream.sources import live, network, packets
from m2df_runtime.stream.sources.device import DeviceFrames
from m2df_runtime.stream.sources.live import LiveFrames, Shown, SourceLost, SourceState, pauses
from m2df_runtime.stream.sources.network import NetworkFrames


class States:
    """Hears what a source says, and lets tests wait for it."""

    def __init__(self) -> None:
        self.heard: list[SourceState] = []
        self._news = threading.Condition()

    def __call__(self, state: SourceState) -> None:
        with self._news:
            self.heard.append(state)
            self._news.notify_all()

    def wait_for(self, state: str, cause: str | None = None, count: int = 1) -> SourceState:
        def found() -> list[SourceState]:
            return [one for one in self.heard if one.state == state and cause in (None, one.cause)]

        with self._news:
            assert self._news.wait_for(lambda: len(found()) >= count, LONGEST), self.heard
        return found()[count - 1]

    @property
    def names(self) -> list[str]:
        return [one.state for one in self.heard]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_PAUSES", (0.01, 0.01))


@pytest.fixture
def states() -> States:
    return States()


@cache
def numbers(count: int = 30, width: int = 160, kind: str = "h264") -> tuple[tuple[bytes, ...], ...]:
    return film(numbered(count, width, 96), kind)


@contextmanager
def read(source: LiveFrames) -> Iterator[list[tuple[float, Picture]]]:
    """Read a source on a thread of its own; gives what came so far."""
    frames: list[tuple[float, Picture]] = []

    def take() -> None:
        for frame in source.frames():
            frames.append(frame)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    try:
        yield frames
    finally:
        source.stop()
        thread.join(LONGEST)
        assert not thread.is_alive()


def wait_until(done: Callable[[], bool]) -> None:
    until = time.monotonic() + LONGEST
    while not done():
        assert time.monotonic() < until
        time.sleep(0.01)


def first(source: LiveFrames, count: int) -> list[tuple[float, Picture]]:
    with closing(source.frames()) as frames:
        return list(islice(frames, count))


@pytest.mark.usefixtures("_patience")
@pytest.mark.parametrize("kind", ["h264", "hevc"])
def test_rtsp_gives_every_frame_with_its_time(kind: str, states: States) -> None:
    with serving(Rtsp(Play(numbers(kind=kind), kind))) as server:
        frames = first(NetworkFrames(server.url(), states), 30)
    assert [number_of(picture.rgb()) for _, picture in frames] == list(range(30))
    times = [seconds for seconds, _ in frames][1:]  # FFmpeg has no stamp for some streams' first frame
    assert np.diff(times) == pytest.approx(1 / 25, rel=0.11)  # by a tenth of which times are drawn to the arrival
    assert states.names == ["connecting", "running", "ended"]


@pytest.mark.usefixtures("_patience")
def test_mpeg_ts_and_mjpeg_over_http(states: States, tmp_path: Path) -> None:
    pictures = numbered(30)
    shots = jpegs(pictures.tobytes(), pictures.shape)
    file = write_video(tmp_path / "a.mp4", pictures, container_options={"movflags": "faststart"}).read_bytes()
    with serving(Http(Play(numbers(kind="mpegts")), shots, file)) as server:
        for path in ("/live.ts", "/live.mjpeg"):
            frames = first(NetworkFrames(server.url(path), states), 20)
            assert [number_of(picture.rgb()) for _, picture in frames] == list(range(20)), path
            assert (np.diff([seconds for seconds, _ in frames]) > 0).all()
        locked = server.url("/locked.ts", LOGIN.replace(" ", "%20"))
        (_, picture), *_ = first(NetworkFrames(locked), 1)
        assert number_of(picture.rgb()) == 0
        for path, cause in (("/locked.ts", "unauthorised"), ("/gone.ts", "not found"), ("/page", "codec")):
            with read(NetworkFrames(server.url(path), told := States(), timeout=LONGEST)):
                assert told.wait_for("restarting").cause == cause, path
        with pytest.raises(ClipError, match=r"film\.mp4: a recording of 1 s, not a live stream; save it"):
            first(NetworkFrames(server.url("/film.mp4"), states), 1)
        states.wait_for("failed")


@pytest.mark.usefixtures("_patience")
@pytest.mark.parametrize("kind", ["udp", "tcp"])
def test_mpeg_ts_without_more_around_it(kind: str, states: States) -> None:
    with sending(Play(numbers(kind="mpegts")), kind) as address:
        frames = first(NetworkFrames(address, states, timeout=20), 10)
    found = [number_of(picture.rgb()) for _, picture in frames]
    assert found == [(found[0] + k) % 30 for k in range(10)]
    assert states.names == ["connecting", "running", "ended"]


def test_a_certificate_must_be_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with serving(Http(Play(numbers(kind="mpegts")), (), b"", secure=True)) as server:
        with read(NetworkFrames(server.url("/live.ts"), told := States(), timeout=LONGEST)):
            told.wait_for("restarting", "TLS")
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        ((_, picture),) = first(NetworkFrames(server.url("/live.ts"), timeout=LONGEST), 1)
        assert number_of(picture.rgb()) == 0


def test_cameras_that_refuse_are_tried_again_until_they_give(states: States) -> None:
    port = closed_port()
    with read(NetworkFrames(f"rtsp://a:hunter2@127.0.0.1:{port}/s", states)) as frames:
        states.wait_for("restarting", "refused", 3)
        refusals = [Play((), answer="404 Not Found"), Play((), answer="503 Service Unavailable"), Play(numbers())]
        with serving(Rtsp(refusals[0], port=port)) as server:
            states.wait_for("restarting", "not found")
            server.plays = [Play(numbers(), login=True)]
            states.wait_for("restarting", "unauthorised")
            server.plays = refusals[2:]
            states.wait_for("running")
    assert frames
    assert all("hunter2" not in state.text() for state in states.heard)


def test_a_password_opens(states: States, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMERA_PASSWORD", LOGIN.partition(":")[2])
    with serving(Rtsp(Play(numbers(), login=True))) as server:
        for login in (LOGIN.replace(" ", "%20"), "user:${CAMERA_PASSWORD}"):
            assert len(first(NetworkFrames(server.url(login), states), 3)) == 3
    with pytest.raises(InputError, match=r"rtsp://user:\*\*\*@camera/1: \$\{NOT_SET\} is not in the environment"):
        NetworkFrames("rtsp://user:${NOT_SET}@camera/1")
    assert "sesame" not in str(states.heard)


def test_who_says_nothing_is_left_after_the_time_limit(states: States) -> None:
    with silent() as port:
        for scheme in ("rtsp", "http", "tcp"):
            source = NetworkFrames(f"{scheme}://127.0.0.1:{port}/", told := States(), timeout=0.5)
            with read(source):
                told.wait_for("restarting", "timeout")


def test_a_host_without_a_name_is_not_found(states: States) -> None:
    with read(NetworkFrames("rtsp://camera.invalid/s", states)):
        assert states.wait_for("restarting").cause == "not found"


@pytest.mark.usefixtures("_patience")
@pytest.mark.parametrize(
    ("then", "cause"), [("close", "closed"), ("reset", "closed"), ("half", "closed"), ("stall", "timeout")]
)
def test_what_is_lost_comes_back_as_another_part(then: str, cause: str, states: States) -> None:
    """The second connection has another size, the third another codec and frame rate; time goes on."""
    plays = [
        Play(numbers(), frames=15, then=then),
        Play(numbers(width=192), frames=15, then=then, stamps=lambda k: 5000 + k / 25),
        Play(numbers(kind="hevc"), "hevc", fps=12.5, stamps=lambda k: 7 + k / 12.5),
    ]
    with serving(Rtsp(*plays)) as server:
        source = NetworkFrames(server.url(), states, timeout=2 if then == "stall" else LONGEST)
        parts = []
        with closing(source.parts()) as found:
            for part in islice(found, 3):
                parts.append([])
                for seconds, picture in part.frames():
                    parts[-1].append((seconds, picture.rgb()))
                    if len(parts) == 3 and len(parts[-1]) == 8:
                        break
    shapes = [{frame.shape for _, frame in part} for part in parts]
    assert shapes == [{(96, 160, 3)}, {(96, 192, 3)}, {(96, 160, 3)}]
    for part in parts[0], parts[2]:
        assert [number_of(frame) for _, frame in part][:8] == list(range(8))
    assert len(parts[0]) >= 14
    times = [seconds for part in parts for seconds, _ in part]
    assert (np.diff(times) > 0).all()
    later = [seconds for seconds, _ in parts[2]][1:]  # as above
    assert np.diff(later) == pytest.approx(1 / 12.5, rel=0.11)
    states.wait_for("restarting", cause, 2)
    assert states.names.count("running") == 3


@pytest.mark.usefixtures("_patience")
def test_a_stall_ends_a_part_before_the_connection_ends(states: States, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "STALLED", 0.5)
    with (
        serving(Rtsp(Play(numbers(), frames=15, then="stall"))) as server,
        closing(NetworkFrames(server.url(), states).parts()) as parts,
    ):
        assert len(list(next(parts).frames())) >= 14  # FFmpeg sees the end of a frame where the next begins
        assert states.wait_for("stalled").detail == "no frame for 0.5 s"
    assert states.names == ["connecting", "running", "stalled", "ended"]


@pytest.mark.usefixtures("_patience")
@pytest.mark.parametrize(
    ("stamps", "jumps"),
    [
        (lambda k: k / 25 + (2**32 / 90_000 - 0.4), 0),  # FFmpeg knows of it
        (lambda k: 50 + k / 25 + (3600 if k > 12 else 0), 1),
        (lambda k: 50 + k / 25 + (900 if k < 12 else 0), 1),
        (lambda k: 50 + (k - (k % 5 == 4)) / 25, 0),
    ],
    ids=["wrap", "an hour ahead", "back", "repeat"],
)
def test_clocks_of_cameras_may_do_what_they_like(
    stamps: Callable[[int], float], jumps: int, states: States, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(Rtsp(Play(numbers(), stamps=stamps))) as server:
        source = NetworkFrames(server.url(), states)
        frames = first(source, 24)
    times = np.array([seconds for seconds, _ in frames])
    assert (np.diff(times) > 0).all() and np.diff(times).max() < 1.0
    assert (f"jumped {jumps} times" in caplog.text) == bool(jumps)
    assert "stalled" not in states.names and states.names.count("running") == 1


def test_who_takes_frames_slowly_gets_fresh_ones(states: States) -> None:
    with serving(Rtsp(Play(numbers()))) as server:
        source = NetworkFrames(server.url(), states)
        with closing(source.frames()) as frames:
            next(frames)
            assert threading.Event().wait(1.2) is False  # somebody computes
            (later, _), *_ = islice(frames, 1)
            assert source.dropped.get("stale", 0) > 5
    assert later > 0.5


class Clock:
    """Stands until it is moved, and counts who looks at it."""

    now = 0.0
    looks = 0

    def monotonic(self) -> float:
        self.looks += 1
        return self.now


@pytest.mark.parametrize("path", ["/live.ts", "/live.mjpeg"])
def test_who_is_held_up_in_decoding_goes_on_with_what_is_fresh(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames come meanwhile; of 150 none is lost without being counted."""
    monkeypatch.setattr(live, "_PAUSES", (1000.0, 1000.0))
    monkeypatch.setattr(live, "Freshest", partial(Freshest, budget=LONGEST))  # what is decoded is looked at
    clock = Clock()
    monkeypatch.setattr(packets, "time", clock)
    monkeypatch.setattr(network, "time", clock)
    states, go_on = States(), threading.Event()

    def tell(state: SourceState) -> None:
        states(state)
        if state.state == "running":  # told by who decodes
            go_on.wait(LONGEST)

    play, pictures = Play(numbers(150, kind="mpegts"), frames=150, fps=100), numbered(150)
    with serving(Http(play, jpegs(pictures.tobytes(), pictures.shape), b"")) as server:
        source = NetworkFrames(server.url(path), tell)
        with read(source) as frames:
            wait_until(lambda: clock.looks >= 210)  # twice for a packet that is read, seldom by others
            clock.now = 0.6  # all of these are too old
            go_on.set()
            states.wait_for("restarting", "closed")
            wait_until(lambda: len(frames) + sum(source.dropped.values()) == 150)
    found = [number_of(picture.rgb()) for _, picture in frames]
    after = min(number for number in found if number > 2)  # the first frames are decoded where the camera is opened
    assert after >= 90, "the newest keyframe of those that waited, or a later one"
    assert source.dropped["undecoded"] >= 87 and set(source.dropped) == {"undecoded"}


@pytest.mark.parametrize("state", ["connecting", "running", "stalled", "restarting"])
def test_stopping_ends_it_from_every_state(state: str, states: States, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "STALLED", 0.2)
    monkeypatch.setattr(live, "_PAUSES", (1000.0, 1000.0))
    with silent() as port, serving(Rtsp(Play(numbers(), frames=15, then="stall"), Play(numbers()))) as server:
        server.plays = server.plays[state == "running" :]
        addresses = {"connecting": f"rtsp://127.0.0.1:{port}/", "restarting": f"rtsp://127.0.0.1:{closed_port()}/"}
        source = NetworkFrames(addresses.get(state, server.url()), states, timeout=30)
        with read(source):
            states.wait_for(state)
            began = time.monotonic()
        left = time.monotonic() - began
    assert states.names[-1] == "ended"
    assert left < 20, "it waits for nothing that the other side does"
    assert list(source.frames()) == [], "what was stopped stays so"


class Device:
    """Behaves like `cv2.VideoCapture`: gives what it is told, frames of (height, width) or None for a failed read."""

    def __init__(
        self, *shapes: tuple[int, int] | None, opens: bool = True, wait: threading.Event | None = None
    ) -> None:
        self._shapes, self._opens, self._wait = iter(shapes), opens, wait
        self.released = False

    def isOpened(self) -> bool:
        return self._opens

    def read(self) -> tuple[bool, np.ndarray | None]:
        if (shape := next(self._shapes, None)) is None:
            if self._wait:
                self._wait.wait(LONGEST)
            return False, None
        return True, np.full((*shape, 3), (200, 100, 50), np.uint8)  # blue, green, red

    def release(self) -> None:
        self.released = True


@pytest.mark.usefixtures("_patience")
def test_device_cameras_fail_slow_down_and_change_their_size(states: States, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = threading.Event()
    devices = [
        Device(opens=False),
        Device((48, 64), (48, 64), (96, 128), None),
        Device(),
        Device((24, 32), wait=slow),
    ]
    opened = iter(devices)
    monkeypatch.setattr(live, "STALLED", 0.2)
    source = DeviceFrames(3, states, capture=lambda number: next(opened) if number == 3 else None)
    with closing(source.parts()) as parts:
        shapes = [[picture.rgb().shape for _, picture in part.frames()] for part in islice(parts, 2)]
        assert states.wait_for("stalled").name == "camera 3"
    slow.set()
    assert shapes == [[(48, 64, 3)] * 3, [(24, 32, 3)]]
    assert [(one.state, one.cause) for one in states.heard if one.cause] == [
        ("restarting", "not found"),
        ("restarting", "closed"),
        ("restarting", "closed"),
    ]
    assert all(device.released for device in devices[:3])
    ((_, picture),) = first(DeviceFrames(0, States(), capture=lambda number: Device((4, 4))), 1)
    assert picture.rgb()[0, 0].tolist() == [50, 100, 200]


def test_a_device_that_is_not_there_is_waited_for(states: States) -> None:
    with read(DeviceFrames(999, states)):
        assert states.wait_for("restarting", "not found", 2)


class Scripted(LiveFrames):
    """Does what it is told: a number of frames, then an error, for each connection."""

    def __init__(self, *script: tuple[int, Exception], on_state: States) -> None:
        super().__init__("scripted", on_state)
        self._script = iter(script)

    @contextmanager
    def connected(self) -> Iterator[Iterator[Shown]]:
        count, error = next(self._script)

        def frames() -> Iterator[Shown]:
            for _ in range(count):
                yield Shown(None, ArrayPicture(np.zeros((8, 8, 3), np.uint8)))
            raise error

        yield frames()


def test_what_would_be_the_same_again_fails_for_good_and_faults_are_not_hidden(states: States) -> None:
    again, large = SourceLost("refused", "no"), ClipError("scripted", "too many pixels")
    final = SourceLost("not found", "no such device", final=True)
    with pytest.raises(ClipError, match="scripted: no such device"):
        list(Scripted((0, again), (2, large), (0, final), on_state=states).frames())
    causes = [(one.state, one.cause) for one in states.heard if one.cause]
    assert causes == [("restarting", "refused"), ("restarting", "codec"), ("failed", "not found")]
    with pytest.raises(ZeroDivisionError):
        list(Scripted((1, ZeroDivisionError()), on_state=States()).frames())


def test_pauses_double_up_to_half_a_minute_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_PAUSES", (1.0, 30.0))
    assert list(islice(pauses(lambda: 0.5), 7)) == [1, 2, 4, 8, 16, 30, 30]
    assert list(islice(pauses(lambda: 0.0), 3)) == pytest.approx([0.8, 1.6, 3.2])
    assert max(islice(pauses(lambda: 0.999), 20)) == 30


@pytest.mark.usefixtures("_patience")
def test_a_camera_says_what_is_wrong_with_its_picture_until_nothing_is(
    states: States, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_states, "BLANK", 0.1)
    shown = np.concatenate([numbered(25), np.zeros_like(numbered(50))])
    with (
        serving(Http(Play(()), jpegs(shown.tobytes(), shown.shape), b"")) as server,
        read(NetworkFrames(server.url("/live.mjpeg"), states, name="door")),
    ):
        states.wait_for("running", count=4)
    heard = [(one.state, one.picture) for one in states.heard if one.state == "running"][:4]
    assert heard == [("running", picture) for picture in (None, "blank", None, "blank")]
    assert states.heard[2].text() == "door: running: the picture is blank"


@pytest.mark.usefixtures("_patience")
def test_two_frames_a_second_are_no_stall(states: States) -> None:
    slow = Play(numbers(), fps=2, stamps=lambda k: 7 + k / 2)
    with serving(Rtsp(slow)) as server:
        frames = first(NetworkFrames(server.url(), states), 12)
    assert [number_of(picture.rgb()) for _, picture in frames] == list(range(12))
    assert np.diff([seconds for seconds, _ in frames][1:]) == pytest.approx(0.5, rel=0.11)  # as above
    assert states.names == ["connecting", "running", "ended"]


@pytest.mark.usefixtures("_patience")
def test_the_clock_of_mpeg_ts_wraps(states: States) -> None:
    """At 2^33 ticks of 90 kHz, which is after a day and a half; the first frame is that far from it."""
    begin = (2**33 - 90_000 * 2) // 3600  # 1.4 seconds is what the format adds
    wrapping = film(numbered(60), "mpegts", begin)
    with serving(Http(Play(wrapping), (), b"")) as server:
        frames = first(NetworkFrames(server.url("/live.ts"), states), 40)
    assert [number_of(picture.rgb()) for _, picture in frames] == list(range(40))
    assert np.diff([seconds for seconds, _ in frames]) == pytest.approx(1 / 25, rel=0.11)
    assert states.names == ["connecting", "running", "ended"]


def test_a_certificate_is_that_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    with serving(Http(Play(numbers(kind="mpegts")), (), b"", secure=True, host="0.0.0.0")) as server:
        address = server.url("/live.ts").replace("127.0.0.1", "127.0.0.2")  # this machine, too
        with read(NetworkFrames(address, told := States(), timeout=LONGEST)):
            told.wait_for("restarting", "TLS")


@pytest.mark.usefixtures("_patience")
def test_the_system_clock_may_be_set_back(states: States, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a part says of the wall clock is by the clock as it goes then; seconds go on, and nothing stalls."""
    lost = SourceLost("closed", "gone")
    wall = SimpleNamespace(time=lambda: 1e9, monotonic=time.monotonic)
    monkeypatch.setattr(live, "time", wall)
    with closing(Scripted((3, lost), (3, lost), on_state=states).parts()) as parts:
        first_part = next(parts)
        before = [seconds for seconds, _ in first_part.frames()]
        wall.time = lambda: 1e9 - 3600
        second_part = next(parts)
        after = [seconds for seconds, _ in second_part.frames()]
    assert first_part.began == pytest.approx(1e9, abs=LONGEST)
    assert first_part.began - second_part.began == pytest.approx(3600, abs=LONGEST)
    assert (np.diff([*before, *after]) > 0).all() and "stalled" not in states.names
