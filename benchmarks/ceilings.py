"""What bounds each stage: its arithmetic and its bytes beside what this machine can do of either.

    python -m benchmarks.ceilings

The ceilings are the fastest of some large matrix products and a large copy, with all processors. A graph far below both
does many small things, so that what a faster machine or a smaller type saves is little. Decoding stands beside it per
processor.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import av
import click
import numpy as np

from benchmarks.models import FRAMES, VIT, export, random_model, random_twin
from benchmarks.record import Machine, bundle_hash, write
from m2df_runtime.backends.onnxruntime import OnnxRuntimeBackend
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.bundle.shipped import demo_bundle
from m2df_runtime.clips.opening import open_source
from m2df_runtime.commands.console import main_entry, progress
from m2df_runtime.cpus import available_cpus

if TYPE_CHECKING:
    from m2df_runtime.bundle.manifest import GraphName
    from m2df_runtime.engine_names import Precision
    from m2df_train.model.checkpoint import Checkpoint

ROWS, SIDES = 2048, (512, 768, 1024, 2048)  # of what is multiplied, and of the square weights
COPIED = 1 << 28  # bytes of what one thread copies, far more than caches hold
WAY = 5
SIZES = {"N": FRAMES, "P": WAY, "K": 1, "Q": 1, "C": WAY}  # one query against five classes of one clip
CLIPS = {"320x240": (320, 240), "1920x1080": (1920, 1080)}
CLIP_FRAMES = 60


def typical(run: Callable[[], object], rounds: int) -> float:
    """Median seconds of a run, the first left out."""
    run()
    taken = []
    for _ in range(rounds):
        begin = perf_counter()
        run()
        taken.append(perf_counter() - begin)
    return median(taken)


def product(kind: str, threads: int, rounds: int) -> float:
    """Operations per second, in 10^9, of the fastest of some products with square weights in ONNX Runtime.

    Which one that is depends on the caches: on one processor it was 1.6 times as fast as the largest.
    """
    return max(_product(kind, side, threads, rounds) for side in SIDES)


def _product(kind: str, side: int, threads: int, rounds: int) -> float:
    import onnx
    from onnx import TensorProto, helper

    types = {"fp32": (TensorProto.FLOAT, TensorProto.FLOAT), "int8": (TensorProto.UINT8, TensorProto.INT32)}
    of, gives = types[kind]
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((side, side)).astype(np.float32)
    if kind == "int8":
        weights = rng.integers(-127, 128, (side, side)).astype(np.int8)
    node = helper.make_node("MatMul" if kind == "fp32" else "MatMulInteger", ["a", "b"], ["c"])
    given, found = (
        helper.make_tensor_value_info(name, type_, (ROWS, side)) for name, type_ in (("a", of), ("c", gives))
    )
    graph = helper.make_graph([node], "product", [given], [found], [onnx.numpy_helper.from_array(weights, "b")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    loaded = OnnxRuntimeBackend("cpu", threads).load(model.SerializeToString(), kind)
    other = rng.integers(0, 128, (ROWS, side)).astype(np.uint8 if kind == "int8" else np.float32)
    return 2 * ROWS * side**2 / typical(lambda: loaded.run({"a": other}), rounds) / 1e9


def copying(threads: int, rounds: int) -> float:
    """Bytes read and written per second, in 10^9, by threads that copy side by side."""
    places = [(np.ones(COPIED, np.uint8), np.empty(COPIED, np.uint8)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        seconds = typical(lambda: list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), places)), rounds)
    return 2 * COPIED * threads / seconds / 1e9


def work(checkpoint: Checkpoint) -> dict[GraphName, float]:
    """Multiplications and additions of each graph, in 10^9, counted by PyTorch on the modules that are exported."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from m2df_export.graphs.onnx import example_inputs
    from m2df_export.graphs.specs import graph_specs

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its one operator is not counted, nor is that of fused attention
    counted: dict[GraphName, float] = {}
    for name, spec in graph_specs(checkpoint.backbone, checkpoint.head, checkpoint.clip).items():
        inputs = [torch.from_numpy(array) for array in example_inputs(spec, SIZES).values()]
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            spec.module(*inputs)
        counted[name] = counter.get_total_flops() / 1e9
    torch.backends.mha.set_fastpath_enabled(fast)
    return counted


@dataclass(frozen=True)
class Ceilings:
    """What the machine can do: 10^9 operations a second of a product, and 10^9 bytes a second of a copy."""

    product: float
    copy: float


def stages(
    checkpoint: Checkpoint,
    bundle: Bundle,
    precision: Precision,
    ceilings: Ceilings,
    rounds: int,
    graphs: Sequence[GraphName] | None = None,
) -> dict[GraphName, dict[str, float]]:
    """Graphs of a model: arithmetic, size of the weights, time, and what they reach of both ceilings.

    Weights are read once in each run.
    """
    from m2df_export.graphs.onnx import example_inputs
    from m2df_export.graphs.specs import graph_specs

    backend, gflops = OnnxRuntimeBackend("cpu", available_cpus()), work(checkpoint)
    specs = graph_specs(checkpoint.backbone, checkpoint.head, checkpoint.clip)
    found: dict[GraphName, dict[str, float]] = {}
    for name in graphs or gflops:
        graph, inputs = backend.open(bundle, name, precision), example_inputs(specs[name], SIZES)
        seconds = typical(lambda graph=graph, inputs=inputs: graph.run(inputs), rounds)  # type: ignore[misc]
        mb = len(bundle.read(bundle.graph_file(name, precision))) / 1e6
        values = {
            "gflop": gflops[name],
            "mb": mb,
            "ms": 1000 * seconds,
            "of_product": gflops[name] / seconds / ceilings.product,
            "of_copy": mb / 1000 / seconds / ceilings.copy,
        }
        found[name] = {what: float(f"{value:.3g}") for what, value in values.items()}
    return found


def decoding(size: tuple[int, int], folder: Path, rounds: int) -> float:
    """Frames of H.264 that one thread decodes in a second, of a made clip with noise in it."""
    path, rng = folder / "clip.mp4", np.random.default_rng(0)
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        noise = rng.integers(0, 30, (size[1], size[0], 3), np.uint8)
        ramp = np.linspace(0, 200, size[0], dtype=np.uint8)[None, :, None]
        for number in range(CLIP_FRAMES):
            picture = np.roll(ramp, 4 * number, axis=1) + np.roll(noise, 7 * number, axis=0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    source = open_source(path)
    seconds = typical(lambda: [None for _ in source.pictures(np.arange(source.n_frames))], rounds)
    return CLIP_FRAMES / seconds


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(2), default=20)
@click.option("--slow-rounds", type=click.IntRange(1), default=5, help="Rounds of the image tower of ViT-B/16.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file [benchmarks/results/ceilings.json].")
def cli(rounds: int, slow_rounds: int, out: Path | None) -> None:
    """Measure what bounds each stage on this machine."""
    machine, threads = Machine(), available_cpus()
    shipped = Bundle.open(demo_bundle())
    with tempfile.TemporaryDirectory() as name, progress("parts", 6) as advance:
        folder = Path(name)
        flops = {kind: product(kind, threads, rounds) for kind in ("fp32", "int8")}
        advance(1)
        copied = copying(threads, rounds)
        advance(1)
        frames = {called: decoding(size, folder, rounds) for called, size in CLIPS.items()}
        advance(1)
        fp32, int8 = (Ceilings(flops[kind], copied) for kind in ("fp32", "int8"))
        # ONNX Runtime computes fp16 graphs in fp32 on a processor.
        found = {"shipped": stages(random_twin(shipped), shipped, shipped.manifest.precisions[0], fp32, rounds)}
        advance(1)
        large = random_model(VIT)
        bundle = export(large, folder / "bundle", ("fp32", "int8"))
        advance(1)
        found[VIT] = stages(large, bundle, "fp32", fp32, slow_rounds)
        found[f"{VIT}, int8"] = stages(large, bundle, "int8", int8, slow_rounds, ["visual"])
        advance(1)
    record = {
        "ceilings": {"product_gflops": flops, "copy_gb_s": copied, "decoded_frames_s_per_core": frames},
        "stages": found,
        "settings": {"threads": threads, "frames": FRAMES, "way": WAY, "rounds": rounds, "slow_rounds": slow_rounds},
        "bundle": bundle_hash(shipped),
        "environment": machine.environment(),
    }
    for model, table in found.items():
        for graph, stage in table.items():
            click.echo(f"{model}: {graph}: " + ", ".join(f"{what} {value:g}" for what, value in stage.items()))
    click.echo(f"written: {write('ceilings', record, out)}")


if __name__ == "__main__":
    main_entry(cli)
