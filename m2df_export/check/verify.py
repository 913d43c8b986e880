"""One verification: the reference first, then every engine and precision in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from m2df_export.check.compare import Gates, gates_of
from m2df_export.check.paired_episodes import EpisodeResult, compare_answers
from m2df_export.check.process import failure, run_process
from m2df_export.check.reference import Reference, VerifyOptions, run_reference
from m2df_export.check.stages import (
    EPISODES,
    STAGES,
    START,
    Stage,
    StageResult,
    compare_clips,
    compare_numbers,
    differing_fields,
)
from m2df_export.check.worker import INFO, read_answers, read_stage
from m2df_runtime.backends.model import BACKENDS, ON_CPU, BackendName, probe_backend
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.bundle.manifest import Precision
from m2df_runtime.errors import EnvironmentMissing

_ENGINES: tuple[BackendName, ...] = tuple(name for name in BACKENDS if name != "auto")
# On the CPU ONNX Runtime imitates FP8; other engines and precisions go together all.
_MADE_FOR: dict[Precision, tuple[str, ...]] = {"int8": ON_CPU, "int8-static": ON_CPU, "fp8": ("tensorrt", "cpu")}
_ENVIRONMENT = 3  # exit status of a process whose engine is not on this machine


@dataclass(frozen=True)
class EngineResult:
    """One engine and precision.

    Attributes:
        backend: Engine.
        precision: Precision.
        engine: Engine, version and provider as they say themselves; None where it did not start.
        status: `skipped` is an engine that is not on this machine.
        stage: First stage out of tolerance; None where none is.
        reason: What is wrong there, or why it was skipped.
        stages: All stages it came to.
        episodes: The episodes; None for random weights, or where it did not come so far.
        seconds: Wall time.
    """

    backend: str
    precision: Precision
    engine: str | None
    status: Literal["passed", "failed", "skipped"]
    stage: str | None
    reason: str | None
    stages: tuple[StageResult, ...]
    episodes: EpisodeResult | None
    seconds: float


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
    with tempfile.TemporaryDirectory(prefix="m2df-") as name:
        folder = Path(name)
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


def measure(
    bundle: Path, backend: BackendName, precision: Precision, reference: Reference, folder: Path
) -> EngineResult:
    """Run one engine in its own process and compare what it left with the reference's results."""
    results = folder / f"{backend}-{precision}"
    request = replace(
        reference.request,
        kind="bundle",
        path=os.fspath(bundle.resolve()),
        backend=backend,
        precision=precision,
        reference=os.fspath(reference.folder),
    )
    start = time.monotonic()
    code, message = run_process(request, results)
    seconds = time.monotonic() - start
    if code == _ENVIRONMENT:
        return EngineResult(backend, precision, None, "skipped", None, message, (), None, seconds)
    info = json.loads((results / INFO).read_text(encoding="utf-8")) if (results / INFO).exists() else {}
    gates = gates_of(backend, precision, reference.precision)
    stages = [found for stage in STAGES if (found := _compare(stage, results, info, reference, gates))]
    episodes = None
    answers, expected = read_answers(results), read_answers(reference.folder)
    if answers is not None and expected is not None:
        episodes = compare_answers(answers, expected, [name for _, name, _ in request.clips], gates)
    stage, reason = _first_problem(stages, episodes, bool(info), code, message)
    status: Literal["passed", "failed"] = "failed" if stage else "passed"
    return EngineResult(backend, precision, info.get("engine"), status, stage, reason, tuple(stages), episodes, seconds)


def _compare(
    stage: Stage, results: Path, info: dict[str, Any], reference: Reference, gates: Gates
) -> StageResult | None:
    actual, expected = read_stage(results, stage), read_stage(reference.folder, stage)
    if actual is None or expected is None:
        return None
    if STAGES[stage] is None:
        fields = differing_fields(info["clip"], reference.info["clip"], decoding=stage == "decode")
        return compare_clips(stage, actual["digests"], expected["digests"], fields)
    note = None
    if stage == "prompts":
        pairs = zip(actual["texts"].tolist(), expected["texts"].tolist(), strict=True)
        note = next((f"the prompt is {own!r}, the reference's {other!r}" for own, other in pairs if own != other), None)
    return compare_numbers(stage, actual, expected["chain"], gates, note)


def _first_problem(
    stages: Sequence[StageResult], episodes: EpisodeResult | None, started: bool, code: int, message: str
) -> tuple[str | None, str | None]:
    """The first stage out of tolerance and what is wrong; a process that ended early ended in the next stage."""
    for found in stages:
        if found.problem:
            return found.stage, found.problem
    if code and not started:
        return START, failure(code, message)
    if code:
        done = {found.stage for found in stages}
        return next((stage for stage in STAGES if stage not in done), EPISODES), failure(code, message)
    if episodes is not None and episodes.problem:
        return EPISODES, episodes.problem
    return None, None
