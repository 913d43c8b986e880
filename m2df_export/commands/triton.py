"""`m2df-export triton`, and the same work at the end of an export with `--triton`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from m2df_runtime.commands.console import emit, emit_json, progress
from m2df_runtime.errors import InputError

if TYPE_CHECKING:
    from m2df_export.triton.repository import Repository
    from m2df_runtime.bundle.bundle import Bundle
    from m2df_runtime.bundle.prompt_texts import LabelRules
    from m2df_runtime.engine_names import Precision

Device = Literal["gpu", "cpu"]

EPILOG = """\b
Examples:
  m2df-export triton --support actions --out models       the newest bundle and the actions of a folder
  m2df-export triton --bundle bundles/mine --support actions --out models --device cpu

Run it again when the clips change: it adds the next version of the bank and of the pipeline, and of the other
models only where the bundle is another one. docs/triton.md says how servers take it over.
Exit codes: 0 done, 2 bad input.
"""


@dataclass(frozen=True)
class Instances:
    """How the server runs the models; None is what the options' help says."""

    device: Device | None = None
    precision: Precision | None = None
    max_batch: int = 16
    tensorrt: bool = False


@click.command("triton", epilog=EPILOG)
@click.option("--bundle", "path", type=click.Path(path_type=Path), help="Bundle.  [default: newest in bundles/]")
@click.option("--support", type=click.Path(path_type=Path), metavar="DIR", help="Folder with one sub-folder per class.")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The model repository.")
@click.option(
    "--device", type=click.Choice(["gpu", "cpu"]), help="Where instances run.  [default: gpu if the bundle has fp16]"
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8", "int8-static"]),
    help="[default: fp16 on a GPU, on a CPU the fastest that passed its parity check]",
)
@click.option(
    "--max-batch", type=click.IntRange(1, 1024), default=16, show_default=True, help="Most clips of one request or run."
)
@click.option("--tensorrt", is_flag=True, help="Let ONNX Runtime run the visual graph through TensorRT.")
@click.option("--prompt", metavar="TEXT", help="Prompt template with one {}.  [default: the bundle's]")
@click.option("--labels", type=click.Path(path_type=Path), metavar="CSV", help="Columns class,text: texts of classes.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def triton(
    path: Path | None,
    support: Path | None,
    out: Path,
    prompt: str | None,
    labels: Path | None,
    as_json: bool,
    **instances: Any,  # noqa: ANN401 - click hands over every option by name
) -> None:
    """Write a bundle and the bank of a support folder as a model repository of Triton Inference Server."""
    from m2df_runtime.bundle.bundle import Bundle
    from m2df_runtime.bundle.prompt_texts import read_labels, warn_unmatched
    from m2df_runtime.bundle.shipped import newest_bundle

    support = check_inputs(out, support)
    bundle = Bundle.open(path or newest_bundle())
    texts = read_labels(labels) if labels else {}
    rules = bundle.manifest.text.rules.over(texts, prompt) if texts or prompt is not None else None
    result = publish(bundle, support, out, Instances(**instances), rules)
    if labels:
        warn_unmatched(labels, texts, result.classes)
    if as_json:
        emit_json(json_record(result))
    else:
        emit(summary(result))


def check_inputs(out: Path, support: Path | None) -> Path:
    """The support folder, if both places can be used; looked at before anything long begins.

    Raises:
        InputError: No support folder is named or it holds no clips, or `out` cannot be a repository.
    """
    from m2df_export.triton.repository import check_repository
    from m2df_runtime.bank.folder import read_support

    if support is None:
        raise InputError(
            f"{out}: a model repository needs the clips of its bank",
            "name a folder with one sub-folder per class: --support DIR",
        )
    if not support.is_file():
        read_support(support)
    check_repository(out)
    return support


def publish(
    bundle: Bundle,
    support: Path,
    out: Path,
    instances: Instances = Instances(),
    rules: LabelRules | None = None,
) -> Repository:
    """Bring the bank of a support folder up to date and write what the repository lacks.

    Raises:
        InputError: The clips, the bundle or the repository cannot be used.
    """
    from m2df_export.triton.config import Target
    from m2df_export.triton.repository import write_repository
    from m2df_runtime.backends.model import Model
    from m2df_runtime.backends.precisions import default_precision
    from m2df_runtime.bank.bank import SupportBank

    device = instances.device or ("gpu" if default_precision(bundle, "cuda") == "fp16" else "cpu")
    precision = instances.precision or default_precision(bundle, "cpu" if device == "cpu" else "cuda")
    bundle.graph_file("visual", precision)
    if device == "gpu" and precision in ("int8", "int8-static"):
        raise InputError(f"the {precision} graphs are for CPUs", "use --device cpu, or another --precision")
    if device == "cpu" and instances.tensorrt:
        raise InputError("TensorRT runs on GPUs", "use --device gpu, or leave out --tensorrt")
    bank = SupportBank.of(Model(bundle), support, rules, progress=progress)
    return write_repository(out, bundle, bank, Target(device, precision, instances.max_batch, instances.tensorrt))


def json_record(result: Repository) -> dict[str, Any]:
    """The result as the object `--json` prints."""
    return {
        "repository": str(result.path),
        "device": result.target.device,
        "precision": result.target.precision,
        "classes": list(result.classes),
        "models": {m.model: {"version": m.version, "new": m.new, "config_kept": m.config_kept} for m in result.models},
    }


def summary(result: Repository) -> str:
    """The result as a small table."""
    lines = [f"{'model':<8}{'version':>8}"]
    for model in result.models:
        lines.append(f"{model.model:<8}{model.version:>8}  {'new' if model.new else 'as before'}")
    kept = [f"{model.model}/config.pbtxt" for model in result.models if model.config_kept]
    if kept:
        lines.append(f"kept, though these options would write others: {', '.join(kept)}")
    lines.append(f"{len(result.classes)} classes, {result.target.precision} for {result.target.device.upper()}s")
    lines.append(f"repository: {result.path}")
    return "\n".join(lines)
