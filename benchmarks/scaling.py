"""Cost against size: classes, shots, frames and clips at once, for the graphs they concern on every backend here.

    python -m benchmarks.scaling

The graphs are those of an open_clip model with random weights and an untrained head; the head's inputs are random
features of the right shape. Against many classes the query graph runs as the runtime runs it, with what depends on the
classes alone worked out before. Backends take turns in processes of their own.
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
from m2df_runtime.backends import Tensors
from m2df_runtime.backends.model import MANY_CLASSES
from m2df_runtime.bundle.manifest import GraphName
from m2df_runtime.commands.console import main_entry, progress
from m2df_runtime.cpus import MAX_THREADS, thread_count

if TYPE_CHECKING:
    from m2df_train.model.heads import HeadName

CLASSES = (5, 10, 50, 100, 500, 1000, 10_000)
SMALL_DIM = 128  # classes are counted at this D too
SHOTS = (1, 2, 3, 5, 10)
CLIP_FRAMES = (4, 8, 16)
CLIPS = (1, 2, 4, 8)
WAY = 5
TARGETS_MS = {1000: 10.0, 10_000: 50.0}  # design budgets: one query against so many classes on a CPU
CLASS_INPUTS = ("prompts", "prototypes")
AWAKE = 500.0  # ms; a faster run is preceded by one that does not count
BackendName = Literal["cpu", "openvino", "cuda"]
BACKENDS: tuple[BackendName, ...] = ("cpu", "openvino", "cuda")


@dataclass(frozen=True)
class Point:
    """One run of one graph: `frames` T, `clips` B (queries, or shots of a class), `classes` C, `dim` D if not None."""

    graph: GraphName
    frames: int = FRAMES
    clips: int = 1
    classes: int = WAY
    dim: int | None = None


# What grows along each axis, by graph.
AXES: dict[str, dict[GraphName, dict[int, Point]]] = {
    "classes": {"query": {size: Point("query", classes=size) for size in CLASSES}},
    f"classes, D = {SMALL_DIM}": {"query": {size: Point("query", classes=size, dim=SMALL_DIM) for size in CLASSES}},
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
        dim = point.dim or self.dim
        features = normal(point.clips, point.frames, dim)
        if point.graph == "support":
            return {"features": features, "prompt": normal(1, dim)}
        prototypes = normal(point.classes, self.views, point.frames, dim)
        return {"features": features, "prompts": normal(point.classes, dim), "prototypes": prototypes}


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
        graphs: dict[tuple[Path, bool], Any] = {}
        derived: dict[Point, Tensors] = {}

        def answer(point: Point) -> float:
            path = graph_file(self.folder, point, self.shapes.dim, file_name(point.graph, self.precision))
            many, feed = point.graph == "query" and point.classes >= MANY_CLASSES, self.shapes.inputs(point)
            if (path, many) not in graphs:
                graphs[path, many] = _split(engine, path) if many else engine.load(path, path.name)
            graph = graphs[path, many]
            if point not in derived:
                derived[point] = graph.derive({name: feed[name] for name in CLASS_INPUTS}) if many else {}
                graph.run(feed, *[derived[point]] * many)
            spent = _milliseconds(lambda: graph.run(feed, *[derived[point]] * many))
            return spent if spent > AWAKE else _milliseconds(lambda: graph.run(feed, *[derived[point]] * many))

        return answer


def _split(engine: Any, path: Path) -> Any:  # noqa: ANN401
    """The query graph as the runtime runs it against many classes."""
    from m2df_runtime.backends.split import SplitGraph
    from m2df_runtime.bundle.onnx_split import split_onnx

    split = split_onnx(path.read_bytes(), CLASS_INPUTS)
    assert split is not None
    return SplitGraph(split, lambda part: engine.load(part, path.name))


def _milliseconds(run: Callable[[], object]) -> float:
    start = perf_counter()
    run()
    return 1000 * (perf_counter() - start)


def graph_file(folder: Path, point: Point, dim: int, name: str) -> Path:
    """The file of a graph; the head's are made for a number of frames and of features, `dim` where a point has none."""
    return folder / name if point.graph == "visual" else folder / f"{point.frames}x{point.dim or dim}" / name


def export_graphs(model: str, head: HeadName, folder: Path) -> Shapes:
    """Write the image tower, in fp32 and int8, and the head's graphs for every number of frames."""
    from m2df_export.graphs.onnx import export_onnx
    from m2df_export.graphs.specs import graph_specs, head_specs
    from m2df_export.precision.convert import write_precision
    from m2df_train.model.heads import build_head

    checkpoint = random_model(model, head)
    backbone, clip = checkpoint.backbone, checkpoint.clip
    sizes = dict.fromkeys([*((frames, backbone.dim) for frames in CLIP_FRAMES), (FRAMES, SMALL_DIM)])
    with progress("exporting graphs", 2 * len(sizes) + 2) as advance:
        for frames, dim in sizes:
            specs = head_specs(build_head(head, dim, frames).eval())
            (folder / f"{frames}x{dim}").mkdir()
            for name in ("support", "query"):
                export_onnx(specs[name], folder / f"{frames}x{dim}" / f"{name}.onnx", metadata={})
                advance(1)
        export_onnx(graph_specs(backbone, checkpoint.head, clip)["visual"], folder / "visual.onnx", metadata={})
        advance(1)
        write_precision(folder, "visual", "int8")
        advance(1)
    return Shapes(backbone.dim, clip.size, checkpoint.head.views)


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
    budgets = [
        {
            "classes": classes,
            "dim": dim or shapes.dim,
            "target_ms": target,
            "p50_ms": {name: round(float(np.median(at[point])), 3) for name, at in samples.items() if point in at},
        }
        for classes, target in TARGETS_MS.items()
        for dim in (SMALL_DIM, None)
        for point in [Point("query", classes=classes, dim=dim)]
    ]
    record = {
        "series": found,
        "budgets": budgets,
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
