"""An engine's walk held against the reference's: what differs, and where that begins."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from m2df_export.check.episodes import EpisodeResult, compare_answers
from m2df_export.check.process import Ended, run_module
from m2df_export.check.stages import (
    ALONE,
    EPISODES,
    STAGES,
    START,
    Stage,
    StageResult,
    compare_clips,
    compare_numbers,
    differing_fields,
)
from m2df_export.check.walk import INFO, Request, read_answers, read_results
from m2df_runtime.bundle.manifest import GRAPHS, GraphName, PrecisionParity
from m2df_runtime.engine_names import BackendName, Precision
from m2df_runtime.parity import Drift, Gates, drift, gates_of, worst

_ENVIRONMENT = 3  # exit status of a process whose engine is not on this machine


@dataclass(frozen=True)
class Reference:
    """What engines are held against, with its results in `folder`.

    Attributes:
        folder: Results of its process.
        name: For people: engine, precision and path.
        precision: Of its graphs; PyTorch is fp32.
        own: Whether it is the bundle's own graphs, whose common errors no comparison shows.
        info: What its process wrote of itself.
        request: What its process was asked, with the clips it could read.
        source: Where the clips come from.
        random: Whether the weights are random, so that top-1 says nothing.
    """

    folder: Path
    name: str
    precision: Precision
    own: bool
    info: dict[str, Any]
    request: Request
    source: str
    random: bool


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
        graphs: Each graph on drawn inputs, at export.
        cpu_ms: CPU time of one query clip through the visual and the query graph on one thread, at export.
        problems: What is out of tolerance, in words: of each graph the first thing.
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
    graphs: dict[GraphName, Drift]
    cpu_ms: float | None
    problems: tuple[str, ...]
    seconds: float

    def summary(self) -> PrecisionParity:
        """The part that stands in the manifest."""
        episodes = self.episodes
        return PrecisionParity(
            passed=self.status == "passed",
            top1_agreement=None if episodes is None else episodes.agreement,
            accuracy_difference=None if episodes is None else episodes.difference / 100,
            cpu_ms=self.cpu_ms,
        )


def run_walk(request: Request, folder: Path) -> Ended:
    """Walk in a process of its own, which leaves its results in a new folder."""
    folder.mkdir()
    request.write(folder)
    return run_module("m2df_export.check.walk", folder)


def measure(
    bundle: Path, backend: BackendName, precision: Precision, reference: Reference, folder: Path
) -> EngineResult:
    """Run one engine in its own process and compare what it left with the reference's results."""
    results = Path(tempfile.mkdtemp(dir=folder, prefix=f"{backend}-{precision}-")) / "walk"
    request = replace(
        reference.request,
        kind="bundle",
        path=os.fspath(bundle.resolve()),
        backend=backend,
        precision=precision,
        reference=os.fspath(reference.folder),
    )
    start = time.monotonic()
    ended = run_walk(request, results)
    seconds = time.monotonic() - start
    if ended.code == _ENVIRONMENT:
        return EngineResult(backend, precision, None, "skipped", None, ended.said, (), None, {}, None, (), seconds)
    info = json.loads((results / INFO).read_text(encoding="utf-8")) if (results / INFO).exists() else {}
    gates = gates_of(backend, precision, reference.precision)
    stages = [found for stage in STAGES if (found := _compare(stage, results, info, reference, gates))]
    episodes = None
    answers, expected = read_answers(results), read_answers(reference.folder)
    if answers is not None and expected is not None:
        episodes = compare_answers(answers, expected, [name for _, name, _ in request.clips], gates)
    graphs, cpu_ms = _graphs(read_results(results, ALONE), read_results(reference.folder, ALONE))
    problems: list[tuple[str, str]] = [(found.stage, found.problem) for found in stages if found.problem]
    problems += [(ALONE, f"{name}: {problem}") for name, found in graphs.items() if (problem := found.problem(gates))]
    if ended.code:
        done = {found.stage for found in stages} | ({ALONE} if graphs else set())
        problems.append((next((s for s in request.steps if s not in done), EPISODES) if info else START, ended.failure))
    elif episodes is not None and episodes.problem:
        problems.append((EPISODES, episodes.problem))
    stage, reason = problems[0] if problems else (None, None)
    return EngineResult(
        backend=backend,
        precision=precision,
        engine=info.get("engine"),
        status="failed" if problems else "passed",
        stage=stage,
        reason=reason,
        stages=tuple(stages),
        episodes=episodes,
        graphs=graphs,
        cpu_ms=cpu_ms,
        problems=_in_words(precision, problems),
        seconds=seconds,
    )


def _graphs(
    actual: Mapping[str, NDArray[Any]] | None, expected: Mapping[str, NDArray[Any]] | None
) -> tuple[dict[GraphName, Drift], float | None]:
    """Distance of each graph's outputs on drawn inputs, and the time of a query."""
    if actual is None or expected is None:
        return {}, None
    graphs: dict[GraphName, Drift] = {
        graph: worst(drift(actual[k], v) for k, v in expected.items() if k.startswith(f"{graph}/"))  # type: ignore[misc]
        for graph in GRAPHS
    }
    return graphs, float(actual["cpu_ms"])


def _in_words(precision: Precision, problems: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Problems for one line: of each graph the first, of what no graph computes all."""
    graphs = {str(stage): graph for stage, graph in STAGES.items()}
    words: dict[str, str] = {}
    for stage, problem in problems:
        graph, _, reason = problem.partition(": ") if stage == ALONE else (graphs.get(stage), "", problem)
        where = f"{precision} {graph} graph" if graph else precision
        words.setdefault(where if graph else reason, f"{where}: {reason}")
    return tuple(words.values())


def _compare(
    stage: Stage, results: Path, info: dict[str, Any], reference: Reference, gates: Gates
) -> StageResult | None:
    actual, expected = read_results(results, stage), read_results(reference.folder, stage)
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
