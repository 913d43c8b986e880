"""m2df-run with cameras as a user meets it: several at once, events as lines, and an end in every state."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from live_servers import FPS, LOGIN, LONGEST, Play, Rtsp, closed_port, film, serving, silent
from made_videos import write_video
from numpy.typing import NDArray
from test_stream import scene
from tiny_bundle import write_clip

import m2df_runtime as m2df
from m2df_runtime.backends.model import Model
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.clips.source import ArrayPicture, grey_of
from m2df_runtime.errors import ClipError
from m2df_runtime.stream import read_ahead
from m2df_runtime.stream.policy import Freshest
from m2df_runtime.stream.sources import live

WATCH = ("--window", 0.8, "--stride", 0.2)
# A busy machine takes longer to tell what goes on than a signal gives it, and does not keep up with cameras.
PATIENT = """
from functools import partial
from m2df_runtime.commands import run, until_signal
from m2df_runtime.stream import read_ahead, stream
from m2df_runtime.stream.sources import live, packets
until_signal._GRACE = stream.BUDGET = 60
for module, name in ((live, "Freshest"), (read_ahead, "Freshest"), (packets, "FreshestEncoded")):
    setattr(module, name, partial(getattr(module, name), budget=60))
run.main()
"""


@cache
def acted(colour: str, size: tuple[int, int] = (64, 48)) -> tuple[tuple[bytes, ...], ...]:
    """Somebody acts, then nobody does."""
    return film(scene((colour, 1.6), (None, 1.6), size=size))


class Watching:
    """m2df-run in a process of its own, and what it printed so far."""

    def __init__(self, *arguments: object, program: str = PATIENT, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, **environment},
        )
        self.lines: dict[str, list[str]] = {"out": [], "err": []}
        self._news = threading.Condition()
        streams = (("out", self.process.stdout), ("err", self.process.stderr))
        self._readers = [threading.Thread(target=self._read, args=pair, daemon=True) for pair in streams]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str, stream: object) -> None:
        for line in stream:  # type: ignore[attr-defined]
            with self._news:
                self.lines[name].append(line.rstrip("\n"))
                self._news.notify_all()

    def wait_for(self, name: str, found: Callable[[str], bool], count: int = 1) -> None:
        """Until so many lines of standard output or error are found."""
        with self._news:
            enough = self._news.wait_for(lambda: sum(map(found, self.lines[name])) >= count, LONGEST)
        assert enough, self.lines

    def ended(self, number: signal.Signals) -> int:
        """Its exit code after a signal."""
        self.process.send_signal(number)
        code = self.process.wait(LONGEST)
        for reader in self._readers:
            reader.join(LONGEST)
        return code

    def __enter__(self) -> Watching:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            stream.close()


@pytest.fixture
def watching(tiny_bundle: Path, support_dir: Path) -> Callable[..., Watching]:
    m2df.SupportBank.of(m2df.load(tiny_bundle), support_dir)  # kept, as after a first call
    return lambda *more: Watching("--bundle", tiny_bundle, "--support", support_dir, *WATCH, *more)


def test_two_cameras_and_a_file_while_one_is_pulled_and_put_back(
    watching: Callable[..., Watching], tmp_path: Path
) -> None:
    recording = write_video(tmp_path / "long.mp4", scene((None, 1), ("green", 2), (None, 1)))
    with serving(Rtsp(Play(acted("red"), login=True))) as red, serving(Rtsp(Play(acted("blue")))) as blue:
        login = LOGIN.replace(" ", "%20")
        queries = ("--query", red.url(login), "--query", blue.url(), "--query", recording)
        began = time.time()
        with watching(*queries, "--json") as run:

            def end_of(name: str) -> Callable[[str], bool]:
                return lambda line: json.loads(line)["camera"] == name and json.loads(line)["type"] == "end"

            shown = red.url("user:***")
            for name in (shown, blue.url(), str(recording)):
                run.wait_for("out", end_of(name))
            blue.end()
            run.wait_for("err", lambda line: "restarting: refused" in line)
            so_far = len(run.lines["out"])
            with serving(Rtsp(Play(acted("green", (96, 64))), port=blue.port)):
                run.wait_for("out", lambda line: end_of(blue.url())(line) and json.loads(line)["label"] == "green")
            run.wait_for("out", end_of(shown), 2)
            assert run.ended(signal.SIGINT) == 130
        records = [json.loads(line) for line in run.lines["out"]]
    assert len(records) > so_far
    labels = {name: {r["label"] for r in records if r["camera"] == name} for name in (shown, blue.url())}
    assert labels == {shown: {"red"}, blue.url(): {"blue", "green"}}
    for name in labels:
        ids = [r["id"] for r in records if r["camera"] == name and r["type"] == "new"]
        assert ids == list(range(1, len(ids) + 1)), "numbers go on when a camera comes back"
        told = [r for r in records if r["camera"] == name]
        assert all(began <= r["start_time"] <= r["end_time"] <= time.time() + 3 for r in told)  # held up at first
        assert all(abs((r["end_time"] - r["start_time"]) - (r["end"] - r["start"])) < 0.01 for r in told)
    assert {r["start_time"] for r in records if r["camera"] == str(recording)} == {None}
    said = "\n".join(run.lines["err"])
    assert "sesame" not in said + "\n".join(run.lines["out"]), "passwords are nowhere"
    assert run.lines["err"][-1] == "error: interrupted"
    changes = [line for line in run.lines["err"] if line.startswith(blue.url())]
    assert all(one != other for one, other in pairwise(changes)), "once for each change"


def test_the_cameras_of_a_file(tiny_bundle: Path, support_dir: Path, tmp_path: Path) -> None:
    """Two zones of one, a label of interest of another, a recording, and one that is not enabled."""
    sides = (scene(("red", 1.6), (None, 1.6)), scene((None, 1.6), ("blue", 1.6), seed=1))
    write_video(tmp_path / "long.mp4", scene((None, 1), ("green", 2), (None, 1)))
    with (
        serving(Rtsp(Play(film(np.concatenate(sides, axis=2)), login=True))) as door,
        serving(Rtsp(Play(film(scene(("red", 1.6), (None, 1), ("blue", 1.6), (None, 1)))))) as yard,
    ):
        file, address = tmp_path / "cameras.yaml", door.url("user:${DOOR}")
        file.write_text(f"""
            defaults: {{window: 0.8, stride: 0.2, labels: [red, Blue, wave]}}
            cameras:
              - {{name: door, url: "{address}", zones: {{left: [0, 0, 0.5, 1], right: [64, 0, 64, 48]}}}}
              - {{name: yard, url: "{yard.url()}", labels: [BLUE]}}
              - {{name: old, file: long.mp4, labels: [green], stride: 0.4}}
              - {{name: spare, device: 7, enabled: false}}
        """)
        where = ("--bundle", tiny_bundle, "--support", support_dir, "--cameras", file, "--json")
        with Watching(*where, DOOR=LOGIN.partition(":")[2]) as run:

            def end_of(*wanted: str | None) -> Callable[[str], bool]:
                return lambda line: (
                    wanted == tuple(json.loads(line)[key] for key in ("camera", "zone", "label", "type"))
                )

            for wanted in (("door", "left", "red"), ("door", "right", "blue"), ("old", None, "green")):
                run.wait_for("out", end_of(*wanted, "end"))
            run.wait_for("out", end_of("yard", None, "blue", "end"), 2)
            assert run.ended(signal.SIGTERM) == 0
    told = {(r["camera"], r["zone"], r["label"]) for r in map(json.loads, run.lines["out"])}
    assert told == {("door", "left", "red"), ("door", "right", "blue"), ("yard", None, "blue"), ("old", None, "green")}
    said = "\n".join(run.lines["err"])
    assert "door: running" in said and "spare" not in said and "sesame" not in said
    assert "warning: door: told of nothing that is not taught: wave" in said


def test_what_is_taught_meanwhile_is_recognised(
    watching: Callable[..., Watching], tiny_bundle: Path, support_dir: Path, tmp_path: Path
) -> None:
    def compared(line: str) -> bool:
        return "white" in [one["label"] for one in json.loads(line).get("classes", ())]

    clip = write_clip(tmp_path / "white.mp4", "white", seed=1)
    with (
        serving(Rtsp(Play(acted("white")))) as camera,
        watching("--query", camera.url(), "--json", "--windows", "--reject", "off") as run,
    ):
        run.wait_for("out", lambda line: json.loads(line)["type"] == "window")
        m2df.Support(support_dir, m2df.load(tiny_bundle)).add("white", clip)
        run.wait_for("out", compared)
        assert run.ended(signal.SIGTERM) == 0
    assert not compared(run.lines["out"][0])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_in_every_state_and_tells_what_goes_on(
    watching: Callable[..., Watching], number: signal.Signals
) -> None:
    """One camera says nothing, one refuses, one stalls; before one somebody acts and does not stop."""
    acting = film(scene(("red", 4)))
    with (
        silent() as port,
        serving(Rtsp(Play(acting, frames=30, then="stall"))) as stalled,
        serving(Rtsp(Play(acting))) as running,
    ):
        addresses = [f"rtsp://127.0.0.1:{port}/a", f"rtsp://127.0.0.1:{closed_port()}/b", stalled.url(), running.url()]
        with watching(*(word for address in addresses for word in ("--query", address))) as run:
            run.wait_for("err", lambda line: line == f"{addresses[0]}: connecting")
            for place, state in ((1, "restarting: refused"), (2, "stalled"), (3, "running")):
                start = f"{addresses[place]}: {state}"
                run.wait_for("err", lambda line, start=start: line.startswith(start))
            run.wait_for("out", lambda line: line.startswith(f"{addresses[2]}: red from"))
            code = run.ended(number)
    assert code == (130 if number is signal.SIGINT else 0)
    assert run.lines["out"][-1].startswith(f"{addresses[3]}: red from"), run.lines
    assert sum(" of 0.8 s, one every " in line for line in run.lines["err"]) == 4, run.lines


def test_a_reader_that_leaves_ends_it(watching: Callable[..., Watching]) -> None:
    with serving(Rtsp(Play(acted("red")))) as server, watching("--query", server.url(), "--windows", "--json") as run:
        run.wait_for("out", lambda line: "window" in line)
        os.dup2(os.open(os.devnull, os.O_RDONLY), run.process.stdout.fileno())
        assert run.process.wait(LONGEST) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--query", "rtsp://a:hunter2@cam/1"], "Error: a camera needs --window, for example --window 2"),
        (["--query", "ftp://a:hunter2@cam/1", *WATCH], "error: ftp://a:***@cam/1: not an address that is read"),
        (["--query", "rtsp://", *WATCH], "error: rtsp://: the address names no host"),
        (["--query", "0", *WATCH, "--save-video", "a.mp4"], "error: --save-video needs recordings"),
        (["--query", "0", *WATCH, "--picture", "a.png"], "error: --picture needs recordings"),
        (["--query", "0", "--query", "gone.mp4", "--window", "0"], "error: a window of 0.0 s"),
        (["--cameras", "a.yaml", "--query", "0"], "Error: --cameras stands instead of --query"),
        (["--cameras", "a.yaml", "--roi", "0,0,9,9"], "Error: --roi X,Y,W,H is of --query: write zones into the file"),
        (
            ["--cameras", "a.yaml", "--merge-gap", "1"],
            "Error: --merge-gap is of --query: write merge_gap into the file",
        ),
        (["--cameras", "gone.yaml"], "error: gone.yaml: No such file"),
    ],
)
def test_what_makes_no_sense_is_refused(run, options: list[object], message: str) -> None:
    done = run(*options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith(message)
    assert "hunter2" not in done.stderr


@pytest.mark.usefixtures("_patience")
def test_slow_answers_skip_windows_and_lose_no_frame(tiny_bundle: Path, support_dir: Path) -> None:
    model = m2df.load(tiny_bundle)
    matcher = m2df.Matcher(model, m2df.SupportBank.of(model, support_dir))
    pause = threading.Event()
    with serving(Rtsp(Play(acted("blue")))) as server:
        stream = m2df.Stream(matcher, server.url(), window=0.8, stride=0.2)
        starts = []
        for answer in stream.windows():
            pause.wait(0.9)  # somebody computes
            starts.append(answer.start)
            if len(starts) == 4:
                break
    assert np.diff(starts).max() > 0.39 and stream.counts.skipped >= 3
    assert stream.counts.dropped == {}
    assert stream.counts.frames > 4 * 0.9 * FPS / 2


@pytest.mark.usefixtures("_patience")
def test_a_stream_watches_an_address(tiny_bundle: Path, support_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "Freshest", partial(Freshest, budget=LONGEST))
    model = m2df.load(tiny_bundle)
    matcher = m2df.Matcher(model, m2df.SupportBank.of(model, support_dir))
    with serving(Rtsp(Play(acted("blue"), frames=80), Play(acted("red")))) as server:
        stream = m2df.Stream(matcher, server.url(), window=0.8, stride=0.2)
        labels = []
        for event in stream:
            labels += [event.label] if event.type == "end" else []
            if len(labels) == 2:
                stream.stop()
    assert labels[:2] == ["blue", "red"] and stream.counts.events >= 2


@pytest.mark.usefixtures("_patience")
def test_a_zone_that_no_longer_fits_is_said_and_goes_on_when_it_does(
    tiny_bundle: Path, support_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(read_ahead, "Freshest", partial(Freshest, budget=LONGEST))
    monkeypatch.setattr(live, "_PAUSES", (0.01, 0.01))
    model = m2df.load(tiny_bundle)
    matcher = m2df.Matcher(model, m2df.SupportBank.of(model, support_dir))
    wide, narrow = acted("red", (128, 48)), acted("red")
    with serving(Rtsp(Play(wide, frames=25), Play(narrow, frames=25), Play(wide))) as server:
        zones = {"near": (0, 0, 64, 48), "far": (64, 0, 64, 48)}
        stream = m2df.Stream(matcher, server.url(), window=0.4, stride=0.2, zones=zones)
        seen = []
        for answer in stream.windows():
            seen.append(answer.zone)
            if seen[-1] == "far" and "far, is looked at again" in caplog.text:
                stream.stop()
    outside = f"zone far: {server.url()}: region 64,0,64,48 lies outside the 64x48 frame"
    assert caplog.text.count(outside) == 1, "once, not for every frame"
    alone = "".join("f" if zone == "far" else "n" for zone in seen)
    assert alone.startswith("nf") and "nnn" in alone, "the other zone goes on"


@pytest.mark.usefixtures("_patience")
def test_a_window_that_cannot_be_answered_is_said_and_the_next_ones_are(
    tiny_bundle: Path, support_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(read_ahead, "Freshest", partial(Freshest, budget=LONGEST))

    class Odd(ArrayPicture):
        def rgb(self) -> NDArray[np.uint8]:
            raise ClipError("door", "not enough memory to decode it")

        def grey(self, long_side: int | None = None) -> NDArray[np.uint8]:
            return grey_of(self._frame)

    class Camera(live.LiveFrames):
        @contextmanager
        def connected(self) -> Iterator[Iterator[live.Shown]]:
            frames = enumerate(scene(("red", 60 / FPS)))
            yield (live.Shown(number / FPS, (Odd if number < 20 else ArrayPicture)(frame)) for number, frame in frames)

    opened = Bundle.open(tiny_bundle)
    model = Model(opened.with_clip(opened.manifest.clip.model_copy(update={"region": "motion"})))
    stream = m2df.Stream(m2df.Matcher(model, m2df.SupportBank.of(model, support_dir)), Camera("door"), window=0.4)
    for answer in stream.windows():
        assert answer.start > 0.3
        if answer.start > 1.5:
            stream.stop()
    assert stream.counts.failed >= 3
    assert caplog.text.count("not enough memory") == 1 and "door is looked at again" in caplog.text


def test_who_reads_no_output_stops_neither_the_others_nor_the_end(tiny_bundle: Path, support_dir: Path) -> None:
    """Standard output is a pipe that is full from the first line on."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while os.write(writer, bytes(4096)):
            pass
    os.set_blocking(writer, True)
    with serving(Rtsp(Play(acted("red")))) as red, serving(Rtsp(Play(acted("blue"), frames=30))) as blue:
        queries = ["--query", red.url(), "--query", blue.url(), "--json", "--windows"]
        command = ["m2df_runtime.commands.run", "--bundle", tiny_bundle, "--support", support_dir, *WATCH, *queries]
        with subprocess.Popen(
            [sys.executable, "-m", *map(str, command)], stdout=writer, stderr=subprocess.PIPE, text=True
        ) as process:
            said = iter(process.stderr)
            lines = [next(line for line in said if line.startswith(f"{blue.url()}: restarting"))]
            lines += [next(line for line in said if line.startswith(f"{blue.url()}: running"))]
            process.send_signal(signal.SIGTERM)
            assert process.wait(LONGEST) == 0
    os.close(reader)
    os.close(writer)


def test_all_cameras_may_be_off_at_the_start(watching: Callable[..., Watching]) -> None:
    ports = [closed_port(), closed_port()]
    addresses = [f"rtsp://127.0.0.1:{port}/stream1" for port in ports]
    with watching(*(word for address in addresses for word in ("--query", address))) as run:
        for address in addresses:
            run.wait_for("err", lambda line, start=f"{address}: restarting: refused": line.startswith(start))
        with (
            serving(Rtsp(Play(acted("red")), port=ports[0])),
            serving(Rtsp(Play(acted("blue")), port=ports[1])),
        ):
            for address, label in zip(addresses, ("red", "blue"), strict=True):
                run.wait_for("out", lambda line, start=f"{address}: {label} from": line.startswith(start))
        assert run.ended(signal.SIGTERM) == 0
