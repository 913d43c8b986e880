"""Cameras per core: how old frames get, what is left out and how late events are, as cameras become more.

    python -m benchmarks.cameras --cameras 1,4,8,12,16,24 --seconds 60

A process of its own plays a generated recording over HTTP as so many live cameras, each from another second of it, at
the recording's pace. Stamps are the moments at which frames are due, so that their age is known whatever held them up.
What that process does is not counted in `cores_used`.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase, RawIOBase
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import av
import click

from benchmarks.models import export, random_model
from benchmarks.record import Machine, percentiles, write
from benchmarks.ruled import described, ruled
from benchmarks.stream import BIT_RATE, COST_FPS, COST_SIZE, COST_STRIDE, COST_WINDOW, film, stages
from m2df_runtime import Matcher, Stream, SupportBank
from m2df_runtime.clips.source import Picture
from m2df_runtime.commands.console import main_entry, progress
from m2df_runtime.errors import CheckFailed
from m2df_runtime.stream.policy import BUDGET
from m2df_runtime.stream.sources.live import Shown
from m2df_runtime.stream.sources.network import NetworkFrames
from m2df_runtime.stream.sources.timed import TimedFrames
from m2df_runtime.stream.stream import Counts
from m2df_train.synthetic import split_actions
from m2df_train.synthetic.recording_files import write_support

_APART = 7.0  # seconds of the recording between the beginnings of two cameras
_SETTLED = 5.0  # seconds after the last camera's first window that do not count, at most as long as those that do
_PATIENCE = 60.0  # seconds in which all cameras must have given a window
_WRAP = 2**33 / 90_000  # seconds after which stamps of MPEG-TS begin anew
TARGET = {"cameras": 16, "age_s": BUDGET}  # on 2 cores


@dataclass
class Seen:
    """What was measured of one camera, in seconds."""

    ages: list[float] = field(default_factory=list)  # of each frame as it was looked at
    answered: list[float] = field(default_factory=list)  # from a window's end to its answer
    told: list[float] = field(default_factory=list)  # the same of windows that began an event


class _Measured(NetworkFrames):
    """A camera that notes how old its frames are when they are looked at.

    Attributes:
        ahead: Seconds of the stream, less the moments at which they were due.
    """

    def __init__(self, address: str, seen: Seen) -> None:
        super().__init__(address)
        self.seen = seen
        self.ahead = 0.0
        self._due: WeakKeyDictionary[Picture, float] = WeakKeyDictionary()

    @contextmanager
    def connected_fresh(self, tell_left_out: Callable[[int], None]) -> Iterator[Iterator[Shown]]:
        with super().connected_fresh(tell_left_out) as frames:
            yield self._noted(frames)

    def parts(self) -> Generator[TimedFrames]:
        for part in super().parts():
            yield _MeasuredPart(part, self)

    def look_at(self, seconds: float, picture: Picture) -> None:
        """Note the age of a frame."""
        if picture in self._due:
            now = time.monotonic()
            age = (now - self._due[picture] + _WRAP / 2) % _WRAP - _WRAP / 2
            self.ahead = seconds - (now - age)
            self.seen.ages.append(age)

    def _noted(self, frames: Iterator[Shown]) -> Iterator[Shown]:
        for shown in frames:
            if shown.stamp is not None:
                self._due[shown.picture] = shown.stamp
            yield shown


class _MeasuredPart(TimedFrames):
    live = True

    def __init__(self, part: TimedFrames, source: _Measured) -> None:
        self.name, self.began = part.name, part.began
        self._part, self._source = part, source

    def frames(self) -> Iterator[tuple[float, Picture]]:
        for seconds, picture in self._part.frames():
            self._source.look_at(seconds, picture)
            yield seconds, picture


def watched(matcher: Matcher, addresses: Sequence[str], seconds: float) -> dict[str, Any]:
    """Watch cameras side by side, and what that took of a time in which all of them ran.

    Raises:
        CheckFailed: One of them gave no window in a minute.
    """
    sources = [_Measured(address, Seen()) for address in addresses]
    streams = [Stream(matcher, source, window=COST_WINDOW, stride=COST_STRIDE) for source in sources]
    threads = [
        threading.Thread(target=_watch, args=(stream, source), daemon=True)
        for stream, source in zip(streams, sources, strict=True)
    ]
    try:
        for thread in threads:
            thread.start()
        _wait_for(lambda: all(source.seen.answered for source in sources))
        time.sleep(min(_SETTLED, seconds))
        before = [_copied(stream.counts) for stream in streams]
        for source in sources:
            source.seen = Seen()
        begun, cpu = time.monotonic(), time.process_time()
        time.sleep(seconds)
        wall, cpu = time.monotonic() - begun, time.process_time() - cpu
        after = [_copied(stream.counts) for stream in streams]
        seen = [source.seen for source in sources]
    finally:
        for stream in streams:
            stream.stop()
        for thread in threads:
            thread.join()
    return _row(seen, before, after, wall, cpu)


def _row(
    seen: Sequence[Seen], before: Sequence[Counts], after: Sequence[Counts], wall: float, cpu: float
) -> dict[str, Any]:
    def passed(name: str) -> int:
        return sum(getattr(now, name) - getattr(then, name) for then, now in zip(before, after, strict=True))

    dropped = {
        cause: sum(
            now.dropped.get(cause, 0) - then.dropped.get(cause, 0) for then, now in zip(before, after, strict=True)
        )
        for cause in sorted({cause for now in after for cause in now.dropped})
    }
    return {
        "cameras": len(seen),
        "seconds": round(wall, 2),
        "cores_used": round(cpu / wall, 3),
        "frames": passed("frames"),
        "frames_expected": round(len(seen) * wall * COST_FPS),
        "dropped": {cause: count for cause, count in dropped.items() if count},
        "windows": passed("windows"),
        "windows_expected": round(len(seen) * wall / COST_STRIDE),
        "windows_skipped": passed("skipped"),
        "windows_still": passed("still"),
        "events": passed("events"),
        "age_s": _percentiles([age for one in seen for age in one.ages]),
        "window_to_answer_s": _percentiles([delay for one in seen for delay in one.answered]),
        "window_to_event_s": _percentiles([delay for one in seen for delay in one.told]),
    }


def _percentiles(samples: Sequence[float]) -> dict[str, float | bool] | None:
    return percentiles(samples) if samples else None


def _copied(counts: Counts) -> Counts:
    return Counts(**{**vars(counts), "dropped": dict(counts.dropped)})


def _watch(stream: Stream, source: _Measured) -> None:
    with closing(stream.steps()) as steps:
        for step in steps:
            if step.answer is None:
                continue
            delay = time.monotonic() - (step.answer.end - source.ahead)
            source.seen.answered.append(delay)
            source.seen.told += [delay for event in step.events if event.type == "new"]


def _wait_for(done: Callable[[], bool]) -> None:
    until = time.monotonic() + _PATIENCE
    while not done():
        if time.monotonic() > until:
            raise CheckFailed(f"not all cameras gave a window in {_PATIENCE:g} s", "watch fewer of them")
        time.sleep(0.1)


@contextmanager
def playing(recording: Path, count: int) -> Iterator[list[str]]:
    """Addresses of cameras that play a recording for ever."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(recording, there), daemon=True)
    process.start()
    there.close()  # or a process that dies is waited for
    try:
        port = here.recv()
        yield [f"http://127.0.0.1:{port}/{number}" for number in range(count)]
    finally:
        process.kill()
        process.join()


def _serve(recording: Path, port: Connection) -> None:
    class Session(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            """Not on the terminal."""

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "video/mp2t")
            self.end_headers()
            with suppress(OSError, av.error.FFmpegError):  # who watches leaves
                _play(recording, _APART * int(self.path.strip("/")), self.wfile)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Session)
    server.daemon_threads = True
    port.send(server.server_address[1])
    server.serve_forever()


class _Writer(RawIOBase):
    """What the format writes, sent on at once."""

    def __init__(self, out: BufferedIOBase) -> None:
        self._out = out

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:  # noqa: ANN401 - any buffer
        self._out.write(data)
        return len(data)


def _play(recording: Path, start: float, out: BufferedIOBase) -> None:
    """Send a recording again and again, from a keyframe near a second of it on, stamped with when it is due."""
    with av.open(str(recording)) as source:
        stream = source.streams.video[0]
        base = stream.time_base
        assert base is not None and source.duration is not None
        packets = [packet for packet in source.demux(stream) if packet.size]
        length = round(source.duration / 1e6 / base)
        start = start % (source.duration / 1e6)
        keys = [number for number, packet in enumerate(packets) if packet.is_keyframe]
        number = min(keys, key=lambda key: abs(float((packets[key].dts or 0) * base) - start))
        options = {"flush_packets": "1", "mpegts_copyts": "1"}
        with av.open(_Writer(out), "w", format="mpegts", options=options) as sent:
            target = sent.add_stream_from_template(stream)
            ahead = round(time.monotonic() / base) - (packets[number].dts or 0)  # of the recording's stamps
            while True:
                packet = packets[number]
                copy = av.Packet(bytes(packet))
                copy.stream, copy.time_base, copy.is_keyframe = target, base, packet.is_keyframe
                due = (packet.dts or 0) + ahead
                copy.dts, copy.pts = due, (packet.pts or 0) + ahead
                time.sleep(max(0.0, due * float(base) - time.monotonic()))
                sent.mux(copy)
                number = (number + 1) % len(packets)
                ahead += length * (number == 0)


def _numbers(ctx: click.Context, param: click.Parameter, value: str) -> list[int]:
    try:
        numbers = [int(part) for part in value.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise click.BadParameter(f"{value!r} are not numbers of cameras such as 1,4,16", ctx, param)
    return numbers


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--bundle", "path", type=click.Path(path_type=Path), help="Bundle [newest, else the shipped one].")
@click.option("--model", "tower", help="In its place an open_clip model with random weights and the M2DF head.")
@click.option("--cameras", callback=_numbers, default="1,4,8,12,16,24", help="How many at once, one run for each.")
@click.option("--seconds", type=click.FloatRange(1), default=60.0, help="Of each run, after all cameras run.")
@click.option("--length", type=click.FloatRange(10), default=120.0, help="Seconds of the recording that they play.")
@click.option("--keyframes", type=click.FloatRange(0.1), default=2.0, help="Seconds from one keyframe to the next.")
@click.option("--threads", type=click.IntRange(1), default=1, help="Threads per operator.")
@click.option("--actions", type=click.IntRange(4), help="At most so many. [default: all]")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file [benchmarks/results/cameras.json].")
def cli(
    path: Path | None,
    tower: str | None,
    cameras: list[int],
    seconds: float,
    length: float,
    keyframes: float,
    threads: int,
    actions: int | None,
    out: Path | None,
) -> None:
    """Measure live cameras of 640x480 at 15 frames a second, windows of 2 s every 0.5 s."""
    machine = Machine()
    chosen = split_actions("test")[:actions]
    taught = chosen[::2]
    with tempfile.TemporaryDirectory() as folder:
        if tower:
            path = Path(folder) / f"{tower} with random weights"
            export(random_model(tower), path, ("fp32",))
        model = ruled(path, threads)
        about = described(model)
        support, recording = Path(folder) / "support", Path(folder) / "recording.mp4"
        write_support(support, taught, 1)
        film(recording, chosen, length, shaking=False, keyframes=keyframes)
        matcher = Matcher(model, SupportBank.of(model, support))
        spent, windows, still = stages(matcher, recording)
        rows = []
        with progress("cameras", len(cameras)) as advance:
            for count in cameras:
                with playing(recording, count) as addresses:
                    rows.append(watched(matcher, addresses, seconds))
                advance(1)
    result = {
        "environment": machine.environment(),
        "model": about,
        "settings": {
            "size": [*COST_SIZE],
            "fps": COST_FPS,
            "window": COST_WINDOW,
            "stride": COST_STRIDE,
            "bit_rate": BIT_RATE,
            "keyframes_s": keyframes,
            "threads": threads,
            "actions": len(taught),
        },
        "target": TARGET,
        "alone": {
            "windows": windows,
            "still": still,
            "stage_cores_per_camera": {name: round(value / length, 5) for name, value in spent.items()},
        },
        "cameras": rows,
    }
    print(write("cameras", result, out))


if __name__ == "__main__":
    main_entry(cli)
