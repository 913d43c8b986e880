"""`m2df-export`: a checkpoint, or a pretrained CLIP by name, to a bundle.

PyTorch and the exporter load only once there is work, so that `--help` is instant.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2df_export.commands.engines import after_export, engine_options, engine_precision, require_tensorrt
from m2df_export.commands.triton import check_inputs, publish
from m2df_export.commands.triton import json_record as triton_record
from m2df_export.commands.triton import summary as triton_summary
from m2df_export.precision.optional_packages import modelopt_missing, nncf_missing
from m2df_runtime.commands.console import M2dfGroup, emit, emit_json, main_entry, say, stages
from m2df_runtime.errors import InputError

if TYPE_CHECKING:
    from m2df_export.pipeline import ExportOptions, ExportResult
    from m2df_export.triton.repository import Repository
    from m2df_runtime.engine_names import Precision
    from m2df_train.model.checkpoint import Checkpoint

BUNDLES = Path("bundles")
OPSETS = ("16", "18", "19", "20")

EPILOG = """\b
Examples:
  m2df-export --fp16                                the newest run, fp32 and fp16
  m2df-export --checkpoint runs/mine --int8 --zip   a certain run, fp32 and int8, with a zip
  m2df-export --model ViT-B-16 --pretrained openai --fp16 --int8
                                                    a pretrained CLIP, no training
  m2df-export --data clips --fp16                   compare precisions on your own clips
  m2df-export --fp16 --tensorrt                     insist on TensorRT engines for this machine's GPU
  m2df-export --fp16 --triton models --support actions
                                                    and a model repository for Triton Inference Server
  m2df-export engines --bundle bundles/mine         engines of a bundle that exists
  m2df-export triton --support actions --out models
                                                    the next version of a repository's bank
  m2df-export verify bundles/mine --against runs/mine
                                                    where a bundle leaves its model, if it does

Every precision is compared with PyTorch before anything is written; --no-verify skips that.
Exit codes: 0 done, 1 a comparison failed, 2 bad input, 3 missing engine.
"""


SUBCOMMANDS = {name: f"m2df_export.commands.{name}:{name}" for name in ("engines", "triton", "verify")}


@click.group("m2df-export", cls=M2dfGroup, subcommands=SUBCOMMANDS, epilog=EPILOG)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Checkpoint file or run directory.  [default: the newest run in runs/]",
)
@click.option("--model", metavar="NAME", help="Instead of a checkpoint: an open_clip model (local-dir:, hf-hub: too).")
@click.option("--pretrained", metavar="TAG", help="Its weights: an open_clip tag or a file.")
@click.option(
    "--head", type=click.Choice(["training-free"]), default=None, help="Head for --model.  [default: training-free]"
)
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Bundle.  [default: bundles/<name>]")
@click.option("--fp16", is_flag=True, help="Add half precision, for GPUs.")
@click.option(
    "--int8",
    is_flag=True,
    help="Add 8-bit image and text towers for CPUs: int8 (dynamic), and int8-static (calibrated) where NNCF is here.",
)
@click.option(
    "--fp8",
    is_flag=True,
    help="Add an FP8 image tower for TensorRT 10 on Ada, Hopper or later; needs NVIDIA's modelopt. Engines: "
    "m2df-export engines --precision fp8.",
)
@click.option(
    "--only-precision",
    type=click.Choice(["fp32", "fp16", "int8", "int8-static"]),
    help="Keep this precision alone: a small bundle.",
)
@click.option(
    "--opset",
    type=click.Choice(OPSETS),
    default=OPSETS[1],
    show_default=True,
    help="ONNX opset; 16 is for TensorRT 8.",
)
@click.option("--no-verify", is_flag=True, help="Skip the comparison with PyTorch; the bundle says unverified.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Clips to calibrate on and compare precisions on, one sub-folder per class.  [default: generated clips]",
)
@click.option("--zip", "archive", is_flag=True, help="Also write <out>.zip.")
@click.option("--tensorrt", is_flag=True, help="Insist on TensorRT engines; --fp16 builds them where it can.")
@engine_options
@click.option(
    "--triton",
    "repository",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Also write a model repository for Triton Inference Server, with the bank of --support.",
)
@click.option(
    "--support", type=click.Path(path_type=Path), metavar="DIR", help="Clips of that bank, one sub-folder per class."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.pass_context
def cli(context: click.Context, /, **options: Any) -> None:  # noqa: ANN401 - click hands over every option by name
    """Export a model to a bundle: ONNX graphs, tokenizer, manifest and a parity report."""
    if context.invoked_subcommand is None:
        run(Arguments(**options))


@dataclass(frozen=True)
class Arguments:
    """What the command line said; each attribute is the option of that name."""

    checkpoint: Path | None
    model: str | None
    pretrained: str | None
    head: str | None
    out: Path | None
    fp16: bool
    int8: bool
    fp8: bool
    only_precision: Precision | None
    opset: str
    no_verify: bool
    data: Path | None
    archive: bool
    tensorrt: bool
    engine: dict[str, Any]
    repository: Path | None
    support: Path | None
    as_json: bool

    def check(self) -> None:
        """Raise click.UsageError for options that contradict each other."""
        if self.model and self.checkpoint:
            raise click.UsageError("--checkpoint and --model exclude each other: a checkpoint brings its model")
        if not self.model and (self.pretrained or self.head):
            option = "--pretrained" if self.pretrained else "--head"
            raise click.UsageError(f"{option} needs --model: the open_clip model it belongs to")
        if self.no_verify and self.data:
            raise click.UsageError("--data is what precisions are compared on; it has no use with --no-verify")
        if self.support and not self.repository:
            raise click.UsageError("--support is what the bank of --triton is made of; it has no use without")

    def precisions(self) -> tuple[Precision, ...]:
        """What is asked for; --int8 asks for the calibrated one too where this machine can write it.

        Raises:
            click.UsageError: FP8 for TensorRT 8.
            EnvironmentMissing: A precision that is asked for needs a package that is not here.
        """
        if self.fp8 and self.opset == OPSETS[0]:
            raise click.UsageError("--fp8 needs --opset 18 or later: TensorRT 8, which 16 is for, has no FP8 graphs")
        wanted = (self.only_precision,) if self.only_precision else _precisions(self.fp16, self.int8, self.fp8)
        missing = nncf_missing() if self.only_precision == "int8-static" else None
        if "fp8" in wanted:
            missing = modelopt_missing()
        if missing is not None:
            raise missing
        return wanted


def run(arguments: Arguments) -> None:
    """Do the job of m2df-export.

    Raises:
        click.UsageError: Options that contradict each other.
        InputError: No model to export, or one that cannot be used.
        EnvironmentMissing: TensorRT engines were insisted on, and this machine cannot build them.
        CheckFailed: A precision is beyond its gates.
    """
    arguments.check()
    model, pretrained, repository = arguments.model, arguments.pretrained, arguments.repository
    clips = check_inputs(repository, arguments.support) if repository else None
    precisions = arguments.precisions()
    if arguments.tensorrt:
        engine_precision(precisions)
        require_tensorrt()
    source_path = None if model else _checkpoint_path(arguments.checkpoint)
    out = arguments.out or BUNDLES / _bundle_name(source_path, model, pretrained)
    from m2df_export.bundle import check_target

    check_target(out)
    started = time.monotonic()
    loaded = _load(source_path, model, pretrained)
    from m2df_export.pipeline import ExportOptions, export_bundle

    optional = tuple(p for p in precisions if p == "int8-static" and p != arguments.only_precision)
    options = ExportOptions(
        out, precisions, int(arguments.opset), not arguments.no_verify, arguments.data, arguments.archive, optional
    )
    with stages("export", options.steps) as advance:
        result = export_bundle(loaded, options, advance)
    if arguments.tensorrt or "fp16" in precisions:
        after_export(out, engine_precision(precisions), arguments.engine, options.verify, insist=arguments.tensorrt)
    served = _serve(out, clips, repository) if repository and clips else None
    seconds = time.monotonic() - started
    if arguments.as_json:
        emit_json({**json_record(result, seconds), "triton": triton_record(served) if served else None})
        return
    emit(summary(result, options, seconds))
    if served:
        emit(triton_summary(served))


def _serve(bundle: Path, support: Path, repository: Path) -> Repository:
    from m2df_runtime.bundle.bundle import Bundle

    return publish(Bundle.open(bundle), support, repository)


def _checkpoint_path(given: Path | None) -> Path:
    from m2df_train.model.run_folder import newest_checkpoint

    path = given or newest_checkpoint()
    if path is None:
        raise InputError(
            "there is no training run in runs/ and no model is named",
            "train one with m2df-train, or name a pretrained CLIP: m2df-export --model ViT-B-16 --pretrained openai",
        )
    return path


def _bundle_name(checkpoint: Path | None, model: str | None, pretrained: str | None) -> str:
    """Directory name of a bundle: that of the run, or model and weights."""
    if checkpoint is not None:
        path = checkpoint.resolve()
        return path.name if path.is_dir() else (path.parent.name if path.stem == "best" else path.stem)
    weights = Path(pretrained).stem if pretrained and ("/" in pretrained or "\\" in pretrained) else pretrained
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(part for part in (model, weights) if part)).strip("-.")


def _load(checkpoint: Path | None, model: str | None, pretrained: str | None) -> Checkpoint:
    from m2df_export.pipeline import pretrained_model
    from m2df_train.model.checkpoint import load_checkpoint

    if checkpoint is not None:
        return load_checkpoint(checkpoint)
    assert model is not None  # _checkpoint_path refused to find nothing
    return pretrained_model(model, pretrained)


def _precisions(fp16: bool, int8: bool, fp8: bool = False) -> tuple[Precision, ...]:
    """What the options ask for; --int8 asks for the calibrated one too where this machine can write it."""
    wanted: list[Precision] = ["fp32"]
    if fp16:
        wanted.append("fp16")
    if int8:
        wanted.append("int8")
        missing = nncf_missing()
        if missing is None:
            wanted.append("int8-static")
        else:
            say(f"int8-static: not written ({missing.message}; {missing.hint})")
    if fp8:
        wanted.append("fp8")
    return tuple(wanted)


def json_record(result: ExportResult, seconds: float) -> dict[str, object]:
    """The result as the object `--json` prints."""
    return {
        "bundle": str(result.bundle),
        "zip": None if result.archive is None else str(result.archive),
        "verified": bool(result.reports),
        "files": [
            {"graph": f.graph, "precision": f.precision, "file": f.file, "bytes": f.bytes, "cosine": f.cosine}
            for f in result.files
        ],
        "parity": {precision: report.summary().model_dump() for precision, report in result.reports.items()},
        "seconds": round(seconds, 1),
    }


def summary(result: ExportResult, options: ExportOptions, seconds: float) -> str:
    """The result as a small table."""
    lines = [f"{'graph':<9}{'precision':<11}{'MB':>8}  cosine"]
    for file in result.files:
        cosine = "unverified" if file.cosine is None else f"{file.cosine:.6f}"
        lines.append(f"{file.graph:<9}{file.precision:<11}{file.bytes / 1e6:>8.2f}  {cosine}")
    for precision, report in result.reports.items():
        top1 = ""
        if report.episodes is not None:
            top1 = f", same answer as PyTorch {report.episodes.agreement:.1%}"
        lines.append(f"{precision}: {report.cpu_ms:.0f} ms of CPU per query{top1}")
    if not options.verify:
        lines.append("unverified: not compared with PyTorch")
    if result.archive is not None:
        lines.append(f"zip: {result.archive}")
    lines.append(f"bundle: {result.bundle}   ({seconds:.0f} s)")
    return "\n".join(lines)


def main() -> None:
    """Entry point of m2df-export."""
    main_entry(cli)


if __name__ == "__main__":
    main()
