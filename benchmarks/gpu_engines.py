"""TensorRT's part of the GPU check: build, compare with the reference, time.

    python -m benchmarks.gpu_engines probe
    python -m benchmarks.gpu_engines run WORK

Runs in any interpreter that has TensorRT, numpy and pycuda or cuda-bindings, such as a packed runtime with
TensorRT 8.5 and its old numpy: it needs nothing else. `gpu_check.sh` calls it.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from m2df_export.tensorrt.build import DEFAULT_RANGES
from m2df_export.tensorrt.network import Build, build_plan, cublas_works
from m2df_runtime.backends.tensorrt.backend import TensorRTBackend, open_tensorrt
from m2df_runtime.backends.tensorrt.graph import TensorRTGraph
from m2df_runtime.errors import M2dfError
from m2df_runtime.parity import drift, worst

CLIPS = (1, 1, 64)
ROUNDS, WARMUP = 300, 50
BATCH_ROUNDS = 20
COMPARED_RUNS = 4  # enough for a CUDA graph to be recorded and replayed


@dataclass(frozen=True)
class TensorFact:
    """One input or output of the manifest."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphFact:
    """One graph of the manifest."""

    inputs: tuple[TensorFact, ...]
    outputs: tuple[TensorFact, ...]


def graph_fact(data: dict[str, Any]) -> GraphFact:
    """A manifest's graph; pydantic is not needed to read it."""

    def tensors(side: str) -> tuple[TensorFact, ...]:
        return tuple(TensorFact(t["name"], t["dtype"], tuple(t["shape"])) for t in data[side])

    return GraphFact(tensors("inputs"), tensors("outputs"))


def check_subject(folder: Path) -> dict[str, Any]:
    """Build the fp16 engines of one bundle folder, compare them with reference.npz, and time them."""
    manifest = json.loads((folder / "manifest.json").read_text())
    frames = manifest["clip"]["frames"]
    ranges = {**DEFAULT_RANGES, "Q": CLIPS, "N": (CLIPS[0] * frames, CLIPS[1] * frames, CLIPS[2] * frames)}
    trt = open_tensorrt()
    backends = {"cuda-graphs": TensorRTBackend(cuda_graphs=True), "no-cuda-graphs": TensorRTBackend(cuda_graphs=False)}
    graphs: dict[str, dict[str, TensorRTGraph]] = {name: {} for name in backends}
    record: dict[str, Any] = {"engines": {}, "cosine": {}, "milliseconds": {}}
    for name, data in manifest["graphs"].items():
        fact = graph_fact(data)
        model = (folder / data["files"]["fp16"]["path"]).read_bytes()
        inputs = {tensor.name: tensor.shape for tensor in fact.inputs}
        axes = {axis: ranges[axis] for shape in inputs.values() for axis in shape if isinstance(axis, str)}
        start = time.monotonic()
        with trt.device.current():
            built = build_plan(trt, Build(model, f"{folder.name} {name}", inputs, axes, half=True))
        facts = {"bytes": len(built.plan), "seconds": round(time.monotonic() - start, 1), "profile": axes}
        record["engines"][name] = {**facts, "source_sha256": sha256(model).hexdigest()}
        (folder / f"{name}.layers.json").write_text(built.layers)
        for kind, backend in backends.items():
            graphs[kind][name] = backend.load(built.plan, fact, f"{folder.name} {name}")
    with np.load(folder / "reference.npz", allow_pickle=False) as reference:
        cosines = [compare(loaded, dict(reference)) for loaded in graphs.values()]
        record["cosine"] = {name: min(found[name] for found in cosines) for name in manifest["graphs"]}
        for kind, backend in backends.items():
            record["milliseconds"][kind] = time_chain(backend, graphs[kind], dict(reference))
        record["throughput"] = throughput(graphs["no-cuda-graphs"]["visual"], reference["visual/frames"], frames)
    return record


def compare(graphs: dict[str, TensorRTGraph], reference: dict[str, Any]) -> dict[str, float]:
    """Smallest cosine of any output row of each graph, on the reference's inputs."""
    found = {}
    for name, graph in graphs.items():
        inputs = {k.partition("/")[2]: v for k, v in reference.items() if k.startswith(f"{name}/")}
        outputs = [item for _ in range(COMPARED_RUNS) for item in graph.run(inputs).items()]
        found[name] = worst(drift(value, reference[f"{name}:{output}"]) for output, value in outputs).cosine
    return found


def time_chain(backend: TensorRTBackend, graphs: dict[str, TensorRTGraph], reference: dict[str, Any]) -> dict[str, Any]:
    """One clip, uint8 on the host to scores on the host, features on the device in between."""
    pixels = reference["visual/frames"]
    rest = {name: backend.resident(reference[f"query/{name}"]) for name in ("prompts", "prototypes")}
    shape = (1, *reference["query/features"].shape[1:])

    def chain() -> object:
        features = graphs["visual"].run_resident({"frames": pixels})["features"].reshape(*shape)
        return graphs["query"].run({"features": features, **rest})

    return {
        "chain": measure(chain),
        "visual": measure(lambda: graphs["visual"].run_resident({"frames": pixels})),
        "query": measure(lambda: graphs["query"].run({"features": reference["query/features"][:1], **rest})),
    }


def throughput(visual: TensorRTGraph, frames: Any, clip_frames: int) -> dict[str, float]:  # noqa: ANN401
    """Clips per second at the largest batch."""
    pixels = np.concatenate([frames] * CLIPS[2])[: CLIPS[2] * clip_frames]
    times = measure(lambda: visual.run_resident({"frames": pixels}), BATCH_ROUNDS, 3)
    return {"clips": CLIPS[2], "p50": times["p50"], "clips_per_second": round(1000 * CLIPS[2] / times["p50"], 1)}


def measure(run: Callable[[], object], rounds: int = ROUNDS, warmup: int = WARMUP) -> dict[str, float]:
    """Milliseconds of one call; every call ends with its results there."""
    samples = []
    for number in range(-warmup, rounds):
        start = time.perf_counter()
        run()
        if number >= 0:
            samples.append(1000 * (time.perf_counter() - start))
    ordered, half = sorted(samples), len(samples) // 2
    drift = statistics.median(samples[half:]) / statistics.median(samples[:half])
    values = {"p50": statistics.median(ordered), "p95": ordered[int(0.95 * (rounds - 1))], "min": ordered[0]}
    return {name: round(value, 4) for name, value in {**values, "drift": drift}.items()}


def facts() -> dict[str, Any]:
    """TensorRT and GPU of this interpreter."""
    trt = open_tensorrt()
    with trt.device.current():
        trt.create(trt.module.Runtime)
    external = cublas_works() if trt.machine.tensorrt.startswith("8") else None
    return {
        "tensorrt": trt.machine.tensorrt,
        "gpu": trt.machine.gpu,
        "capability": list(trt.machine.capability),
        "memory_through": trt.device.library,
        "cublas_for_tensorrt_8": external,
        "numpy": np.__version__,
        "python": sys.version.split()[0],
    }


def main(arguments: list[str]) -> int:
    """`probe` prints the facts as JSON, `run WORK` writes tensorrt.json in every folder of WORK."""
    try:
        if arguments == ["probe"]:
            print(json.dumps(facts()))
            return 0
        work = Path(arguments[1])
        for folder in sorted(path.parent for path in work.glob("*/manifest.json")):
            try:
                record = check_subject(folder)
            except Exception as error:  # whatever the driver throws, the other subjects are still measured
                record = {"failed": f"{type(error).__name__}: {error}"}
            (folder / "tensorrt.json").write_text(json.dumps(record, indent=2))
        return 0
    except M2dfError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
