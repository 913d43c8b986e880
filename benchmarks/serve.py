"""The server: clips a second with many clients beside the bulk command, live scores' age, and what it takes when idle.

    python -m benchmarks.serve

It is a process of its own with the demo actions. Clients are threads of this process, which take processor time, too.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import httpx2
import numpy as np
from websockets.sync.client import connect

from benchmarks.record import Machine, percentiles, write
from benchmarks.ruled import as_options, described, ruled
from m2df_runtime.bundle.shipped import demo_bundle, demo_queries, demo_recording, demo_support
from m2df_runtime.clips.opening import open_source
from m2df_runtime.commands.console import main_entry, progress

CLIENTS, FPS, SIZE = 8, 15, (640, 480)
WINDOW, STRIDE = 2.0, 0.5
TARGETS = {"share_of_bulk": 0.8, "age_s": 0.3, "idle_mib": 300, "idle_cpu": 0.01}  # design budget on 2 cores
_COMMAND = (sys.executable, "-c", "from m2df_runtime.commands.entry import run; run()")


@contextmanager
def served(bundle: Path, support: Path) -> Iterator[tuple[int, str]]:
    """A server's process and address."""
    options = ("--port", "0", "--uploads-per-minute", "1000000", *as_options(bundle), "--support", str(support))
    process = subprocess.Popen(
        [*_COMMAND, "serve", *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        with httpx2.Client(base_url=address, timeout=60, trust_env=False) as client:
            while client.get("/readyz").status_code != 200:
                time.sleep(0.1)
        yield process.pid, address
    finally:
        process.terminate()
        process.wait()


def family(pid: int) -> list[int]:
    """A process and its children, whichever of its threads started them."""
    children = (place.read_text().split() for place in Path(f"/proc/{pid}/task").glob("*/children"))
    return [pid, *map(int, itertools.chain.from_iterable(children))]


def taken(pid: int) -> tuple[float, float]:
    """Processor seconds and MiB (shared pages counted once) of a process and its children."""
    seconds = mib = 0.0
    for one in family(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        rollup = Path(f"/proc/{one}/smaps_rollup").read_text()
        mib += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) / 1024
    return seconds, mib


def idle(pid: int, seconds: float) -> dict[str, float]:
    """What a server takes while nobody asks."""
    before, _ = taken(pid)
    time.sleep(seconds)
    after, mib = taken(pid)
    return {"idle_cpu": round((after - before) / seconds, 4), "idle_mib": round(mib, 1)}


def asked(address: str, clips: list[Path], clients: int) -> tuple[float, list[float]]:
    """Clips a second of so many clients, and milliseconds of each answer."""
    waiting, samples = iter(clips), []
    taking = threading.Lock()

    def ask() -> None:
        with httpx2.Client(base_url=address, timeout=120, trust_env=False) as client:
            while True:
                with taking:
                    clip = next(waiting, None)
                if clip is None:
                    return
                begin = time.perf_counter()
                client.post("/v1/predict", files={"clip": clip.read_bytes()}).raise_for_status()
                samples.append(1000 * (time.perf_counter() - begin))

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(clips) / (time.perf_counter() - begin), samples


def bulk(bundle: Path, support: Path, clips: Path, out: Path) -> float:
    """Clips a second of the bulk command, its start left out."""
    options = (*as_options(bundle), "--support", str(support), "--query", str(clips), "--out", str(out), "--json")
    done = subprocess.run([*_COMMAND, *options], check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout)["per_second"])


def ages(address: str, seconds: float) -> list[float]:
    """Seconds from sending the frame that completes a window to its scores, of a camera with 15 frames a second."""
    import cv2

    recording = open_source(demo_recording())
    count = round(seconds * FPS)
    chosen = np.searchsorted(recording.times, np.arange(count) / FPS % recording.times[-1]).tolist()
    frames = {at: cv2.resize(recording.read([at])[0], SIZE) for at in sorted(set(chosen))}
    pictures = {at: cv2.imencode(".jpg", frame[:, :, ::-1])[1].tobytes() for at, frame in frames.items()}
    sent: dict[int, float] = {}
    found: list[float] = []
    socket = connect(f"ws{address.removeprefix('http')}v1/live?window={WINDOW}&stride={STRIDE}", proxy=None)
    with socket as live:
        live.send('{"type": "hello", "token": null}')
        assert json.loads(live.recv())["type"] == "ready"
        began = time.perf_counter()
        for number, at in enumerate(chosen):
            time.sleep(max(0.0, began + number / FPS - time.perf_counter()))
            sent[number] = time.perf_counter()
            live.send(np.float64(number / FPS).tobytes() + pictures[at])
            while (message := json.loads(live.recv()))["type"] != "ack":
                if message["type"] == "scores":
                    found.append(time.perf_counter() - sent[round(message["end"] * FPS)])
    return found


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--bundle", type=click.Path(path_type=Path), help="Bundle [the shipped one].")
@click.option("--clips", type=click.IntRange(2), default=400, help="Clips that are asked about.")
@click.option("--seconds", type=click.FloatRange(3), default=60.0, help="Of the camera, and of doing nothing.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file [benchmarks/results/serve.json].")
def cli(bundle: Path | None, clips: int, seconds: float, out: Path | None) -> None:
    """Measure a server with the demo actions."""
    machine, path = Machine(), bundle or demo_bundle()
    with tempfile.TemporaryDirectory(prefix="m2df-") as place, progress("parts", 5) as advance:
        support, queries = Path(place, "actions"), Path(place, "clips")
        shutil.copytree(demo_support(), support)
        queries.mkdir()
        demo = sorted(demo_queries().iterdir())
        for number, clip in zip(range(clips), itertools.cycle(demo), strict=False):
            shutil.copy(clip, queries / f"{number}{clip.suffix}")
        every = sorted(queries.iterdir())
        bulk_rate = bulk(path, support, queries, Path(place, "out.jsonl"))
        result: dict[str, object] = {"bulk_rate": bulk_rate}
        advance(1)
        with served(path, support) as (pid, address):
            asked(address, every[: 2 * CLIENTS], CLIENTS)
            result |= idle(pid, seconds)
            advance(1)
            rate, samples = asked(address, every, CLIENTS)
            result |= {"rate": round(rate, 2), "answer_ms": percentiles(samples)}
            result["share_of_bulk"] = round(rate / bulk_rate, 3)
            advance(1)
            result["alone_ms"] = percentiles(asked(address, every[: max(2, clips // 8)], 1)[1])
            advance(1)
            result["age_s"] = percentiles(ages(address, seconds))
            advance(1)
    record = {
        **result,
        "targets": TARGETS,
        "settings": {"clients": CLIENTS, "clips": clips, "fps": FPS, "size": SIZE, "window": WINDOW, "stride": STRIDE},
        "model": described(ruled(path)),
        "environment": machine.environment(),
    }
    click.echo(f"written: {write('serve', record, out)}")


if __name__ == "__main__":
    main_entry(cli)
