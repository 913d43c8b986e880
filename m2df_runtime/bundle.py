"""The bundle: a directory (or its zip) that holds everything needed to run an exported model.

`manifest.json` describes the model and names every file with its SHA-256. A file is hashed before
its first use, so nothing that differs from what was exported is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from m2df_runtime.errors import InputError
from m2df_runtime.preprocess import PIXELS_VERSION, ClipSpec

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 4 << 20
MAX_FILE_BYTES = 8 << 30
IN_MEMORY_BYTES = 1_500_000_000  # protobuf, and so an ONNX file, ends at 2 GB
GRAPHS = ("visual", "text", "support", "query")

GraphName = Literal["visual", "text", "support", "query"]
# Best reference first. int8 quantises activations as it runs, int8-static with ranges measured at export;
# fp8 is for TensorRT.
Precision = Literal["fp32", "fp16", "int8", "int8-static", "fp8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


_log = logging.getLogger(__name__)


class _Schema(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BundleFile(_Schema):
    """One file of the bundle."""

    path: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0, le=MAX_FILE_BYTES)

    @field_validator("path")
    @classmethod
    def _inside_bundle(cls, value: str) -> str:
        parts = PurePosixPath(value).parts
        if not parts or value.startswith("/") or ".." in parts or "\\" in value or ":" in value:
            raise ValueError(f"path {value!r} leaves the bundle")
        return value


class TensorInfo(_Schema):
    """Name, element type and shape of a graph input or output; dynamic axes are names."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class GraphInfo(_Schema):
    """One exported graph: its signature, and one file per precision."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    opset: int
    files: dict[Precision, BundleFile]


class HeadInfo(_Schema):
    """The head inside the support and query graphs; information only, the runtime never asks."""

    name: str
    options: dict[str, Any]


class TextInfo(_Schema):
    """How class names become prompts."""

    prompt: str = "a photo of {}"
    context_length: Literal[77] = 77
    labels: dict[str, str] = Field(default_factory=dict)
    """Folder name to descriptive text, for classes the model was trained with."""


class PrecisionParity(_Schema):
    """What the export measured for one precision. Details stand in parity.json."""

    passed: bool
    top1_agreement: float | None = None
    accuracy_difference: float | None = None
    cpu_ms: float | None = Field(default=None, description="median CPU time of one query clip through visual + query")


class SourceInfo(_Schema):
    """Where the weights came from and what was measured on them."""

    model: str
    pretrained: str | None = None
    checkpoint_sha256: str | None = None
    recipe: str | None = None
    seed: int | None = None
    measured: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    """How imported weights were trained: preset, dataset, and what the rest of the manifest does not show."""

    @property
    def random_weights(self) -> bool:
        """Whether the weights come from nowhere, so that top-1 answers say nothing."""
        bring_weights = ("local-dir:", "hf-hub:")
        return self.checkpoint_sha256 is None and self.pretrained is None and not self.model.startswith(bring_weights)


class Manifest(_Schema):
    """Contents of manifest.json. T is `clip.frames`, D is `dim`, V is `views`."""

    schema_version: Literal[1]
    name: str
    head: HeadInfo
    views: int = Field(ge=1, le=8)
    dim: int = Field(ge=1, le=65536)
    merges_after: bool = False
    """True: the prototypes of several clips are the mean of those of each clip alone, which evaluation then computes
    once per clip; False promises nothing."""
    clip: ClipSpec
    pixels_version: int | None = Field(default=None, ge=1)
    """`PIXELS_VERSION` of the clips the weights were trained on; None where nobody wrote it down."""
    text: TextInfo
    graphs: dict[GraphName, GraphInfo]
    tokenizer: BundleFile
    source: SourceInfo
    parity: dict[Precision, PrecisionParity] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)

    @field_validator("graphs")
    @classmethod
    def _complete(cls, value: dict[GraphName, GraphInfo]) -> dict[GraphName, GraphInfo]:
        missing = [name for name in GRAPHS if name not in value]
        if missing:
            raise ValueError(f"missing graph: {', '.join(missing)}")
        return value

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Precisions in which all four graphs are present, best reference first."""
        return tuple(p for p in PRECISIONS if all(p in graph.files for graph in self.graphs.values()))


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of `data` as hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file as hex, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class Bundle:
    """An opened bundle. Files are checked against the manifest when they are first read."""

    def __init__(self, path: Path, manifest: Manifest, archive: zipfile.ZipFile | None) -> None:
        self.path = path
        self.manifest = manifest
        self._archive = archive

    @classmethod
    def open(cls, path: Path | str) -> Bundle:
        """Open a bundle directory or zip.

        Raises:
            InputError: Not a bundle, another schema version, or a manifest that fails validation.
        """
        path = Path(path)
        archive: zipfile.ZipFile | None = None
        if not path.exists():
            raise InputError(f"{path}: no such bundle", "m2df-export writes bundles to bundles/<name>/")
        if path.is_file():
            try:
                archive = zipfile.ZipFile(path)
            except (zipfile.BadZipFile, OSError, ValueError) as error:
                raise InputError(f"{path}: not a bundle: {error}", "name a bundle directory or its .zip") from None
        raw = _read_member(path, archive, MANIFEST_NAME, MAX_MANIFEST_BYTES)
        return cls(path, _parse_manifest(path, raw), archive)

    def with_clip(self, clip: ClipSpec) -> Bundle:
        """The same bundle with other preprocessing, for example another region; its keys differ accordingly."""
        return Bundle(self.path, self.manifest.model_copy(update={"clip": clip}), self._archive)

    def file(self, info: BundleFile) -> bytes | Path:
        """Content of one bundle file, verified: the very bytes that were hashed.

        Of a file above 1.5 GB in a directory bundle it is the path, which spares a copy in memory.

        Raises:
            InputError: The file is missing, has another size, or another hash.
        """
        if self._archive is not None:
            data = _read_member(self.path, self._archive, info.path, info.bytes)
            self._check(info, sha256_bytes(data))
            return data
        target = self.path / info.path
        if not target.is_file():
            raise InputError(f"{self.path}: missing {info.path}", "export the bundle again")
        if target.stat().st_size != info.bytes:
            size = target.stat().st_size
            raise InputError(f"{target}: {size} bytes, the manifest says {info.bytes}", "export the bundle again")
        if info.bytes > IN_MEMORY_BYTES:
            self._check(info, sha256_file(target))
            return target
        data = target.read_bytes()
        self._check(info, sha256_bytes(data))
        return data

    def read(self, info: BundleFile) -> bytes:
        """Content of one bundle file as bytes, verified like `file`."""
        content = self.file(info)
        return content if isinstance(content, bytes) else content.read_bytes()

    def graph_file(self, graph: GraphName, precision: Precision) -> BundleFile:
        """The file of one graph in one precision.

        Raises:
            InputError: The bundle does not hold that precision.
        """
        files = self.manifest.graphs[graph].files
        if precision not in files:
            have = ", ".join(self.manifest.precisions) or "none complete"
            raise InputError(f"{self.path}: no {precision} {graph} graph (the bundle holds {have})")
        return files[precision]

    def key(self, *graphs: GraphName) -> str:
        """Hash that binds stored results to the named graphs, and to what feeds them.

        That is the tokenizer for `text`, preprocessing and pixel version for `visual`. The reference precision
        stands for the graph, so banks survive a change of precision.
        """
        bound: dict[str, object] = {}
        if "visual" in graphs:
            bound["clip"] = self.manifest.clip.model_dump(mode="json")
            bound["pixels"] = PIXELS_VERSION
        if "text" in graphs:
            bound["tokenizer"] = self.manifest.tokenizer.sha256
        reference = self.manifest.precisions[0]
        for graph in graphs:
            bound[graph] = self.manifest.graphs[graph].files[reference].sha256
        return sha256_bytes(json.dumps(bound, sort_keys=True).encode())

    def _check(self, info: BundleFile, digest: str) -> None:
        if digest != info.sha256:
            raise InputError(
                f"{self.path}: {info.path} does not match its hash in the manifest",
                "the file was changed or damaged; export the bundle again",
            )


def _read_member(path: Path, archive: zipfile.ZipFile | None, name: str, limit: int) -> bytes:
    if archive is None:
        target = path / name
        if not target.is_file():
            raise InputError(f"{path}: not a bundle, it has no {name}", "name a directory written by m2df-export")
        if target.stat().st_size > limit:
            raise InputError(f"{target}: larger than {limit} bytes")
        return target.read_bytes()
    try:
        member = archive.getinfo(name)
    except KeyError:
        raise InputError(f"{path}: not a bundle, it has no {name}", "export the bundle again") from None
    if member.file_size > limit:
        raise InputError(f"{path}: {name} unpacks to {member.file_size} bytes, at most {limit} expected")
    try:
        return archive.read(member)
    except Exception as error:  # besides zipfile's own, every compression method has its errors
        raise InputError(f"{path}: {name} cannot be read: {error}", "export the bundle again") from None


def _parse_manifest(path: Path, raw: bytes) -> Manifest:
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {MANIFEST_NAME} is not JSON: {error}") from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path}: bundle schema version {version!r}, this m2df reads version {SCHEMA_VERSION}",
            "export the bundle again with this version",
        )
    try:
        manifest = Manifest.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        raise InputError(f"{path}: {MANIFEST_NAME}: {problems}", "export the bundle again") from None
    if not manifest.precisions:
        raise InputError(f"{path}: no precision has all four graphs", "export the bundle again")
    if manifest.pixels_version not in (None, PIXELS_VERSION):
        _log.warning(
            "%s: trained on pixels of version %s, this m2df makes version %s: accuracy may differ from the measured",
            path,
            manifest.pixels_version,
            PIXELS_VERSION,
        )
    return manifest


def demo_bundle() -> Path:
    """The bundle shipped with the package."""
    return Path(__file__).parent / "demo" / "demo.bundle.zip"


def demo_support() -> Path:
    """Support folder of the demo clips shipped with the package."""
    return Path(__file__).parent / "demo" / "support"


def demo_queries() -> Path:
    """Folder of the demo query clips shipped with the package."""
    return Path(__file__).parent / "demo" / "queries"


def newest_bundle(root: Path = Path("bundles")) -> Path:
    """The most recently written bundle under `root`, else the demo bundle shipped with the package."""
    candidates = sorted(_bundles_in(root), key=lambda p: p[1])
    return candidates[-1][0] if candidates else demo_bundle()


def _bundles_in(root: Path) -> Iterator[tuple[Path, float]]:
    if not root.is_dir():
        return
    for entry in os.scandir(root):
        manifest = Path(entry.path) / MANIFEST_NAME
        # Hidden ones are exports that were killed before they took their place.
        if not entry.name.startswith(".") and entry.is_dir() and manifest.is_file():
            yield Path(entry.path), manifest.stat().st_mtime
