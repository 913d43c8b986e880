"""TensorRT engines from a bundle's ONNX files, one code path for TensorRT 8.5 to 11.

Precision stands in the ONNX file. From TensorRT 10 on networks are strongly typed and follow it; 8.x needs
the FP16 flag and has every fp32 layer pinned, or it would choose half precision for normalisations too.
Needs neither PyTorch nor onnx: engines are built where they run.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from m2df_export.tensorrt.network import Build, build_plan, check_options, profile_shapes
from m2df_runtime.backends.tensorrt.backend import TensorRT, open_tensorrt
from m2df_runtime.backends.tensorrt.engine_files import (
    EngineIndex,
    EngineRecord,
    EngineUnusable,
    Machine,
    Range,
    version_tuple,
    writable_root,
)
from m2df_runtime.bundle.onnx_file import graph_model
from m2df_runtime.errors import EnvironmentMissing, InputError
from m2df_runtime.files import atomic_write, exclusive, sweep_dead

if TYPE_CHECKING:
    from m2df_runtime.bundle.bundle import Bundle
    from m2df_runtime.bundle.manifest import GraphInfo, GraphName
    from m2df_runtime.engine_names import Precision

# Sizes of the dynamic axes: clips at once, classes, support clips of a class, texts at once.
DEFAULT_RANGES: Mapping[str, Range] = {"Q": (1, 1, 16), "C": (1, 5, 1000), "K": (1, 1, 32), "P": (1, 5, 64)}
# The newest opset of ours that each version's parser reads (8.6 would read 17).
NEWEST_OPSET = (((8, 5), 16), ((10, 0), 20))
FP8_TENSORRT = (10, 0)  # the first with strongly typed networks, which FP8 is wired for
FP8_GPU = (8, 9)  # Ada; Hopper and later have it too
GIB = 1 << 30
LARGEST_TENSOR = (1 << 31) - 1  # elements; many of TensorRT's layers count them in 32 bits

Spinner = Callable[[str], AbstractContextManager[None]]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineOptions:
    """What to build.

    Attributes:
        precision: Precision of the ONNX files to build from.
        ranges: Smallest, best and largest size of the axes Q (clips), C, K and P; what is missing is the default.
        workspace_gb: Memory the builder may try algorithms with; None leaves it to TensorRT.
        hardware_compatible: Engines for every GPU from Ampere on; slower.
        version_compatible: Engines that later TensorRT versions load; slower.
        force: Build again what is up to date.
    """

    precision: Precision
    ranges: Mapping[str, Range] = field(default_factory=dict)
    workspace_gb: float | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False
    force: bool = False

    @property
    def sizes(self) -> dict[str, Range]:
        """Sizes of all axes, the defaults where none are given."""
        return {**DEFAULT_RANGES, **self.ranges}

    def profile(self, graph: GraphInfo, frames: int) -> dict[str, Range]:
        """Sizes of a graph's dynamic axes; N counts frames, which are the clips' times T."""
        ranges = self.sizes
        low, best, high = ranges["Q"]
        ranges["N"] = (low * frames, best * frames, high * frames)
        axes = {axis for tensor in graph.inputs for axis in tensor.shape if isinstance(axis, str)}
        return {axis: ranges[axis] for axis in sorted(axes)}


@dataclass(frozen=True)
class BuiltEngine:
    """One engine of the result; `reused` was up to date."""

    graph: str
    path: Path
    bytes: int
    seconds: float
    reused: bool


def parse_range(text: str) -> tuple[str, Range]:
    """`1,1,64` (clips) or `C=1,5,200` as axis and sizes.

    Raises:
        ValueError: Not three whole numbers in rising order, or an axis no graph has.
    """
    axis, _, sizes = text.rpartition("=")
    axis = axis or "Q"
    if axis not in DEFAULT_RANGES:
        raise ValueError(f"{axis!r} is not an axis: clips have no letter, the others are C, K and P")
    try:
        low, best, high = (int(part) for part in sizes.split(","))
    except ValueError:
        raise ValueError(f"{text!r} is not MIN,OPT,MAX") from None
    if not 1 <= low <= best <= high:
        raise ValueError(f"{text!r}: sizes must rise from at least 1")
    return axis, (low, best, high)


def tensorrt_ready() -> TensorRT:
    """TensorRT with a driver that it can use.

    Raises:
        EnvironmentMissing: It cannot be used here; the message is one line why.
    """
    trt = open_tensorrt()
    with trt.device.current():
        trt.create(trt.module.Runtime)
    return trt


def build_engines(bundle: Bundle, options: EngineOptions, spinner: Spinner) -> list[BuiltEngine]:
    """Build the engines of a bundle that are missing or stale, in the bundle or in the user's cache folder.

    Each engine takes its place when it is complete; one that was interrupted leaves the old one or none.

    Args:
        bundle: The opened bundle.
        options: What to build.
        spinner: Shows that something long is going on.

    Raises:
        EnvironmentMissing: TensorRT cannot be used here, or lacks an option that was asked for.
        InputError: The bundle's graphs cannot be built by this TensorRT, or another process builds them.
        CheckFailed: TensorRT fails on a graph.
    """
    trt = tensorrt_ready()
    check_options(trt, options.hardware_compatible, options.version_compatible)
    if options.precision == "fp8":
        check_fp8(trt.machine, options.hardware_compatible)
    check_graphs(bundle, options.precision, trt.machine.tensorrt)
    check_sizes(bundle, options)
    index = EngineIndex(trt.machine, options.precision, options.hardware_compatible, options.version_compatible)
    folder = writable_root(bundle) / index.folder_name
    with exclusive(folder):
        folder.mkdir(parents=True, exist_ok=True)
        sweep_dead(folder)  # of a build that was killed while it wrote
        index = replace(index, engines=_up_to_date(folder, index, bundle, options))
        built = []
        for graph in bundle.manifest.graphs:
            path = folder / f"{graph}.engine"
            if (record := index.engines.get(graph)) is not None and not options.force:
                built.append(BuiltEngine(graph, path, record.bytes, record.seconds, True))
                continue
            with spinner(f"TensorRT {trt.machine.tensorrt}: {options.precision} {graph}"), trt.device.current():
                record = _build_one(trt, bundle, graph, options, folder)
            index = replace(index, engines={**index.engines, graph: record})
            index.write(folder)
            built.append(BuiltEngine(graph, path, record.bytes, record.seconds, False))
    return built


def check_graphs(bundle: Bundle, precision: Precision, version: str) -> None:
    """Refuse graphs that this TensorRT cannot read, before minutes of building.

    Raises:
        InputError: int8, a precision the bundle lacks, or a newer opset than the parser knows.
    """
    if precision.startswith("int8"):
        raise InputError(
            "TensorRT does not run the int8 graphs, which quantise as they go, for CPUs", "build fp16 engines"
        )
    newest = max(opset for oldest, opset in NEWEST_OPSET if version_tuple(version) >= oldest)
    for graph, info in bundle.manifest.graphs.items():
        bundle.graph_file(graph, precision)
        if info.opset > newest:
            raise InputError(
                f"{bundle.path}: the {graph} graph has opset {info.opset}, TensorRT {version} reads up to {newest}",
                f"export again with --opset {newest}",
            )


def check_fp8(machine: Machine, hardware_compatible: bool) -> None:
    """Refuse FP8 where TensorRT or the GPU has none, before minutes of building.

    Raises:
        EnvironmentMissing: TensorRT before 10, or a GPU before Ada.
        InputError: The engines are to run on every GPU from Ampere on, which has no FP8.
    """
    instead = "build fp16 engines"
    if version_tuple(machine.tensorrt) < FP8_TENSORRT:
        raise EnvironmentMissing(f"FP8 engines need TensorRT 10, this is {machine.tensorrt}", instead)
    if machine.capability < FP8_GPU:
        major, minor = machine.capability
        raise EnvironmentMissing(f"{machine.gpu} (sm{major}{minor}) has no FP8, which came with sm89", instead)
    if hardware_compatible:
        raise InputError("--hardware-compatible engines are for Ampere too, which has no FP8", "leave it out")


def check_sizes(bundle: Bundle, options: EngineOptions) -> None:
    """Refuse sizes that no GPU can hold, before minutes of building.

    Raises:
        InputError: Names the option and the tensor.
    """
    for graph, info in bundle.manifest.graphs.items():
        profile = options.profile(info, bundle.manifest.clip.frames)
        for tensor in info.inputs:
            _, _, shape = profile_shapes(tensor.shape, profile)
            if math.prod(shape) > LARGEST_TENSOR:
                raise InputError(
                    f"--batch: {tensor.name} of the {graph} graph would be {list(shape)}, "
                    f"TensorRT's tensors have at most {LARGEST_TENSOR} elements",
                    "give a smaller MAX; more clips than that run in parts",
                )


def _up_to_date(folder: Path, wanted: EngineIndex, bundle: Bundle, options: EngineOptions) -> dict[str, EngineRecord]:
    """Engines of the folder that are just what would be built."""
    try:
        found = EngineIndex.read(folder)
    except EngineUnusable as error:
        if (folder / "index.json").exists():
            _log.warning("%s; building again", error.message)
        return {}
    if replace(found, engines={}) != wanted:
        return {}
    current: dict[str, EngineRecord] = {}
    for graph, info in bundle.manifest.graphs.items():
        record, path = found.engines.get(graph), folder / f"{graph}.engine"
        same = (
            record is not None
            and record.source_sha256 == info.files[options.precision].sha256
            and record.profile == options.profile(info, bundle.manifest.clip.frames)
            and path.is_file()
            and sha256(path.read_bytes()).hexdigest() == record.sha256
        )
        if record is not None and same:
            current[graph] = record
    return current


def _build_one(trt: TensorRT, bundle: Bundle, graph: GraphName, options: EngineOptions, folder: Path) -> EngineRecord:
    """Build, and write the engine with its log, its layers and the timing cache."""
    source, info = bundle.graph_file(graph, options.precision), bundle.manifest.graphs[graph]
    profile = options.profile(info, bundle.manifest.clip.frames)
    model, label = graph_model(bundle, graph, options.precision)
    lines: list[str] = []

    def keep(severity: str, message: str) -> None:
        if severity != "VERBOSE":  # every kernel that was tried, for a ViT hundreds of thousands of lines
            lines.append(f"{severity:<8} {message}")

    trt.log.listener = keep
    cache = folder / "timing.cache"
    start = time.monotonic()
    try:
        done = build_plan(
            trt,
            Build(
                model=model if isinstance(model, bytes) else model.read_bytes(),
                label=label,
                inputs={tensor.name: tensor.shape for tensor in info.inputs},
                profile=profile,
                half=options.precision == "fp16",
                workspace=None if options.workspace_gb is None else int(options.workspace_gb * GIB),
                hardware_compatible=options.hardware_compatible,
                version_compatible=options.version_compatible,
                timing_cache=cache.read_bytes() if cache.is_file() else b"",
            ),
        )
    finally:
        trt.log.listener = None
        atomic_write(folder / f"{graph}.log", ("\n".join(lines) + "\n").encode())
    if done.timing_cache:
        atomic_write(cache, done.timing_cache)
    atomic_write(folder / f"{graph}.layers.json", done.layers.encode())
    atomic_write(folder / f"{graph}.engine", done.plan)
    seconds = round(time.monotonic() - start, 1)
    return EngineRecord(sha256(done.plan).hexdigest(), len(done.plan), source.sha256, profile, seconds)


def drop_engine(bundle: Bundle, options: EngineOptions, graph: str) -> None:
    """Take one engine out of the index, so that it is never loaded and is built again."""
    machine = open_tensorrt().machine
    folder = writable_root(bundle) / EngineIndex(machine, options.precision, options.hardware_compatible,
                                                 options.version_compatible).folder_name  # fmt: skip
    index = EngineIndex.read(folder)
    replace(index, engines={name: record for name, record in index.engines.items() if name != graph}).write(folder)
