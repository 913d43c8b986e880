"""TensorRT engines on disk: where they stand, what they are bound to, and which of them may be loaded.

An engine fits one GPU architecture, one TensorRT version and one ONNX file. These facts stand in an
`index.json` beside the engines and not in the bundle's manifest: engines are built on the machine that
runs them, often for a bundle on a read-only place, and the bundle stays the same bundle everywhere.

    bundle/engines/sm90-trt11.4-fp16/index.json  visual.engine  visual.layers.json  visual.log  timing.cache
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2df_runtime.errors import EnvironmentMissing
from m2df_runtime.files import atomic_write
from m2df_runtime.user_cache import cache_dir

if TYPE_CHECKING:
    from m2df_runtime.bundle.bundle import Bundle
    from m2df_runtime.bundle.manifest import GraphName
    from m2df_runtime.engine_names import Precision

INDEX_NAME = "index.json"
SCHEMA_VERSION = 1
MAX_INDEX_BYTES = 1 << 20
AMPERE = (8, 0)
# Newer majors that run version-compatible engines of an older one (TensorRT support matrix).
RUNS_OLDER_MAJOR = {(8, 10), (10, 11)}

Range = tuple[int, int, int]


class EngineUnusable(EnvironmentMissing):
    """There is no engine, or it was built for something else; another backend can still run the bundle."""


@dataclass(frozen=True)
class Machine:
    """What an engine must fit: the GPU and the full version of TensorRT."""

    gpu: str
    capability: tuple[int, int]
    tensorrt: str


@dataclass(frozen=True)
class EngineRecord:
    """One engine file.

    Attributes:
        sha256: Of the engine file.
        bytes: Its size.
        source_sha256: Of the ONNX file it was built from.
        profile: Smallest, best and largest size of every dynamic axis.
        seconds: Build time.
    """

    sha256: str
    bytes: int
    source_sha256: str
    profile: Mapping[str, Range]
    seconds: float


@dataclass(frozen=True)
class EngineIndex:
    """Contents of index.json: what the engines of one folder were built for, and the engines by graph."""

    machine: Machine
    precision: str
    hardware_compatible: bool = False
    version_compatible: bool = False
    engines: Mapping[str, EngineRecord] = field(default_factory=dict)

    @property
    def folder_name(self) -> str:
        """For example `sm90-trt11.4-fp16`."""
        major, minor = AMPERE if self.hardware_compatible else self.machine.capability
        version = ".".join(self.machine.tensorrt.split(".")[:2])
        marks = ("plus" if self.hardware_compatible else "", "plus" if self.version_compatible else "")
        return f"sm{major}{minor}{marks[0]}-trt{version}{marks[1]}-{self.precision}"

    def mismatch(self, machine: Machine) -> str | None:
        """Why these engines do not fit a machine; None where they do."""
        built = self.machine
        same_gpu = built.capability == machine.capability
        if not same_gpu and not (self.hardware_compatible and min(built.capability, machine.capability) >= AMPERE):
            return f"built for {_sm(built.capability)}, this GPU is {_sm(machine.capability)}"
        if built.tensorrt != machine.tensorrt and not (
            self.version_compatible and runs_on(built.tensorrt, machine.tensorrt)
        ):
            return f"built with TensorRT {built.tensorrt}, this is {machine.tensorrt}"
        return None

    def write(self, folder: Path) -> None:
        """Write index.json atomically."""
        data = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        atomic_write(folder / INDEX_NAME, (json.dumps(data, indent=2) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> EngineIndex:
        """Read index.json.

        Raises:
            EngineUnusable: Missing, damaged, or of another version.
        """
        path = folder / INDEX_NAME
        try:
            with path.open("rb") as file:
                data = json.loads(file.read(MAX_INDEX_BYTES))
            if data["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"schema version {data['schema_version']!r}, expected {SCHEMA_VERSION}")
            return _parse(data)
        except FileNotFoundError:
            raise EngineUnusable(f"{path}: no such file") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise EngineUnusable(f"{path}: cannot be read: {error}", "build the engines again") from None


@dataclass(frozen=True)
class EngineFile:
    """An engine that fits; `read` gives its bytes."""

    path: Path
    record: EngineRecord
    host_code: bool

    def read(self) -> bytes:
        """The engine, verified.

        Raises:
            EngineUnusable: The file is missing or is not the one that was built.
        """
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise EngineUnusable(f"{self.path}: {error.strerror or error}", "build the engines again") from None
        if len(data) != self.record.bytes or hashlib.sha256(data).hexdigest() != self.record.sha256:
            raise EngineUnusable(f"{self.path} does not match its hash in {INDEX_NAME}", "build the engines again")
        return data


def runs_on(built: str, running: str) -> bool:
    """Whether a version-compatible engine of one TensorRT version runs on another: on the same or a later one."""
    old, new = version_tuple(built), version_tuple(running)
    return old <= new and (old[0] == new[0] or (old[0], new[0]) in RUNS_OLDER_MAJOR)


def version_tuple(version: str) -> tuple[int, ...]:
    """`10.16.1.11` as numbers; whatever follows the numbers is left out."""
    parts: list[int] = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        parts.append(int(part))
    return tuple(parts) or (0,)


def engine_roots(bundle: Bundle) -> list[Path]:
    """Folders in which engines of a bundle are looked for: in the bundle, then in the user's cache folder.

    The place in the cache is named by the graphs' hashes, so a bundle that is moved keeps its engines.
    """
    graphs = bundle.manifest.graphs
    files = {name: {p: file.sha256 for p, file in info.files.items()} for name, info in graphs.items()}
    key = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]
    cached = cache_dir("engines") / key
    return [bundle.path / "engines", cached] if bundle.path.is_dir() else [cached]


def writable_root(bundle: Bundle) -> Path:
    """The first of `engine_roots` that can be written."""
    *inside, cached = engine_roots(bundle)
    for root in inside:
        if os.access(root if root.is_dir() else root.parent, os.W_OK):
            return root
    return cached


def find_engine(bundle: Bundle, graph: GraphName, precision: Precision, machine: Machine) -> EngineFile:
    """The engine of one graph that fits this machine; nothing is read but the index.

    Of several, one that was built for just this machine, which is the fastest and holds no host code.

    Raises:
        InputError: The bundle does not hold the precision.
        EngineUnusable: There is none, or only such as were built for something else; the message names why.
    """
    source = bundle.graph_file(graph, precision).sha256
    reasons: list[str] = []
    fitting: list[tuple[tuple[bool, bool], EngineFile]] = []
    for folder in _folders(bundle, precision):
        try:
            index = EngineIndex.read(folder)
        except EngineUnusable as error:
            reasons.append(error.message)
            continue
        record = index.engines.get(graph)
        reason = "holds none of this graph" if record is None else index.mismatch(machine)
        if record is not None and reason is None and record.source_sha256 != source:
            reason = "built from another export of the graph"
        if record is not None and reason is None:
            generality = index.version_compatible, index.hardware_compatible
            fitting.append((generality, EngineFile(folder / f"{graph}.engine", record, index.version_compatible)))
        else:
            reasons.append(f"{folder.name}: {reason}")
    if fitting:
        return min(fitting, key=lambda item: item[0])[1]
    why = f" ({'; '.join(reasons)})" if reasons else ""
    name = f"{_sm(machine.capability)} and TensorRT {machine.tensorrt}"
    raise EngineUnusable(
        f"{bundle.path}: no {precision} {graph} engine for {name}{why}",
        f"build them: m2df-export engines --bundle {bundle.path} --precision {precision}",
    )


def _folders(bundle: Bundle, precision: str) -> Iterator[Path]:
    for root in engine_roots(bundle):
        if root.is_dir():
            yield from sorted(path for path in root.glob(f"*-{precision}") if path.is_dir())


def _sm(capability: tuple[int, int]) -> str:
    return f"sm{capability[0]}{capability[1]}"


def _parse(data: Mapping[str, Any]) -> EngineIndex:
    machine = data["machine"]
    major, minor = machine["capability"]
    engines = {}
    for graph, entry in data["engines"].items():
        profile = {str(axis): _range(sizes) for axis, sizes in entry["profile"].items()}
        engines[str(graph)] = EngineRecord(
            str(entry["sha256"]), int(entry["bytes"]), str(entry["source_sha256"]), profile, float(entry["seconds"])
        )
    return EngineIndex(
        Machine(str(machine["gpu"]), (int(major), int(minor)), str(machine["tensorrt"])),
        str(data["precision"]),
        bool(data["hardware_compatible"]),
        bool(data["version_compatible"]),
        engines,
    )


def _range(sizes: Any) -> Range:  # noqa: ANN401 - what JSON gave
    low, best, high = (int(size) for size in sizes)
    return low, best, high
