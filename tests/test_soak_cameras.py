"""An hour of cameras that fail in every way, in some minutes: memory, handles and threads stay as they are.

Clocks run thirty times as fast, and so do the cameras: real servers, real video, real faults.
"""

from __future__ import annotations

import logging
import os
import statistics
import threading
import time
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import pytest
from live_servers import Fault, Play, Rtsp, closed_port, film, serving, silent
from test_stream import scene

import m2df_runtime as m2df
from m2df_runtime.stream import read_ahead
from m2df_runtime.stream.policy import Freshest
from m2df_runtime.stream.sources import live
from m2df_runtime.stream.sources.network import NetworkFrames

pytestmark = pytest.mark.soak

FASTER = 30
FPS = 15
PLAYED = 40.0  # seconds between two faults
MET = 90  # faults of each camera, between which an hour is played
FAULTS: tuple[Fault, ...] = ("close", "reset", "half", "stall")
GROWTH = 16 << 20  # bytes; pictures of one window of each camera are 2 MiB, allocators keep some


class FastClock:
    """Stands where the module `time` does."""

    def __init__(self) -> None:
        self._began = time.monotonic(), time.time()

    def monotonic(self) -> float:
        return self._began[0] + FASTER * (time.monotonic() - self._began[0])

    def time(self) -> float:
        return self._began[1] + FASTER * (time.monotonic() - self._began[0])


def used() -> tuple[int, int, int]:
    """Bytes in memory, open handles and threads of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd")), threading.active_count()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_an_hour_of_faults_leaves_memory_and_handles_as_they_are(
    tiny_bundle: Path, support_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest keeps records, and with their errors the windows that these are of.
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)
    clock = FastClock()
    for module in (live, read_ahead):
        monkeypatch.setattr(module, "time", clock)
        monkeypatch.setattr(module, "Freshest", partial(Freshest, budget=0.5 * FASTER))  # half a second of ours
    monkeypatch.setattr(live, "_PAUSES", (0.1, 0.5))
    model = m2df.load(tiny_bundle, threads=1)
    matcher = m2df.Matcher(model, m2df.SupportBank.of(model, support_dir))
    acted = [scene(("red", 2), (None, 2), size=size) for size in ((64, 48), (96, 64))]
    kinds = [(film(acted[0]), "h264"), (film(acted[1]), "h264"), (film(acted[0], "hevc"), "hevc")]
    plays = [
        Play(packets, codec, round(PLAYED * FPS), fault, FPS * FASTER, lambda number: 7 + number / FPS)
        for (packets, codec), fault in islice(zip(cycle(kinds), cycle(FAULTS), strict=False), 200)
    ]
    told: dict[str, int] = {}

    def watch(stream: m2df.Stream) -> None:
        for event in stream:
            told[event.camera] = told.get(event.camera, 0) + (event.type == "end")

    before = threading.active_count()
    with serving(Rtsp(*plays)) as first, serving(Rtsp(*plays[1:])) as second, silent() as port:
        names = {
            "first": first.url(),
            "second": second.url(),
            "off": f"rtsp://127.0.0.1:{closed_port()}/",
            "silent": f"rtsp://127.0.0.1:{port}/",
        }
        streams = [
            m2df.Stream(
                matcher,
                NetworkFrames(url, timeout=1, name=name),
                window=2.0,
                stride=0.5,
                zones={"all": (0, 0, 1, 1), "outside of some": (64, 0, 32, 64)},
            )
            for name, url in names.items()
        ]
        threads = [threading.Thread(target=watch, args=(stream,)) for stream in streams]
        for thread in threads:
            thread.start()
        samples, at_half = [], {}
        try:
            while (met := min(server.played for server in (first, second))) < MET:
                threading.Event().wait(20 / FASTER)
                samples.append(used())
                if met < MET / 2:
                    at_half = dict(told)
        finally:
            for stream in streams:
                stream.stop()
            for thread in threads:
                thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
    part = len(samples) // 6
    for name, spare, values in zip(
        ("memory", "handles", "threads"), (GROWTH, 4, 4), zip(*samples, strict=True), strict=True
    ):
        early, late = (statistics.median(some) for some in (values[part : 2 * part], values[-part:]))
        assert late - early <= spare, f"{name}: {early} after a quarter, {late} at the end"
    assert threading.active_count() <= before + 2
    for name in ("first", "second"):
        assert told[name] > at_half.get(name, 0), "events are told to the end"
