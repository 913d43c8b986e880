"""`m2df-doctor`: what works on this machine, and what to do about what does not.

Every engine is tried, not only looked up: an installed GPU build whose CUDA libraries do not load
counts as missing.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import click

from m2df_runtime import __version__
from m2df_runtime.commands.console import M2dfGroup, emit, emit_json, main_entry
from m2df_runtime.commands.fastest import ROUNDS, measure_engines
from m2df_runtime.cpus import MAX_THREADS, available_cpus
from m2df_runtime.engine_names import EngineName
from m2df_runtime.errors import EnvironmentMissing, M2dfError
from m2df_runtime.installed import version_of
from m2df_runtime.user_cache import cache_dir, user_cache

Status = Literal["ok", "missing", "failed", "info"]
MARKS: dict[Status, tuple[str, str]] = {
    "ok": ("ok", "green"),
    "missing": ("--", "yellow"),
    "failed": ("FAIL", "red"),
    "info": ("  ", "white"),
}
RUNTIME_PACKAGES = (
    "numpy",
    "opencv-python-headless",
    "av",
    "pillow",
    "tokenizers",
    "pydantic",
    "pyyaml",
    "click",
    "ftfy",
    "rich",
)
TRAINING_PACKAGES = ("torch", "open_clip_torch", "safetensors", "onnx", "onnxscript")
OPTIONAL_PACKAGES = {
    "paho-mqtt": ("mqtt", "--mqtt"),
    "prometheus_client": ("metrics", "--metrics-port"),
    "ray": ("ray", "--engine ray"),
    "fastapi": ("serve", "m2df-run serve"),
    "uvicorn": ("serve", "m2df-run serve"),
    "matplotlib": ("report", "m2df-eval --report"),
    "scikit-learn": ("report", "m2df-eval --report"),
}
REPLACED_BY = {"opencv-python-headless": "opencv-python"}  # either one provides cv2
PROBE_SECONDS = 10.0
_NEWEST = ""  # what --measure without a bundle stands for


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Attributes:
        name: Stable key.
        status: `ok`, `missing` (optional), `failed` (needed), or `info`.
        detail: Version, or the reason why it cannot be used.
        hint: What to install or do.
        needed: Whether m2df-run on the CPU needs it.
    """

    name: str
    status: Status
    detail: str
    hint: str | None = None
    needed: bool = False


def examine() -> list[Check]:
    """Look at everything; takes a second or two and changes nothing."""
    runtime = [_package(name, needed=True) for name in RUNTIME_PACKAGES]
    training = [_package(name, hint="pip install 'm2df[train]', for training and export") for name in TRAINING_PACKAGES]
    optional = [
        _package(name, hint=f"pip install 'm2df[{extra}]', for {option}")
        for name, (extra, option) in OPTIONAL_PACKAGES.items()
    ]
    return [
        Check("python", "info", f"{platform.python_version()} ({sys.executable})"),
        Check("platform", "info", f"{platform.platform()}, {available_cpus()} processors to use"),
        Check("m2df", "info", __version__),
        *runtime,
        _attempt("backend cpu", lambda: _backend("cpu"), needed=True),
        _attempt("backend cuda", lambda: _backend("cuda")),
        _attempt("backend tensorrt", lambda: _backend("tensorrt")),
        _attempt("backend openvino", lambda: _backend("openvino")),
        _attempt("auto", _auto),
        _attempt("decode", _decode, needed=True),
        _gpu(),
        *optional,
        *training,
        _weights_cache(),
        _own_cache(),
    ]


def _package(name: str, *, needed: bool = False, hint: str | None = None) -> Check:
    version = version_of(name)
    if version is None and name in REPLACED_BY and (version := version_of(REPLACED_BY[name])):
        name = REPLACED_BY[name]
    if version is not None:
        return Check(name, "ok", version, needed=needed)
    return Check(name, "failed" if needed else "missing", "not installed", hint or f"pip install {name}", needed)


def _attempt(name: str, run: Callable[[], str], *, needed: bool = False) -> Check:
    """Run a probe; whatever it raises is the reason why the thing cannot be used."""
    status: Status = "failed" if needed else "missing"
    try:
        return Check(name, "ok", run(), needed=needed)
    except M2dfError as error:
        return Check(name, status, error.message, error.hint, needed)
    except Exception as error:  # a broken installation can raise anything
        return Check(name, status, f"{type(error).__name__}: {error}", "reinstall the package", needed)


def _backend(name: EngineName) -> str:
    from m2df_runtime.backends.model import probe_backend

    return probe_backend(name)


def _auto() -> str:
    """What is taken for the newest bundle, and why."""
    from m2df_runtime import load

    model = load()
    fixed = f"{model.backend} {model.precision}, by the fixed rule: nothing was measured here (m2df-doctor --measure)"
    return f"{model.bundle.path.name}: {model.about_engine or fixed}"


def _decode() -> str:
    """Encode eight frames in memory and decode them again."""
    import io

    import av
    import numpy as np

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        for value in range(0, 256, 32):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), value, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer, "r") as reader:
        count = len(list(reader.decode(video=0)))
    if count != 8:
        raise EnvironmentMissing(f"PyAV decoded {count} of 8 frames", "pip install --force-reinstall av")
    return f"PyAV {av.__version__}, 8 of 8 frames"


def _gpu() -> Check:
    program = shutil.which("nvidia-smi")
    if program is None:
        hint = "only needed for GPU inference: install the NVIDIA driver"
        return Check("gpu", "missing", "no NVIDIA driver (nvidia-smi is not there)", hint)
    query = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("gpu", "missing", f"nvidia-smi does not run: {error}", "check the driver")
    if done.returncode or not done.stdout.strip():
        reason = (done.stderr or done.stdout).strip().partition("\n")[0] or f"exit code {done.returncode}"
        return Check("gpu", "missing", f"nvidia-smi: {reason}", "check the driver")
    return Check("gpu", "ok", "; ".join(done.stdout.strip().splitlines()))


def _weights_cache() -> Check:
    home = Path(os.environ.get("HF_HOME") or (user_cache() or Path("~/.cache")) / "huggingface")
    folder = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    return _folder("weights cache", folder, "pretrained weights are downloaded here")


def _own_cache() -> Check:
    return _folder(
        "m2df cache",
        cache_dir(),
        "support banks of read-only folders, TensorRT engines of read-only bundles and what --measure found go here",
    )


def _folder(name: str, folder: Path, purpose: str) -> Check:
    if not os.path.isdir(folder):
        return Check(name, "info", f"{folder}: not there yet; {purpose}")
    sizes = [path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return Check(name, "info", f"{folder}: {len(sizes)} files, {sum(sizes) / 2**20:.1f} MiB; {purpose}")


def verdict(checks: Sequence[Check]) -> list[str]:
    """Names of the needed things that failed; empty where m2df-run works on the CPU."""
    return [check.name for check in checks if check.needed and check.status == "failed"]


EXAMPLES = """
\b
Examples:
  m2df-doctor           what works here, and what to do about what does not
  m2df-doctor --json    the same, one object per check
  m2df-doctor --measure                time the newest bundle on every engine; --backend auto takes the fastest then
  m2df-doctor --measure bundles/mine   the same for another one
  m2df-doctor --measure --threads 1    the same for m2df-run --threads 1
  m2df-doctor --measure --busy         the same where other programs always run

Exit codes: 0 m2df-run works on the CPU, 3 it does not. With --measure: 1 nothing was kept.
"""


@click.command("m2df-doctor", cls=M2dfGroup, epilog=EXAMPLES, subcommand_metavar="")
@click.option(
    "--measure",
    metavar="[BUNDLE]",
    is_flag=False,
    flag_value=_NEWEST,
    help="Time a bundle (by default the newest in bundles/, else the demo's) on every engine and in every precision "
    "here, and take the fastest from now on.",
)
@click.option(
    "--rounds", type=click.IntRange(1, 10_000), help=f"Queries that --measure times on each. [default: {ROUNDS}]"
)
@click.option("--threads", type=click.IntRange(1, MAX_THREADS), help="CPU threads. [default: the cores it may use]")
@click.option("--busy", is_flag=True, help="Keep what --measure found though other programs run: they always do here.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per check, or per engine, and line.")
def cli(measure: str | None, rounds: int | None, threads: int | None, busy: bool, as_json: bool) -> None:
    """Show what works on this machine: engines, decoding, GPU, packages, caches; or find its fastest engine."""
    if measure is not None:
        path = None if measure == _NEWEST else Path(measure)
        measure_engines(path, rounds or ROUNDS, threads, busy=busy, as_json=as_json)
        return
    for option, given in (("--rounds", rounds), ("--threads", threads), ("--busy", busy or None)):
        if given is not None:
            raise click.UsageError(f"{option} is of --measure")
    checks = examine()
    for check in checks:
        if as_json:
            emit_json(asdict(check))
        else:
            _print(check)
    failed = verdict(checks)
    if failed:
        raise EnvironmentMissing(f"m2df cannot run here: {', '.join(failed)}", "see the hints above")
    if not as_json:
        emit("m2df-run works on this machine")


def _print(check: Check) -> None:
    mark, colour = MARKS[check.status]
    emit(f"{click.style(f'{mark:<4}', fg=colour)} {check.name:<22} {check.detail}")
    if check.hint and check.status in ("missing", "failed"):
        emit(f"{'':<27} -> {check.hint}")


def main() -> None:
    """Entry point of m2df-doctor."""
    main_entry(cli)


if __name__ == "__main__":
    main()
