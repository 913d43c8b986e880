"""Thousands of clips: clips per second as a whole and stage by stage, beside loops as one would write them.

    python -m benchmarks.bulk

Two kinds: 15 s of 1080p in H.264, which NVIDIA states 28.57 per second for (Cosmos-Embed1 on an H100), and 2 s of
320x240. All files of a kind are links to a few that are made for the purpose. Each stage is measured alone, with all
processors; stages that share these cannot add up to the slowest of them, so what they can reach together stands beside.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from time import perf_counter
from typing import Any

import av
import click
import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.record import Machine, write
from benchmarks.ruled import described, ruled
from m2df_runtime import Matcher, SupportBank
from m2df_runtime.bulk.local import LocalEngine, Readers, Reading
from m2df_runtime.bulk.results import Basis, BulkClip, opened
from m2df_runtime.bundle.shipped import demo_support
from m2df_runtime.clips.sampling import sample_indices
from m2df_runtime.clips.source import ArraySource
from m2df_runtime.commands.console import main_entry, progress
from m2df_runtime.cpus import available_cpus
from m2df_runtime.match.reading import ReadClip, read_clip
from m2df_runtime.pixels.load import load_clip

BUDGET = 0.85  # of the rate of the slowest stage alone
PUBLIC = {"source": "NVIDIA Cosmos-Embed1 on an H100, 15 s of 1080p", "per_second": 28.57}
FPS = 25
MASTERS = 3  # different files of a kind; a decoder keeps nothing from one to the next


@dataclass(frozen=True)
class Kind:
    """Clips of one length and size."""

    name: str
    seconds: float
    size: tuple[int, int]  # width, height


KINDS = (Kind("15 s, 1080p", 15.0, (1920, 1080)), Kind("2 s, 320x240", 2.0, (320, 240)))


def made(kind: Kind, folder: Path, count: int) -> list[Path]:
    """Files of one kind: a camera's noise, a room that stands still and a person-sized square that walks through it."""
    folder.mkdir()
    paths = []
    for number in range(count):
        path = folder / f"{number}.mp4"
        if number < MASTERS:
            _write(path, kind, number)
        else:
            os.link(folder / f"{number % MASTERS}.mp4", path)
        paths.append(path)
    return paths


def _write(path: Path, kind: Kind, seed: int) -> None:
    rng = np.random.default_rng(seed)
    width, height = kind.size
    room = cv2.resize(rng.integers(40, 200, (9, 16, 3)).astype(np.uint8), kind.size, interpolation=cv2.INTER_CUBIC)
    noise = [rng.integers(0, 12, (height, width, 3)).astype(np.uint8) for _ in range(4)]
    side, frames = height // 4, round(kind.seconds * FPS)
    body = cv2.resize(rng.integers(0, 255, (8, 8, 3)).astype(np.uint8), (side, side), interpolation=cv2.INTER_LINEAR)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            picture = cv2.add(room, noise[number % len(noise)]).astype(np.uint8, copy=False)
            left = (width - side) * number // max(frames - 1, 1)
            top = round((height - side) * (0.5 + 0.3 * np.sin(number / 5)))
            picture[top : top + side, left : left + side] = body
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode())


def in_turn(paths: Sequence[Path], matcher: Matcher) -> None:
    """A loop over clips with the same answers."""
    for path in paths:
        matcher.predict(path)


def opencv(paths: Sequence[Path], matcher: Matcher) -> None:
    """A loop with other answers: OpenCV decodes every frame, T of them are resized as a whole, encoded and matched."""
    spec = matcher.model.bundle.manifest.clip
    whole = spec.model_copy(update={"region": "full", "channels": "rgb"})
    for path in paths:
        video = cv2.VideoCapture(str(path))
        wanted = set(sample_indices("uniform", int(video.get(cv2.CAP_PROP_FRAME_COUNT)), spec.frames).tolist())
        kept: list[NDArray[np.uint8]] = []
        number = 0
        while True:
            there, frame = video.read()
            if not there:
                break
            if number in wanted:
                kept.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False))
            number += 1
        video.release()
        pixels = load_clip(ArraySource(np.stack(kept)), whole)
        matcher.answer([ReadClip(str(path), pixels, 0.0, 0.0, None, 0.0)])


def timed(work: Callable[[], object], clips: int) -> dict[str, float]:
    """Clips per second, and processor seconds per clip; processes that were started count once they have ended."""
    before, begin = _spent(), perf_counter()
    work()
    seconds = perf_counter() - begin
    return {"per_second": round(clips / seconds, 3), "cpu_per_clip": round((_spent() - before) / clips, 4)}


def _spent() -> float:
    return sum(usage.ru_utime + usage.ru_stime for usage in map(getrusage, (RUSAGE_SELF, RUSAGE_CHILDREN)))


def measured(paths: Sequence[Path], matcher: Matcher, folder: Path, looped: int) -> dict[str, Any]:
    """Rates of one kind of clips."""
    names, spec, processes = [*map(str, paths)], matcher.model.bundle.manifest.clip, available_cpus()
    read = [read_clip(name, spec) for name in names[:MASTERS]]
    matcher.answer(read[:1])  # loads the graphs

    def reading() -> None:
        with closing(Readers(Reading(spec), processes)) as readers:
            assert sum(len(batch) for batch in readers.read(names)) == len(names)

    def inference() -> None:
        for number in range(len(names)):
            matcher.answer([read[number % len(read)]])

    def bulk() -> None:
        clips = [BulkClip.found(name) for name in names]
        out = folder / "results.jsonl"
        with opened(out, Basis.of(matcher.model.bundle, matcher.bank, ""), clips, restart=True) as results:
            with closing(LocalEngine(matcher, roi=None, topk=5, processes=processes)) as engine:
                for number, fields in engine.answers(names):
                    results.append(clips[number], fields)
            assert results.counts["failed"] == 0

    found: dict[str, Any] = {
        "reading": timed(reading, len(names)),
        "inference": timed(inference, len(names)),
        "bulk": timed(bulk, len(names)),
        "in_turn": timed(lambda: in_turn(paths[:looped], matcher), len(paths[:looped])),
        "opencv": timed(lambda: opencv(paths[:looped], matcher), len(paths[:looped])),
    }
    rates = {name: stage["per_second"] for name, stage in found.items()}
    shared = 1 / (1 / rates["reading"] + 1 / rates["inference"])
    return {
        **found,
        "of_slowest": round(rates["bulk"] / min(rates["reading"], rates["inference"]), 3),
        "of_shared": round(rates["bulk"] / shared, 3),
        "beside_in_turn": round(rates["bulk"] / rates["in_turn"], 3),
        "beside_opencv": round(rates["bulk"] / rates["opencv"], 3),
    }


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--bundle", type=click.Path(path_type=Path), help="Bundle [the newest, else the shipped one].")
@click.option("--support", type=click.Path(path_type=Path), help="Support folder [the one shipped].")
@click.option("--clips", type=click.IntRange(MASTERS), default=120, help="Of the long kind; ten times as many short.")
@click.option("--seconds", type=click.FloatRange(0.2), help="Length of the long kind [15].")
@click.option("--looped", type=click.IntRange(1), default=12, help="Long clips of the loops; as above.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file [benchmarks/results/bulk.json].")
def cli(
    bundle: Path | None, support: Path | None, clips: int, seconds: float | None, looped: int, out: Path | None
) -> None:
    """Time bulk runs of long and short clips, and their stages alone."""
    machine, model = Machine(), ruled(bundle)
    kinds = [kind if seconds is None else Kind(kind.name, min(kind.seconds, seconds), kind.size) for kind in KINDS]
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="m2df-") as place:
        matcher = Matcher(model, SupportBank.of(model, support or demo_support(), in_cache=True))
        for number, (kind, times) in enumerate(zip(kinds, (1, 10), strict=True)):
            with progress(f"{kind.name}", None):
                paths = made(kind, Path(place, str(number)), clips * times)
                result[kind.name] = measured(paths, matcher, Path(place), looped * times)
            click.echo(f"{kind.name}: {result[kind.name]}")
    record = {
        "kinds": result,
        "budget": BUDGET,
        "public": PUBLIC,
        "settings": {"clips": clips, "seconds": kinds[0].seconds, "classes": len(matcher.bank.labels)},
        "model": described(model),
        "environment": machine.environment(),
    }
    click.echo(f"written: {write('bulk', record, out)}")


if __name__ == "__main__":
    main_entry(cli)
