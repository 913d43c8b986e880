"""`m2df-export engines`, and the same work at the end of an export: TensorRT engines for a bundle."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2df_runtime.commands.console import emit, emit_json, say, spinner
from m2df_runtime.errors import EnvironmentMissing

if TYPE_CHECKING:
    from m2df_export.tensorrt.build import BuiltEngine, EngineOptions
    from m2df_export.tensorrt.parity import EngineParity
    from m2df_runtime.backends.tensorrt.engine_files import Range
    from m2df_runtime.bundle.bundle import Bundle
    from m2df_runtime.engine_names import Precision

EPILOG = """\b
Examples:
  m2df-export engines                               fp16 engines of the newest bundle
  m2df-export engines --bundle bundles/mine --batch 1,1,64 --batch C=1,50,500

Engines go to engines/ in the bundle, or to the user's cache folder where that cannot be written. What is
up to date is kept. Exit codes: 0 done, 1 a build or comparison failed, 2 bad input, 3 no GPU or TensorRT.
"""


def _ranges(context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> dict[str, Range]:
    from m2df_export.tensorrt.build import parse_range

    try:
        return dict(parse_range(value) for value in values)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from None


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of both commands; they arrive together as `engine`."""
    names = ("batch", "workspace_gb", "hardware_compatible", "version_compatible")

    @click.option(
        "--batch",
        multiple=True,
        callback=_ranges,
        metavar="[AXIS=]MIN,OPT,MAX",
        help="Sizes engines are built for: clips at once, and with C=, K= or P= classes, support clips of a class, "
        "texts.  [default: 1,1,16 C=1,5,1000 K=1,1,32 P=1,5,64]",
    )
    @click.option("--workspace-gb", type=click.FloatRange(0, min_open=True), help="Memory for TensorRT's trials.")
    @click.option("--hardware-compatible", is_flag=True, help="Engines for every GPU from Ampere on; slower.")
    @click.option(
        "--version-compatible",
        is_flag=True,
        help="Engines that later TensorRT versions load; slower. They hold host code: M2DF_ENGINE_HOST_CODE=1 "
        "lets them run.",
    )
    @functools.wraps(command)
    def wrapped(*args: Any, **options: Any) -> Any:  # noqa: ANN401 - click hands over every option by name
        engine = {name: options.pop(name) for name in names}
        engine["ranges"] = engine.pop("batch")
        return command(*args, engine=engine, **options)

    return wrapped


@click.command("engines", epilog=EPILOG)
@click.option("--bundle", "path", type=click.Path(path_type=Path), help="Bundle.  [default: newest in bundles/]")
@click.option("--precision", type=click.Choice(["fp16", "fp32", "fp8"]), help="[default: fp16 if the bundle has it]")
@engine_options
@click.option("--force", is_flag=True, help="Build again what is up to date.")
@click.option("--no-verify", is_flag=True, help="Skip the comparison with ONNX Runtime.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per engine and line.")
def engines(
    path: Path | None, precision: Precision | None, engine: dict[str, Any], force: bool, no_verify: bool, as_json: bool
) -> None:
    """Build the TensorRT engines of a bundle for this machine's GPU."""
    from m2df_runtime.bundle.bundle import Bundle
    from m2df_runtime.bundle.shipped import newest_bundle

    require_tensorrt()
    bundle = Bundle.open(path or newest_bundle())
    built, parity = build(bundle, engine_precision(bundle.manifest.precisions, precision), engine, not no_verify, force)
    for item in built:
        if as_json:
            emit_json(json_record(item, parity))
        else:
            emit(describe(item, parity))


def require_tensorrt() -> None:
    """Raise EnvironmentMissing, in the words of the commands, where engines cannot be built."""
    reason = why_not()
    if reason is not None:
        raise EnvironmentMissing(f"TensorRT engines cannot be built: {reason.message}", reason.hint)


def why_not() -> EnvironmentMissing | None:
    """Why no TensorRT engines can be built on this machine; None where they can."""
    from m2df_export.tensorrt.build import tensorrt_ready

    try:
        tensorrt_ready()
    except EnvironmentMissing as error:
        return error
    return None


def engine_precision(present: Sequence[Precision], wanted: Precision | None = None) -> Precision:
    """Precision of the engines.

    Raises:
        click.UsageError: The bundle has only int8 graphs, which are for CPUs.
    """
    if wanted is not None:
        return wanted
    for precision in ("fp16", "fp32"):
        if precision in present:
            return precision
    raise click.UsageError("TensorRT engines are built from fp16 or fp32 graphs: add --fp16")


def build(
    bundle: Bundle, precision: Precision, engine: dict[str, Any], verify: bool, force: bool = False
) -> tuple[list[BuiltEngine], list[EngineParity]]:
    """Build what is missing or stale, and compare the engines with ONNX Runtime on the CPU.

    Raises:
        EnvironmentMissing: TensorRT cannot be used here.
        InputError: TensorRT cannot read the graphs.
        CheckFailed: A build failed, or an engine computes something else.
    """
    from m2df_export.tensorrt.build import EngineOptions, build_engines

    options = EngineOptions(precision, force=force, **engine)
    built = build_engines(bundle, options, spinner)
    return built, _verify(bundle, options, built) if verify else []


def _verify(bundle: Bundle, options: EngineOptions, built: Sequence[BuiltEngine]) -> list[EngineParity]:
    from m2df_export.tensorrt.build import drop_engine
    from m2df_export.tensorrt.parity import check_engines
    from m2df_runtime.backends.model import Model
    from m2df_runtime.backends.tensorrt.backend import host_code_allowed, open_tensorrt
    from m2df_runtime.backends.tensorrt.engine_files import find_engine

    used = find_engine(bundle, "visual", options.precision, open_tensorrt().machine).path.parent
    if used != built[0].path.parent:
        say(f"not compared: this machine uses the engines in {used}, which were built for it alone")
        return []
    # What was built a moment ago may run; what was there before may be anyone's.
    new = options.version_compatible and not any(item.reused for item in built)
    with spinner("comparing the engines with ONNX Runtime"), host_code_allowed() if new else nullcontext():
        actual = Model(bundle, backend="tensorrt", precision=options.precision)
        reference = Model(bundle, backend="cpu", precision=options.precision)
        drop = functools.partial(drop_engine, bundle, options)
        return check_engines(actual, reference, drop, options.sizes)


def after_export(out: Path, precision: Precision, engine: dict[str, Any], verify: bool, insist: bool) -> None:
    """Build the engines of a bundle just written; where that is impossible, say why in one line."""
    from m2df_runtime.bundle.bundle import Bundle

    reason = None if insist else why_not()
    if reason is not None:
        say(f"TensorRT engines: not built ({reason.message})")
        return
    start = time.monotonic()
    built, parity = build(Bundle.open(out), precision, engine, verify)
    for item in built:
        say(describe(item, parity))
    say(f"TensorRT engines: {built[0].path.parent}   ({time.monotonic() - start:.0f} s)")


def describe(item: BuiltEngine, parity: Sequence[EngineParity]) -> str:
    """One engine as a line."""
    state = "up to date" if item.reused else f"built in {item.seconds:.0f} s"
    cosine = next((f", cosine {p.cosine:.6f}" for p in parity if p.graph == item.graph), "")
    return f"{item.graph:<9}{item.bytes / 1e6:>8.2f} MB  {state}{cosine}"


def json_record(item: BuiltEngine, parity: Sequence[EngineParity]) -> dict[str, object]:
    """One engine as the object `--json` prints."""
    cosine = next((p.cosine for p in parity if p.graph == item.graph), None)
    return {
        "graph": item.graph,
        "engine": str(item.path),
        "bytes": item.bytes,
        "seconds": item.seconds,
        "reused": item.reused,
        "cosine": cosine,
    }
