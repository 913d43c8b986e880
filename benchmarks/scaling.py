"""Cost against size: classes, shots, frames and clips at once, for the graphs they concern on every backend here.

    python -m benchmarks.scaling

The graphs are those of an open_clip model with random weights and an untrained head; the head's inputs are random
features of the right shape. Backends take turns in processes of their own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import click
import numpy as np

from benchmarks.models import FRAMES, VIT, random_model
from benchmarks.record import Machine, percentiles, write
from benchmarks.workers import JobFailed, Worker, settle, started, turns
from m2df_runtime.bundle.manifest import GraphName
from m2df_runtime.commands.console import main_entry, progress
from m2df_runtime.cpus import MAX_THREADS, thread_count

if TYPE_CHECKING:
    from m2df_train.model.heads import HeadName

CLASSES = (5, 10, 50, 100, 500, 1000)
SHOTS = (1, 2, 3, 5, 10)
CLIP_FRAMES = (4, 8, 16)
CLIPS = (1, 2, 4, 8)
WAY = 5
TARGET_MS = 20.0  # design budget: one query against 1,000 classes on a CPU
AWAKE = 500.0  # ms; a faster run is preceded by one that does not count
BackendName = Literal["cpu", "openvino", "cuda"]
BACKENDS: tuple[BackendName, ...] = ("cpu", "openvino", "cuda")


@dataclass(frozen=True)
class Point:
    """One run of one graph: `frames` T, `clips` B (queries, or shots of a class), `classes` C."""

    graph: GraphName
    frames: int = FRAMES
    clips: int = 1
    classes: int = WAY


# What grows along each axis, by graph.
AXES: dict[str, dict[GraphName, dict[int, Point]]] = {
    "classes": {"query": {size: Point("query", classes=size) for size in CLASSES}},
    "shots": {"support": {size: Point("support", clips=size) for size in SHOTS}},
    "frames": {
        "visual": {size: Point("visual", frames=size) for size in CLIP_FRAMES},
        "support": {size: Point("support", frames=size) for size in CLIP_FRAMES},
        "query": {size: Point("query", frames=size) for size in CLIP_FRAMES},
    },
    "batch": {
        "visual": {size: Point("visual", clips=size) for size in CLIPS},
        "query": {size: Point("query", clips=size) for size in CLIPS},
    },
}


@dataclass(frozen=True)
class Shapes:
    """Sizes of the model: D, S and V."""

    dim: int
    size: int
    views: int

    def inputs(self, point: Point) -> dict[str, Any]:
        """Random inputs of a graph."""
        rng = np.random.default_rng(0)

        def normal(*shape: int) -> Any:  # noqa: ANN401
            return rng.standard_normal(shape, dtype=np.float32)

        if point.graph == "visual":
            shape = (point.clips * point.frames, self.size, self.size, 3)
            return {"frames": rng.integers(0, 256, shape).astype(np.uint8)}
        features = normal(point.clips, point.frames, self.dim)
        if point.graph == "support":
            return {"features": features, "prompt": normal(1, self.dim)}
        prototypes = normal(point.classes, self.views, point.frames, self.dim)
        return {"features": features, "prompts": normal(point.classes, self.dim), "prototypes": prototypes}


@dataclass(frozen=True)
class Engine:
    """The job of one backend: answers a Point with milliseconds."""

    backend: BackendName
    precision: Literal["fp32", "int8"]
    folder: Path
    shapes: Shapes
    threads: int

    @property
    def name(self) -> str:
        """What results call it."""
        return f"{self.backend} {self.precision}"

    def runs(self, point: Point) -> bool:
        """Whether this point is not another engine's: quantisation leaves the head's graphs as they are."""
        return self.precision == "fp32" or point.graph == "visual"

    def start(self) -> Callable[[Point], float]:
        """Open the backend; graphs load when they are first asked for."""
        from m2df_export.precision.files import file_name
        from m2df_runtime.backends.onnxruntime import OnnxRuntimeBackend
        from m2df_runtime.backends.openvino import OpenVINOBackend

        if self.backend == "openvino":
            engine: Any = OpenVINOBackend(self.threads)
        else:
            engine = OnnxRuntimeBackend(self.backend, self.threads)
        graphs: dict[Path, Any] = {}

        def answer(point: Point) -> float:
            path = graph_file(self.folder, point, file_name(point.graph, self.precision))
            if path not in graphs:
                graphs[path] = engine.load(path, path.name)
                graphs[path].run(self.shapes.inputs(point))
            feed = self.shapes.inputs(point)
            spent = _milliseconds(lambda: graphs[path].run(feed))
            return spent if spent > AWAKE else _milliseconds(lambda: graphs[path].run(feed))

        return answer


def _milliseconds(run: Callable[[], object]) -> float:
    start = perf_counter()
    run()
    return 1000 * (perf_counter() - start)


def graph_file(folder: Path, point: Point, name: str) -> Path:
    """The file of a graph; the head's are made for a number of frames."""
    return folder / name if point.graph == "visual" else folder / str(point.frames) / name


def export_graphs(model: str, head: HeadName, folder: Path) -> Shapes:
    """Write the image tower, in fp32 and int8, and the head's graphs for every number of frames."""
    from m2df_export.graphs.onnx import export_onnx
    from m2df_export.graphs.specs import graph_specs
    from m2df_export.precision.convert import write_precision
    from m2df_train.model.heads import build_head

    checkpoint = random_model(model, head)
    backbone, clip = checkpoint.backbone, checkpoint.clip
    with progress("exporting graphs", 2 * len(CLIP_FRAMES) + 2) as advance:
        for frames in CLIP_FRAMES:
            made = build_head(head, backbone.dim, frames).eval()
            specs = graph_specs(backbone, made, clip.model_copy(update={"frames": frames}))
            (folder / str(frames)).mkdir()
            for name in ("support", "query"):
                export_onnx(specs[name], folder / str(frames) / f"{name}.onnx", metadata={})
                advance(1)
        export_onnx(specs["visual"], folder / "visual.onnx", metadata={})
        advance(1)
        write_precision(folder, "visual", "int8")
        advance(1)
    return Shapes(backbone.dim, clip.size, made.views)


def measure(
    engines: Sequence[Engine], points: Sequence[Point], rounds: int, slow_rounds: int
) -> tuple[dict[str, dict[Point, list[float]]], dict[str, str]]:
    """Milliseconds by engine and point, and what was left out; the image tower has `slow_rounds` rounds."""
    by_name = {engine.name: engine for engine in engines}
    samples: dict[str, dict[Point, list[float]]] = {engine.name: {} for engine in engines}
    with started(engines) as (workers, missing), progress("rounds", rounds + 1) as advance:
        order = turns(workers)
        for number in range(-1, rounds):
            for point in points:
                if point.graph == "visual" and number >= slow_rounds:
                    continue
                for worker in next(order):
                    if worker.name not in missing and by_name[worker.name].runs(point):
                        _take(worker, point, samples[worker.name], missing, number >= 0)
            advance(1)
    return {name: found for name, found in samples.items() if name not in missing}, missing


def _take(
    worker: Worker, point: Point, samples: dict[Point, list[float]], missing: dict[str, str], counts: bool
) -> None:
    if not counts and point.graph == "visual" and (point.clips, point.frames) != (1, FRAMES):
        return  # one clip is warm-up enough for the image tower
    try:
        spent: float = worker.ask(point)
    except JobFailed as error:
        missing[worker.name] = str(error)
        click.echo(f"left out: {worker.name}: {error}", err=True)
        return
    if counts:
        samples.setdefault(point, []).append(spent)
    settle()


def series(samples: dict[str, dict[Point, list[float]]]) -> list[dict[str, object]]:
    """One line per axis, graph and engine: sizes, and the percentiles at each."""
    return [
        {
            "axis": axis,
            "graph": graph,
            "engine": engine,
            "sizes": list(points),
            "ms": [percentiles(found[point]) for point in points.values()],
        }
        for axis, graphs in AXES.items()
        for graph, points in graphs.items()
        for engine, found in samples.items()
        if all(point in found for point in points.values())
    ]


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--model", default=VIT, help="open_clip model whose image tower is timed; features have its size.")
@click.option("--head", type=click.Choice(["m2df", "clip-fsar", "training-free"]), default="m2df")
@click.option("--threads", type=click.IntRange(1, MAX_THREADS), help="Threads of each engine [the cores it may use].")
@click.option("--rounds", type=click.IntRange(2), default=30)
@click.option("--slow-rounds", type=click.IntRange(1), default=2, help="Rounds of the image tower.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file [benchmarks/results/scaling.json].")
def cli(model: str, head: HeadName, threads: int | None, rounds: int, slow_rounds: int, out: Path | None) -> None:
    """Time the graphs at growing sizes."""
    machine = Machine()
    named = (sizes.values() for graphs in AXES.values() for sizes in graphs.values())
    points = list(dict.fromkeys(point for sizes in named for point in sizes))
    with tempfile.TemporaryDirectory() as name:
        folder, count = Path(name), thread_count(threads)
        shapes = export_graphs(model, head, folder)
        engines = [Engine(backend, "fp32", folder, shapes, count) for backend in BACKENDS]
        engines.append(Engine("cpu", "int8", folder, shapes, count))
        samples, missing = measure(engines, points, rounds, slow_rounds)
    found = series(samples)
    largest = Point("query", classes=CLASSES[-1])
    budgets = {engine: round(float(np.median(at[largest])), 3) for engine, at in samples.items() if largest in at}
    record = {
        "series": found,
        "budget": {"classes": CLASSES[-1], "target_ms": TARGET_MS, "p50_ms": budgets},
        "left_out": missing,
        "settings": {
            "model": model, "weights": "random", "head": head, "dim": shapes.dim, "views": shapes.views,
            "size": shapes.size, "frames": FRAMES, "way": WAY, "threads": count, "rounds": rounds,
            "slow_rounds": slow_rounds,
        },
        "environment": machine.environment(),
    }  # fmt: skip
    for line in found:
        values = ", ".join(f"{size}: {ms['p50']:.2f}" for size, ms in zip(line["sizes"], line["ms"], strict=True))  # type: ignore[call-overload]
        click.echo(f"{line['graph']} by {line['axis']}, {line['engine']}: {values} ms")
    click.echo(f"written: {write('scaling', record, out)}")


if __name__ == "__main__":
    main_entry(cli)
