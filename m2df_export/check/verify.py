"""One verification: the reference first, then every engine and precision in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from m2df_export.check.episodes import ClipFile, clip_files, source_name, usable
from m2df_export.check.measure import EngineResult, Reference, measure, run_walk
from m2df_export.check.process import scratch
from m2df_export.check.walk import INFO, Request, read_results
from m2df_runtime.backends.model import probe_backend
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.engine_names import BACKENDS, ON_CPU, BackendName, Precision
from m2df_runtime.errors import CheckFailed, EnvironmentMissing, InputError
from m2df_train.evaluation.models import is_bundle

_ENGINES: tuple[BackendName, ...] = tuple(name for name in BACKENDS if name != "auto")
# On the CPU ONNX Runtime imitates FP8; other engines and precisions go together all.
_MADE_FOR: dict[Precision, tuple[str, ...]] = {"int8": ON_CPU, "int8-static": ON_CPU, "fp8": ("tensorrt", "cpu")}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VerifyOptions:
    """What to verify.

    Attributes:
        bundle: The bundle.
        against: Checkpoint, run directory or other bundle it is held against; None for its own best graphs.
        data: Folder with one sub-folder of clips per class; None for generated clips.
        backends: Engines that must be there; empty for those that are.
        episodes: Number of 5-way 1-shot episodes.
        seed: Seed of the episodes.
    """

    bundle: Path
    against: Path | None = None
    data: Path | None = None
    backends: tuple[BackendName, ...] = ()
    episodes: int = 200
    seed: int = 0


@dataclass(frozen=True)
class Verification:
    """Everything found; `absent` are engines that nobody asked for and that are not installed."""

    reference: Reference
    results: tuple[EngineResult, ...]
    absent: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether at least one engine ran and none failed."""
        ran = [result for result in self.results if result.status != "skipped"]
        return bool(ran) and all(result.status == "passed" for result in ran)


def verify(options: VerifyOptions) -> Verification:
    """Take clips through the reference and through every engine of a bundle, and compare stage by stage.

    Raises:
        InputError: Bundle, reference or clips cannot be used.
        EnvironmentMissing: An engine that was asked for is not on this machine.
        CheckFailed: The reference itself does not run.
    """
    chosen = engines(Bundle.open(options.bundle), options.backends)
    with scratch() as folder:
        reference = run_reference(options, folder)
        results = [measure(options.bundle, backend, precision, reference, folder) for backend, precision in chosen]
        for result in results:
            if result.status == "skipped" and result.backend in options.backends:
                raise EnvironmentMissing(f"{result.backend} {result.precision}: {result.reason}")
        absent: tuple[str, ...] = () if options.backends else tuple(name for name in _ENGINES if not _installed(name))
        return Verification(reference, tuple(results), absent)


def engines(bundle: Bundle, wanted: Sequence[BackendName]) -> list[tuple[BackendName, Precision]]:
    """Engines and precisions to try: int8 graphs are made for CPUs, fp8 for TensorRT, the others run everywhere.

    Raises:
        EnvironmentMissing: An engine that is asked for is not installed.
    """
    for name in wanted:
        if name != "auto" and not _installed(name):
            probe_backend(name)  # says what to install
    chosen = wanted or [name for name in _ENGINES if _installed(name)]
    return [
        (backend, precision)
        for backend in chosen
        for precision in bundle.manifest.precisions
        if backend in _MADE_FOR.get(precision, BACKENDS)
    ]


def _installed(backend: BackendName) -> bool:
    """Whether an engine's package is there; whether it works is found out in its own process."""
    if backend == "cuda":
        from m2df_runtime.backends.onnxruntime import PROVIDERS, import_onnxruntime

        return PROVIDERS["cuda"] in import_onnxruntime().get_available_providers()
    return backend == "cpu" or importlib.util.find_spec(backend) is not None


def run_reference(options: VerifyOptions, folder: Path) -> Reference:
    """Run the reference over the clips; its results stay in a sub-folder of `folder`.

    Raises:
        InputError: Checkpoint, bundle or clips cannot be used.
        CheckFailed: It does not run.
    """
    source = source_name(options.data)
    clips, way = usable(clip_files(options.data, folder / "clips"), source)
    path = options.against or options.bundle
    graphs = options.against is None or is_bundle(path)
    manifest = Bundle.open(path if graphs else options.bundle).manifest
    precision = manifest.precisions[0] if graphs else "fp32"
    random = manifest.source.random_weights
    request = Request(
        kind="bundle" if graphs else "checkpoint",
        path=os.fspath(path.resolve()),
        backend="cpu",
        precision=precision,
        clips=tuple((clip.label, clip.name, os.fspath(clip.path)) for clip in clips),
        reference=None,
        way=way,
        episodes=0 if random else options.episodes,
        seed=options.seed,
    )
    results, request = _run_on_readable(request, clips, folder, source)
    info = json.loads((results / INFO).read_text(encoding="utf-8"))
    name = f"{info['engine']} {precision}, {path}"
    return Reference(results, name, precision, options.against is None, info, request, source, random)


def _run_on_readable(request: Request, clips: list[ClipFile], folder: Path, source: str) -> tuple[Path, Request]:
    """Run the reference; once more on fewer clips where some cannot be read."""
    results = folder / "reference"
    ended = run_walk(request, results)
    kept = _kept(results)
    if kept is not None and len(kept) < len(clips):
        readable = [clip for clip in clips if clip.name in kept]
        missing = [clip.name for clip in clips if clip.name not in kept]
        logger.warning("%s: left out, cannot be read: %s", source, ", ".join(missing))
        readable, way = usable(readable, source)
        rows = tuple((clip.label, clip.name, os.fspath(clip.path)) for clip in readable)
        request, results = replace(request, clips=rows, way=way), folder / "reference-again"
        ended = run_walk(request, results)
    if ended.code:
        raise (InputError if ended.code == 2 else CheckFailed)(f"the reference {ended.failure}")
    return results, request


def _kept(results: Path) -> list[str] | None:
    decoded = read_results(results, "decode")
    return None if decoded is None else decoded["names"].tolist()
