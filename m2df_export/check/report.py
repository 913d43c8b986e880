"""A verification as text and as JSON records."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from m2df_export.check.compare import Drift
from m2df_export.check.stages import STAGES, StageResult
from m2df_export.check.verify import EngineResult, Verification

FLIPS_SHOWN = 5


def header(found: Verification) -> str:
    """What was compared with what, on which clips."""
    reference = found.reference
    request = reference.request
    classes = len({label for label, _, _ in request.clips})
    clips = f"{len(request.clips)} clips of {classes} classes ({reference.source})"
    episodes = f"{request.episodes} {request.way}-way 1-shot episodes, seed {request.seed}"
    if reference.random:
        episodes = "no episodes: the weights are random"
    lines = [f"reference: {reference.name}", f"clips: {clips}; {episodes}"]
    if reference.own:
        lines.append("note: an error that all of the bundle's graphs share is seen with --against CHECKPOINT only")
    lines.append(
        "stages: on the reference's inputs, and in the chain of the engine's own; "
        "cosine of the worst row, error relative to the largest value"
    )
    if found.absent:
        lines.append(f"not installed here, so not verified: {', '.join(found.absent)}")
    return "\n".join(lines)


def engine_text(result: EngineResult) -> str:
    """One engine as a small table and its verdict."""
    title = f"{result.backend} {result.precision}"
    if result.status == "skipped":
        return f"{title}: not verified: {result.reason}"
    lines = [f"{title} ({result.engine or 'did not start'}, {result.seconds:.1f} s)"]
    if result.stages:
        lines.append(f"  {'stage':<11}{'cosine':>10}{'error':>9}{'in the chain':>14}{'error':>9}")
    lines += [_stage_line(stage) for stage in result.stages]
    if result.episodes is not None:
        episodes = result.episodes
        low, high = episodes.interval
        lines.append(
            f"  episodes: same answer {episodes.agreement:.1%}, accuracy {episodes.accuracy:.2f} %, "
            f"difference {episodes.difference:+.2f} points [{low:+.2f}, {high:+.2f}]"
        )
        if episodes.flips:
            shown = [f"{flip.name} ({flip.flipped} of {flip.drawn})" for flip in episodes.flips[:FLIPS_SHOWN]]
            more = len(episodes.flips) - len(shown)
            lines.append("  flipped: " + ", ".join(shown) + (f" and {more} more" if more else ""))
    if result.status == "failed":
        lines.append(f"  first stage out of tolerance: {place(result)}: {result.reason}")
    return "\n".join(lines)


def place(result: EngineResult) -> str:
    """The first stage out of tolerance, with the graph that computes it."""
    graph = _graph(result)
    return f"{result.stage} ({graph} graph)" if graph else str(result.stage)


def verdict(found: Verification, seconds: float, command: str) -> str:
    """The last line."""
    failed = [f"{r.backend} {r.precision} at {place(r)}" for r in found.results if r.status == "failed"]
    if found.passed:
        return f"PASSED in {seconds:.1f} s: {command}"
    return f"FAILED ({'; '.join(failed) or 'no engine of this bundle is here'}) in {seconds:.1f} s: {command}"


def engine_record(result: EngineResult) -> dict[str, object]:
    """One engine as a JSON object; numbers that are not finite become null."""
    episodes = None
    if result.episodes is not None:
        episodes = {key: value for key, value in asdict(result.episodes).items() if key != "problem"}
    return {
        "backend": result.backend,
        "precision": result.precision,
        "engine": result.engine,
        "status": result.status,
        "stage": result.stage,
        "graph": _graph(result),
        "reason": result.reason,
        "stages": [_stage_record(stage) for stage in result.stages],
        "episodes": episodes,
        "seconds": round(result.seconds, 2),
    }


def verdict_record(found: Verification, seconds: float, command: str) -> dict[str, object]:
    """The last JSON object."""
    reference = found.reference
    return {
        "passed": found.passed,
        "not_installed": list(found.absent),
        "reference": reference.name,
        "clips": len(reference.request.clips),
        "source": reference.source,
        "way": reference.request.way,
        "episodes": reference.request.episodes,
        "seed": reference.request.seed,
        "seconds": round(seconds, 2),
        "command": command,
    }


def _graph(result: EngineResult) -> str | None:
    return next((graph for stage, graph in STAGES.items() if stage == result.stage), None)


def _stage_line(stage: StageResult) -> str:
    state = "ok" if stage.problem is None else "OUT"
    if stage.alone is None:
        equal = "equal" if stage.problem is None else "-"
        return f"  {stage.stage:<11}{equal:>10}{'':>32}  {state}"
    return f"  {stage.stage:<11}{_numbers(stage.alone)}{'':>4}{_numbers(stage.chain)}  {state}"


def _numbers(drift: Drift | None) -> str:
    return f"{'-':>10}{'-':>9}" if drift is None else f"{drift.cosine:>10.6f}{drift.max_rel:>9.1e}"


def _stage_record(stage: StageResult) -> dict[str, Any]:
    return {
        "stage": stage.stage,
        "graph": STAGES[stage.stage],
        "alone": _drift_record(stage.alone),
        "chain": _drift_record(stage.chain),
        "problem": stage.problem,
    }


def _drift_record(drift: Drift | None) -> dict[str, float | None] | None:
    if drift is None:
        return None
    return {"cosine": drift.cosine, "max_rel": drift.max_rel if drift.max_rel != float("inf") else None}
