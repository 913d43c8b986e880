"""One export from model to bundle: graphs, precisions, parity, package, in that order."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from m2df_export.bundle import (
    bundle_file,
    check_target,
    describe_graphs,
    drop_unlisted,
    replacing,
    write_json,
    write_manifest,
    write_zip,
)
from m2df_export.check.measure import EngineResult
from m2df_export.check.parity import Parity
from m2df_export.check.process import scratch
from m2df_export.check.report import parity_markdown, parity_record
from m2df_export.graphs.onnx import DEFAULT_OPSET, TooLarge, export_onnx
from m2df_export.graphs.specs import GraphSpec, graph_specs
from m2df_export.graphs.tokenizer_json import build_tokenizer_json
from m2df_export.precision.calibration import calibration_frames
from m2df_export.precision.convert import write_precision
from m2df_export.precision.files import file_name
from m2df_export.precision.half import graph_to_half
from m2df_export.precision.static_int8 import LEADING, Calibration
from m2df_runtime import __version__
from m2df_runtime.bundle.manifest import (
    GRAPHS,
    SCHEMA_VERSION,
    GraphInfo,
    GraphName,
    HeadInfo,
    Manifest,
    SourceInfo,
    TextInfo,
)
from m2df_runtime.engine_names import Precision
from m2df_runtime.errors import CheckFailed, InputError
from m2df_runtime.files import exclusive
from m2df_runtime.installed import version_of
from m2df_runtime.pixels.spec import ClipSpec
from m2df_runtime.progress import Advance, unseen
from m2df_train.model.backbone import load_backbone
from m2df_train.model.checkpoint import Checkpoint
from m2df_train.model.heads import Head, TrainingFreeOptions, build_head, deterministic_head
from m2df_train.model.options import AppearanceOptions

TOKENIZER = "tokenizer.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportOptions:
    """What to write.

    Attributes:
        out: Bundle directory.
        precisions: Precisions of the bundle, best reference first.
        opset: ONNX opset.
        verify: Measure parity and hold it to the gates.
        data: Folder of clips for calibration and the parity episodes; None for generated ones.
        archive: Also write `<out>.zip`.
        optional: Precisions that are left out, with a warning, instead of failing the export on their gates.
    """

    out: Path
    precisions: tuple[Precision, ...] = ("fp32",)
    opset: int = DEFAULT_OPSET
    verify: bool = True
    data: Path | None = None
    archive: bool = False
    optional: tuple[Precision, ...] = ()

    @property
    def steps(self) -> int:
        """Number of steps `export_bundle` reports."""
        return len(GRAPHS) + len(self.precisions) * (1 + self.verify) + self.verify


@dataclass(frozen=True)
class ExportedFile:
    """One line of the summary."""

    graph: GraphName
    precision: Precision
    file: str
    bytes: int
    cosine: float | None


@dataclass(frozen=True)
class ExportResult:
    """What was written; `reports` is empty when unverified."""

    bundle: Path
    archive: Path | None
    files: tuple[ExportedFile, ...]
    reports: dict[Precision, EngineResult]


def pretrained_model(model: str, pretrained: str | None, frames: int = 8) -> Checkpoint:
    """A pretrained CLIP with the training-free head, at CLIP's own temperature.

    Raises:
        InputError: Unknown model, weights that cannot be had, or a tokenizer other than CLIP's.
    """
    backbone = load_backbone(model, pretrained)
    clip = ClipSpec(
        frames=frames,
        size=backbone.image_size,
        interpolation="bilinear" if backbone.interpolation == "bilinear" else "bicubic",
        mean=backbone.mean,
        std=backbone.std,
    )
    options = TrainingFreeOptions(
        logit_scale=float(backbone.logit_scale.detach().mean()),
        appearance=AppearanceOptions(dim=backbone.appearance_dim),
    )
    return Checkpoint(
        backbone=backbone,
        head=build_head("training-free", backbone.dim, frames, options).eval(),
        clip=clip,
        prompt="a photo of {}",
        labels={},
        source=SourceInfo(model=model, pretrained=pretrained),
    )


def export_bundle(checkpoint: Checkpoint, options: ExportOptions, advance: Advance = unseen) -> ExportResult:
    """Export a model; the bundle appears, or replaces the old one, only when everything passed.

    Raises:
        CheckFailed: A graph is beyond its gates, or does not export or run.
        InputError: The target is not a bundle, the data folder cannot be used, or the model is too large.
    """
    check_target(options.out)
    problem = checkpoint.backbone.clip_problem(checkpoint.clip)
    if problem is not None:
        raise InputError(problem, "train again with a clip that fits")
    with exclusive(options.out), replacing(options.out) as folder:
        export = _Export(checkpoint, options, folder, advance)
        export.write_graphs()
        reports = export.measured() if options.verify else {}
        graphs = export.finish(reports)
    archive = write_zip(options.out, options.out.with_name(f"{options.out.name}.zip")) if options.archive else None
    return ExportResult(options.out, archive, _summary(graphs, reports), reports)


def _deterministic(head: Head) -> Head:
    """The head without randomness: a prompt selector that samples selects its most probable prompt."""
    fixed = deterministic_head(head)
    if fixed is not head:
        logger.warning(
            "the head draws its prompts at random (pps.eval: sample); the bundle takes the most probable one"
        )
    return fixed


class _Export:
    """An export under way in its folder.

    Attributes:
        options: With the precisions that could be written.
    """

    def __init__(self, checkpoint: Checkpoint, options: ExportOptions, folder: Path, advance: Advance) -> None:
        self.options = options
        self._checkpoint = checkpoint
        self._source = checkpoint.source.model_copy(update={"checkpoint_sha256": checkpoint.sha256})
        self._head = _deterministic(checkpoint.head)
        self._folder = folder
        self._advance = advance
        self._begun = 0
        self._calibration: Calibration | None = None

    def write_graphs(self) -> None:
        """Write every graph in every precision, and the tokenizer."""
        if {"int8-static", "fp8"} & {*self.options.precisions}:
            self._calibration = Calibration(calibration_frames(self._checkpoint.clip, self.options.data))
        specs = graph_specs(self._checkpoint.backbone, self._head, self._checkpoint.clip)
        for spec in specs.values():
            self._step(f"exporting {spec.name}")
            self._export(spec)
        for precision in self.options.precisions:
            self._step(f"writing {precision}")
            for graph in specs:
                write_precision(self._folder, graph, precision, self._calibration)
        (self._folder / TOKENIZER).write_bytes(build_tokenizer_json())

    def _export(self, spec: GraphSpec) -> None:
        weights = f"{self._source.model} {self._source.pretrained or 'random weights'}"
        metadata = {"m2df": __version__, "graph": spec.name, "precision": "fp32"}
        metadata["source"] = self._checkpoint.sha256 or weights
        path, opset = self._folder / file_name(spec.name, "fp32"), self.options.opset
        try:
            export_onnx(spec, path, opset=opset, metadata=metadata)
        except TooLarge as error:
            if "fp16" not in self.options.precisions:
                raise
            self.options = _fp16_alone(self.options, error)
            metadata["precision"] = "fp16"
            half = self._folder / file_name(spec.name, "fp16")
            export_onnx(spec, half, opset=opset, metadata=metadata, to_half=graph_to_half)

    def measured(self) -> dict[Precision, EngineResult]:
        """Measure every precision, write parity.json and parity.md, and fail on any gate.

        Raises:
            CheckFailed: Names every graph and gate that failed.
        """
        self._step("parity: PyTorch")
        reports: dict[Precision, EngineResult] = {}
        with scratch() as work:
            random = self._source.random_weights
            parity = Parity(self._checkpoint, work, self.options.data, random=random)
            for precision in self.options.precisions:
                self._step(f"parity: {precision}")
                reports[precision] = self._measure(parity, precision)
        self._step("")
        for precision in self.options.optional:
            if reports[precision].problems:
                logger.warning("%s is left out: %s", precision, "; ".join(reports.pop(precision).problems))
        problems = [problem for report in reports.values() for problem in report.problems]
        if problems:
            hint = "nothing was written; --no-verify skips the check"
            raise CheckFailed("parity failed: " + "; ".join(problems), hint)
        data = parity_record(parity.reference, reports)
        write_json(self._folder / "parity.json", data)
        (self._folder / "parity.md").write_text(parity_markdown(self.options.out.name, data), encoding="utf-8")
        return reports

    def _measure(self, parity: Parity, precision: Precision) -> EngineResult:
        """Measure a precision; calibrated int8 with more of its beginning in fp32, as long as it needs that to pass."""
        self._write_manifest(self.options.precisions, {})
        report = parity.measure(self._folder, precision)
        if precision != "int8-static" or self._calibration is None:
            return report
        for leading in LEADING[1:]:
            if not report.problems:
                break
            logger.info("int8-static with less of it in fp32: %s", "; ".join(report.problems))
            (self._folder / file_name("visual", precision)).unlink()
            write_precision(self._folder, "visual", precision, replace(self._calibration, leading=leading))
            self._write_manifest(self.options.precisions, {})
            report = parity.measure(self._folder, precision)
        return report

    def finish(self, reports: dict[Precision, EngineResult]) -> dict[GraphName, GraphInfo]:
        """Write the manifest of what passed, and drop the files that it does not list; gives its graphs."""
        graphs = self._write_manifest(tuple(reports) or self.options.precisions, reports)
        drop_unlisted(self._folder, graphs)
        return graphs

    def _write_manifest(
        self, precisions: Sequence[Precision], reports: dict[Precision, EngineResult]
    ) -> dict[GraphName, GraphInfo]:
        checkpoint = self._checkpoint
        graphs = describe_graphs(self._folder, precisions, self.options.opset)
        packages = ("torch", "open_clip_torch", "onnx", "onnxscript", "onnxruntime", "nncf", "nvidia-modelopt")
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            name=self.options.out.name,
            head=HeadInfo(name=self._head.name, options=self._head.options.model_dump(mode="json")),
            views=self._head.views,
            dim=checkpoint.backbone.dim,
            merges_after=self._head.merges_after,
            clip=checkpoint.clip,
            pixels_version=checkpoint.pixels_version,
            text=TextInfo(prompt=checkpoint.prompt, labels=checkpoint.labels),
            graphs=graphs,
            tokenizer=bundle_file(self._folder, TOKENIZER),
            source=self._source,
            parity={precision: report.summary() for precision, report in reports.items()},
            versions={"m2df": __version__, **{name: version for name in packages if (version := _version(name))}},
        )
        write_manifest(self._folder, manifest)
        return graphs

    def _step(self, note: str) -> None:
        """Say what comes next; what came before it is done."""
        self._advance(self._begun, note)
        self._begun = 1


def _fp16_alone(options: ExportOptions, reason: TooLarge) -> ExportOptions:
    """Options without the precisions that are fp32 files or made from one."""
    others = [precision for precision in options.precisions if precision != "fp16"]
    if others:
        logger.warning("left out, fp16 alone is written: %s (%s)", ", ".join(others), reason.message)
    return replace(options, precisions=("fp16",), optional=())


def _version(package: str) -> str | None:
    version = version_of(package)
    return version_of("onnxruntime-gpu") if version is None and package == "onnxruntime" else version


def _summary(graphs: dict[GraphName, GraphInfo], reports: dict[Precision, EngineResult]) -> tuple[ExportedFile, ...]:
    return tuple(
        ExportedFile(
            graph=graph,
            precision=precision,
            file=file.path,
            bytes=file.bytes,
            cosine=reports[precision].graphs[graph].cosine if precision in reports else None,
        )
        for precision in next(iter(graphs.values())).files
        for graph, info in graphs.items()
        for file in (info.files[precision],)
    )
