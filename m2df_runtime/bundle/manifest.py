"""What a bundle says of itself: the schema of `manifest.json`."""

from __future__ import annotations

import json
import logging
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from m2df_runtime.bundle.prompt_texts import MAX_TEXT, LabelRules, check_template
from m2df_runtime.bundle.signatures import signature_problem
from m2df_runtime.engine_names import Precision
from m2df_runtime.errors import InputError
from m2df_runtime.pixels.spec import PIXELS_VERSION, ClipSpec

SCHEMA_VERSION: Final = 2
MANIFEST_NAME = "manifest.json"
MAX_FILE_BYTES = 8 << 30
_MAX_DEPTH = 32  # of lists and objects in a manifest; those of the exports are 6 deep
GRAPHS = ("visual", "text", "support", "query")

GraphName = Literal["visual", "text", "support", "query"]
# Best reference first. int8 quantises activations as it runs, int8-static with ranges measured at export;
# fp8 is for TensorRT.
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_log = logging.getLogger(__name__)

Name = Annotated[str, Field(max_length=500)]


class _Schema(BaseModel):
    # Of each file one validator is needed, that of the whole: with one for every part, loading took 20 ms more.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class BundleFile(_Schema):
    """One file of the bundle."""

    path: Name
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

    name: Name
    dtype: Name
    shape: tuple[int | Name, ...] = Field(max_length=8)


class GraphInfo(_Schema):
    """One exported graph: its signature, and one file per precision."""

    inputs: tuple[TensorInfo, ...] = Field(max_length=8)
    outputs: tuple[TensorInfo, ...] = Field(max_length=8)
    opset: int = Field(ge=1, le=1000)
    files: dict[Precision, BundleFile]


class HeadInfo(_Schema):
    """The head inside the support and query graphs; information only, the runtime never asks."""

    name: Name
    options: dict[str, Any]


class TextInfo(_Schema):
    """How class names become prompts."""

    prompt: str = "a photo of {}"
    context_length: Literal[77] = 77
    labels: dict[Name, Annotated[str, Field(max_length=MAX_TEXT)]] = Field(default_factory=dict)
    """Folder name to descriptive text, for classes the model was trained with."""

    @field_validator("prompt")
    @classmethod
    def _template(cls, value: str) -> str:
        try:
            return check_template(value)
        except InputError as error:
            raise ValueError(error.message) from None

    @property
    def rules(self) -> LabelRules:
        """The same as rules."""
        return LabelRules(self.prompt, self.labels)


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

    schema_version: Literal[2]
    name: Name
    head: HeadInfo
    views: int = Field(ge=1, le=8)
    dim: int = Field(ge=1, le=16384)
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

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        problem = signature_problem(self)
        if problem is not None:
            raise ValueError(problem)
        return self

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Precisions in which all four graphs are present, best reference first."""
        return tuple(p for p in PRECISIONS if all(p in graph.files for graph in self.graphs.values()))


def parse_manifest(path: Path, raw: bytes) -> Manifest:
    """Read and check a manifest.

    Args:
        path: The bundle, for messages.
        raw: Content of its `manifest.json`.

    Raises:
        InputError: Not JSON, another schema version, or numbers and texts that contradict each other.
    """
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {MANIFEST_NAME} is not JSON: {error}") from None
    if _too_deep(data):
        raise InputError(
            f"{path}: {MANIFEST_NAME}: lists nested more than {_MAX_DEPTH} deep", "export the bundle again"
        )
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


def _too_deep(data: object) -> bool:
    level = [data]
    for _ in range(_MAX_DEPTH):
        lists = [
            value.values() if isinstance(value, dict) else value for value in level if isinstance(value, dict | list)
        ]
        level = [item for values in lists for item in values]
    return any(isinstance(value, dict | list) for value in level)
