"""`m2df-train import`: a checkpoint of CLIP-MDMF or CLIP-FSAR to one of m2df."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2df_runtime.commands.console import emit, emit_json, progress
from m2df_train.public_benchmarks import BENCHMARKS

if TYPE_CHECKING:
    from m2df_train.importing.importer import ImportReport
    from m2df_train.model.checkpoint import Checkpoint

# Literals, because the module that defines them is too heavy for --help.
PRESETS = ("official-m2df", "official-fsar")
REPORT = "import.json"

EPILOG = """\b
Examples:
  m2df-train import fully_trained.pt --preset official-m2df --dataset hmdb51 --shot 5
  m2df-train import checkpoint_epoch_00020.pyth --dataset kinetics100 --out runs/fsar-k100
  m2df-train import fully_trained.pt --dataset ssv2-small --text-pretrained open_clip_model.safetensors
  m2df-train import fully_trained.pt --dataset ucf101 --text-model local-dir:clip   no network
  m2df-train import fully_trained.pt --dataset ucf101 --set head.options.otam.bidirectional=false

The result is exported like any run: m2df-export --checkpoint runs/NAME
"""


@click.command("import", epilog=EPILOG)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--preset", type=click.Choice(PRESETS), help="Repository it comes from.  [default: found out]")
@click.option("--dataset", type=click.Choice(BENCHMARKS), required=True, help="Benchmark it was trained on.")
@click.option("--shot", type=click.Choice(["1", "5"]), default="1", show_default=True, help="Shots it is tested with.")
@click.option("--out", type=click.Path(path_type=Path), help="Run directory.  [default: runs/<time>-import-<dataset>]")
@click.option("--text-model", metavar="NAME", help="CLIP that gives the text tower.  [default: as the image tower]")
@click.option(
    "--text-pretrained", metavar="TAG", default="openai", show_default=True, help="Its weights: a tag or a file."
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Over the preset; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print the report, with every key, as one JSON object.")
def import_command(out: Path | None, as_json: bool, shot: str, **request: Any) -> None:  # noqa: ANN401 - click's
    """Import a checkpoint of the CLIP-MDMF or the CLIP-FSAR repository.

    Such a file holds the image tower and the head. The text tower is that of the CLIP it was trained
    from; pixels, frame sampling, matching and labels are those of the repository.
    """
    folder = _folder(out, request["dataset"])
    with progress("loading PyTorch", 3) as advance:
        from m2df_train.importing.importer import ImportRequest, import_official
        from m2df_train.model.checkpoint import save_checkpoint
        from m2df_train.model.run_folder import BEST

        advance(1)
        checkpoint, report = import_official(ImportRequest(shot=1 if shot == "1" else 5, **request))
        advance(1)
        save_checkpoint(folder / BEST, checkpoint)
        advance(1)
    record = _record(folder / BEST, checkpoint, report)
    _write_report(folder, record)
    if as_json:
        emit_json(record)
    else:
        emit(_summary(folder / BEST, checkpoint, report))


def _folder(out: Path | None, dataset: str) -> Path:
    from m2df_runtime.errors import InputError
    from m2df_train.model.run_folder import BEST, RECIPE, RUNS

    folder = out or RUNS / f"{time.strftime('%Y%m%d-%H%M%S')}-import-{dataset}"
    if (folder / BEST).exists() or (folder / RECIPE).exists():
        raise InputError(f"{folder}: holds a run already", "name another --out")
    return folder


def _record(path: Path, checkpoint: Checkpoint, report: ImportReport) -> dict[str, object]:
    return {
        "checkpoint": str(path),
        **asdict(report),
        "clip": checkpoint.clip.model_dump(mode="json"),
        "head_options": checkpoint.head.options.model_dump(mode="json"),
        "prompt": checkpoint.prompt,
        "labels": checkpoint.labels,
        "training": checkpoint.source.training,
    }


def _write_report(folder: Path, record: dict[str, object]) -> None:
    import json

    from m2df_runtime.files import atomic_write

    atomic_write(folder / REPORT, json.dumps(record, indent=2).encode())


def _summary(path: Path, checkpoint: Checkpoint, report: ImportReport) -> str:
    clip, training = checkpoint.clip, checkpoint.source.training
    otam = checkpoint.head.options.otam
    classes = len(set(checkpoint.labels.values()))
    in_tower = sum(name.startswith("backbone.") for name in report.used.values())
    lines = [
        f"{report.preset}: head {report.head}, image tower {report.tower}, text tower {report.text_model}",
        f"keys used: {len(report.used)} ({in_tower} of the image tower, {len(report.used) - in_tower} of the head)",
        *_listed("ignored, equal second copies", list(report.duplicates)),
        *_listed("ignored, never used by the official code", report.unused),
        *_listed("missing and not needed", report.missing),
        f"pixels: {clip.resize} {clip.short_side} {clip.interpolation}{'' if clip.antialias else ', no antialias'}, "
        f"crop {clip.size}, mean {_triple(clip.mean)}, std {_triple(clip.std)}",
        f"frames: {clip.frames}, {clip.sampler}{_random_note(clip.sampler, training)}",
        f"matching: OTAM {'in both directions' if otam.bidirectional else 'in one direction'}, lambda {otam.lam:g}",
        f"labels: {classes} classes of {training['dataset']}, prompt {checkpoint.prompt!r}",
        f"every key: {path.parent / REPORT}",
        f"checkpoint: {path}",
    ]
    return "\n".join(lines)


def _listed(title: str, keys: list[str]) -> list[str]:
    return [f"{title}: {len(keys)}", *(f"  {key}" for key in keys)] if keys else []


def _random_note(sampler: str, training: dict[str, Any]) -> str:
    drawn = sampler == "segment_center" and training["random_test_frames"]
    return " (the repository draws one at random of each segment)" if drawn else ""


def _triple(values: tuple[float, float, float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
