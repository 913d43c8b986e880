"""One export from model to bundle: graphs, precisions, parity, package, in that order."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Mapping
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
from m2df_export.check.calibration_frames import calibration_frames
from m2df_export.check.end_to_end import episode_set
from m2df_export.check.parity import NUMERIC_CLASSES, Parity, PrecisionReport, report_json, report_markdown
from m2df_export.graphs.onnx import DEFAULT_OPSET, TooLarge, export_onnx
from m2df_export.graphs.specs import GraphSpec, graph_specs
from m2df_export.graphs.tokenizer_json import build_tokenizer_json
from m2df_export.precision.files import file_name, write_precision
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
    Precision,
    SourceInfo,
    TextInfo,
)
from m2df_runtime.bundle.tokenizer import Tokenizer
from m2df_runtime.errors import CheckFailed, InputError
from m2df_runtime.files import exclusive
from m2df_runtime.pixels.spec import ClipSpec
from m2df_runtime.progress import Advance, unseen
from m2df_train.model.backbone import load_backbone
from m2df_train.model.checkpoint import Checkpoint
from m2df_train.model.heads import Head, TrainingFreeOptions, build_head, deterministic_head

TOKENIZER = "tokenizer.json"
NUMERIC_PROMPTS = ("running", "waving a hand", "sitting down", "opening a door", "two people shaking hands")

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
    reports: dict[Precision, PrecisionReport]


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
    options = TrainingFreeOptions(logit_scale=float(backbone.logit_scale.detach().mean()))
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
    _check_size(checkpoint)
    head = _deterministic(checkpoint.head)
    specs = graph_specs(checkpoint.backbone, head, checkpoint.clip)
    with exclusive(options.out), replacing(options.out) as folder:
        calibration = None
        if {"int8-static", "fp8"} & {*options.precisions}:
            calibration = Calibration(calibration_frames(checkpoint.clip, options.data))
        options = _write_graphs(checkpoint, specs, options, folder, calibration, advance)
        tokenizer = build_tokenizer_json()
        (folder / TOKENIZER).write_bytes(tokenizer)
        reports: dict[Precision, PrecisionReport] = {}
        if options.verify:
            reports = _verify(checkpoint, specs, options, folder, calibration, Tokenizer.from_bytes(tokenizer), advance)
        kept = tuple(reports) or options.precisions
        graphs = describe_graphs(folder, kept, options.opset)
        drop_unlisted(folder, graphs)
        write_manifest(folder, _manifest(checkpoint, head, options, folder, graphs, reports))
    archive = write_zip(options.out, options.out.with_name(f"{options.out.name}.zip")) if options.archive else None
    return ExportResult(options.out, archive, _summary(graphs, reports), reports)


def _check_size(checkpoint: Checkpoint) -> None:
    if checkpoint.clip.size != checkpoint.backbone.image_size:
        raise InputError(
            f"the clip size is {checkpoint.clip.size} pixels, the backbone takes {checkpoint.backbone.image_size}",
            "train again with clip.size set to the backbone's",
        )


def _deterministic(head: Head) -> Head:
    """The head without randomness: a prompt selector that samples selects its most probable prompt."""
    fixed = deterministic_head(head)
    if fixed is not head:
        logger.warning(
            "the head draws its prompts at random (pps.eval: sample); the bundle takes the most probable one"
        )
    return fixed


def _write_graphs(
    checkpoint: Checkpoint,
    specs: Mapping[GraphName, GraphSpec],
    options: ExportOptions,
    folder: Path,
    calibration: Calibration | None,
    advance: Advance,
) -> ExportOptions:
    """Write every graph in every precision; the options with the precisions that could be."""
    source = checkpoint.sha256 or f"{checkpoint.source.model} {checkpoint.source.pretrained or 'random weights'}"
    for graph, spec in specs.items():
        advance(0, f"exporting {graph}")
        metadata = {"m2df": __version__, "graph": graph, "precision": "fp32", "source": source}
        try:
            export_onnx(spec, folder / file_name(graph, "fp32"), opset=options.opset, metadata=metadata)
        except TooLarge as error:
            if "fp16" not in options.precisions:
                raise
            options = _fp16_alone(options, error)
            metadata["precision"] = "fp16"
            half = folder / file_name(graph, "fp16")
            export_onnx(spec, half, opset=options.opset, metadata=metadata, to_half=graph_to_half)
        advance(1)
    for precision in options.precisions:
        advance(0, f"writing {precision}")
        for graph in specs:
            write_precision(folder, graph, precision, calibration)
        advance(1)
    return options


def _fp16_alone(options: ExportOptions, reason: TooLarge) -> ExportOptions:
    """Options without the precisions that are fp32 files or made from one."""
    others = [precision for precision in options.precisions if precision != "fp16"]
    if others:
        logger.warning("left out, fp16 alone is written: %s (%s)", ", ".join(others), reason.message)
    return replace(options, precisions=("fp16",), optional=())


def _verify(
    checkpoint: Checkpoint,
    specs: Mapping[GraphName, GraphSpec],
    options: ExportOptions,
    folder: Path,
    calibration: Calibration | None,
    tokenizer: Tokenizer,
    advance: Advance,
) -> dict[Precision, PrecisionReport]:
    """Measure, write parity.json and parity.md, and fail on any gate.

    Raises:
        CheckFailed: Names every graph and gate that failed.
    """
    advance(0, "parity: PyTorch")
    episodes = None
    if not _source(checkpoint).random_weights:
        episodes = episode_set(checkpoint.clip, checkpoint.rules, tokenizer, options.data)
    tokens = tokenizer.encode([checkpoint.prompt.replace("{}", text) for text in NUMERIC_PROMPTS[:NUMERIC_CLASSES]])
    parity = Parity(checkpoint, specs, tokens, episodes)
    reports: dict[Precision, PrecisionReport] = {}
    for precision in options.precisions:
        advance(1, f"parity: {precision}")
        reports[precision] = parity.measure(folder, precision)
        if precision == "int8-static" and calibration is not None:
            reports[precision] = _passing_static_int8(parity, folder, calibration, reports[precision])
    advance(1)
    for precision in options.optional:
        if reports[precision].failures:
            logger.warning("%s is left out: %s", precision, "; ".join(reports.pop(precision).failures))
    failures = [failure for report in reports.values() for failure in report.failures]
    if failures:
        raise CheckFailed("parity failed: " + "; ".join(failures), "nothing was written; --no-verify skips the check")
    data = report_json(reports, episodes)
    write_json(folder / "parity.json", data)
    (folder / "parity.md").write_text(report_markdown(options.out.name, data), encoding="utf-8")
    return reports


def _passing_static_int8(
    parity: Parity, folder: Path, calibration: Calibration, report: PrecisionReport
) -> PrecisionReport:
    """Calibrated int8 with more of its beginning in fp32, as long as that is needed to pass."""
    for leading in LEADING[1:]:
        if not report.failures:
            break
        logger.info("int8-static with less of it in fp32: %s", "; ".join(report.failures))
        (folder / file_name("visual", "int8-static")).unlink()
        write_precision(folder, "visual", "int8-static", replace(calibration, leading=leading))
        report = parity.measure(folder, "int8-static")
    return report


def _source(checkpoint: Checkpoint) -> SourceInfo:
    return checkpoint.source.model_copy(update={"checkpoint_sha256": checkpoint.sha256})


def _manifest(
    checkpoint: Checkpoint,
    head: Head,
    options: ExportOptions,
    folder: Path,
    graphs: dict[GraphName, GraphInfo],
    reports: dict[Precision, PrecisionReport],
) -> Manifest:
    packages = ("torch", "open_clip_torch", "onnx", "onnxscript", "onnxruntime", "nncf", "nvidia-modelopt")
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=options.out.name,
        head=HeadInfo(name=head.name, options=head.options.model_dump(mode="json")),
        views=head.views,
        dim=checkpoint.backbone.dim,
        merges_after=head.merges_after,
        clip=checkpoint.clip,
        pixels_version=checkpoint.pixels_version,
        text=TextInfo(prompt=checkpoint.prompt, labels=checkpoint.labels),
        graphs=graphs,
        tokenizer=bundle_file(folder, TOKENIZER),
        source=_source(checkpoint),
        parity={precision: report.summary() for precision, report in reports.items()},
        versions={"m2df": __version__, **{name: version for name in packages if (version := _version(name))}},
    )


def _version(package: str) -> str | None:
    names = (package, "onnxruntime-gpu") if package == "onnxruntime" else (package,)
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _summary(graphs: dict[GraphName, GraphInfo], reports: dict[Precision, PrecisionReport]) -> tuple[ExportedFile, ...]:
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
