"""A verification as text and as JSON records, and an export's parity.json and parity.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from m2df_export.check.episodes import SHOT
from m2df_export.check.measure import EngineResult, Reference
from m2df_export.check.stages import STAGES, StageResult
from m2df_export.check.verify import Verification
from m2df_runtime.engine_names import Precision
from m2df_runtime.parity import GATES, Drift

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


def parity_record(reference: Reference, results: Mapping[Precision, EngineResult]) -> dict[str, Any]:
    """Contents of parity.json: what an export was measured to be."""
    request, drawn = reference.request, None
    if not reference.random:
        drawn = {"source": reference.source, "way": request.way, "shot": SHOT, "count": request.episodes}
        drawn |= {"seed": request.seed, "classes": len({label for label, _, _ in request.clips})}
        drawn |= {"clips": len(request.clips)}
    return {
        "reference": reference.name,
        "engine": next(iter(results.values())).engine,
        "episodes": drawn,
        "precisions": {precision: _precision_record(result) for precision, result in results.items()},
    }


def _precision_record(result: EngineResult) -> dict[str, Any]:
    episodes = None
    if result.episodes is not None:
        episodes = {
            "top1_agreement": result.episodes.agreement,
            "accuracy": round(result.episodes.accuracy / 100, 9),
            "reference_accuracy": round(result.episodes.reference_accuracy / 100, 9),
        }
    return {
        "passed": result.status == "passed",
        "graphs": {graph: asdict(found) for graph, found in result.graphs.items()},
        "stages": [_stage_record(stage) for stage in result.stages],
        "episodes": episodes,
        "cpu_ms": result.cpu_ms,
        "failures": list(result.problems),
        "gates": asdict(GATES[result.precision]),
    }


def parity_markdown(name: str, data: Mapping[str, Any]) -> str:
    """Contents of parity.md: the same numbers to read."""
    drawn = data["episodes"]
    lines = [f"# Parity of {name}", "", f"{data['engine']} against {data['reference']}.", ""]
    lines += ["| graph | precision | max abs error | max rel error | min cosine |", "|---|---|---|---|---|"]
    for precision, report in data["precisions"].items():
        for graph, row in report["graphs"].items():
            numbers = f"{row['max_abs']:.2g} | {row['max_rel']:.2g} | {row['cosine']:.6f}"
            lines.append(f"| {graph} | {precision} | {numbers} |")
    lines += ["", "Relative errors are relative to the largest value of an output; cosines are the worst row's.", ""]
    if drawn is None:
        lines += ["The weights are random: top-1 says nothing about them and was not compared.", ""]
    else:
        text = "{count} {way}-way {shot}-shot episodes of {clips} clips of {classes} classes ({source}), seed {seed}."
        lines += [text.format(**drawn), ""]
    lines += ["| precision | top-1 agreement | accuracy | PyTorch | CPU ms per query | gates |"]
    lines += ["|---|---|---|---|---|---|"]
    for precision, report in data["precisions"].items():
        row = report["episodes"]
        top1 = "– | – | –"
        if row is not None:
            top1 = f"{row['top1_agreement']:.1%} | {row['accuracy']:.1%} | {row['reference_accuracy']:.1%}"
        verdict = "passed" if report["passed"] else "failed: " + "; ".join(report["failures"])
        lines.append(f"| {precision} | {top1} | {report['cpu_ms']:.1f} | {verdict} |")
    lines += ["", "CPU ms: one query clip through the visual and the query graph with five classes, on one thread.", ""]
    return "\n".join(lines)
