"""The stages between a clip and its scores, and how one side's numbers are held against the other's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from m2df_export.check.gates import GATES, Gates
from m2df_runtime.bundle.manifest import PRECISIONS, GraphName, Precision

Stage = Literal["decode", "pixels", "features", "prompts", "prototypes", "selection", "distances", "scores"]

# The graph that computes each stage, in the order a clip passes them.
STAGES: dict[Stage, GraphName | None] = {
    "decode": None,
    "pixels": None,
    "features": "visual",
    "prompts": "text",
    "prototypes": "support",
    "selection": "query",
    "distances": "query",
    "scores": "query",
}
START, EPISODES = "start", "episodes"  # before and after them
# Only differences between classes matter to an answer; a large offset that all share would hide them in a cosine.
CENTRED: tuple[Stage, ...] = ("distances", "scores")
DECODING = ("frames", "sampler")  # fields of a ClipSpec that decide which frames are read

# OTAM is fp32 in every precision (design section 6): fp16 heads of 128 to 1,024 features came to 8e-5, and costs
# quantised to 8 bits to 7e-4, which no cosine shows.
_DISTANCES_MAX_REL = 3e-4
# fp32 on a GPU multiplies with the 10 bits of TF32; the bound is that of engines against ONNX Runtime.
_GPU_FP32 = Gates(cosine=0.99999, agreement=0.995)


@dataclass(frozen=True)
class Drift:
    """Distance of two arrays: smallest cosine of a row, and largest error relative to the largest value."""

    cosine: float
    max_rel: float


@dataclass(frozen=True)
class StageResult:
    """One stage of one engine.

    Attributes:
        stage: Which.
        alone: Distance from the reference where the stage is given the reference's inputs; None for frames,
            which are equal or not.
        chain: The same where it is given what the engine's own earlier stages computed.
        problem: Why it is out of tolerance; None where it is not.
    """

    stage: Stage
    alone: Drift | None
    chain: Drift | None
    problem: str | None


def gates_of(backend: str, precision: Precision, reference: Precision) -> Gates:
    """Bounds of an engine against a reference: those of the coarser of their precisions."""
    coarser = max(precision, reference, key=PRECISIONS.index)
    return _GPU_FP32 if coarser == "fp32" and backend in ("cuda", "tensorrt") else GATES[coarser]


def drift(stage: Stage, actual: NDArray[Any], expected: NDArray[Any]) -> Drift:
    """Distance of a stage's outputs; rows are the last axis."""
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    if not np.isfinite(a).all():
        return Drift(0.0, float("inf"))
    largest = max(float(np.abs(b).max()), 1e-12)
    max_rel = float(np.abs(a - b).max()) / largest
    if stage in CENTRED:
        a, b = a - a.mean(axis=-1, keepdims=True), b - b.mean(axis=-1, keepdims=True)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return Drift(float(((a * b).sum(axis=-1) / np.maximum(norms, 1e-12)).min()), max_rel)


def compare_clips(stage: Stage, actual: NDArray[np.str_], expected: NDArray[np.str_], fields: list[str]) -> StageResult:
    """Digests [M] of the clips' frames, and the fields of the preprocessing that differ."""
    different = int((actual != expected).sum())
    problem = None
    if fields:
        problem = "; ".join(fields)
    elif different:
        problem = f"{different} of {len(expected)} clips differ"
    return StageResult(stage, None, None, problem)


def compare_numbers(
    stage: Stage, actual: Mapping[str, NDArray[Any]], expected: NDArray[Any], gates: Gates, note: str | None = None
) -> StageResult:
    """A stage's numbers, `alone` and `chain`, against the reference's; `note` is a cause known beforehand."""
    alone = actual["alone"]
    if alone.shape != expected.shape:
        return StageResult(stage, None, None, f"the shape is {alone.shape}, the reference's {expected.shape}")
    found = drift(stage, alone, expected)
    chain = drift(stage, actual["chain"], expected) if actual["chain"].shape == expected.shape else None
    if stage == "distances" and gates.max_rel is None:
        gates = replace(gates, max_rel=_DISTANCES_MAX_REL)
    return StageResult(stage, found, chain, note or _problem(found, gates))


def _problem(found: Drift, gates: Gates) -> str | None:
    if gates.max_rel is not None and not found.max_rel <= gates.max_rel:
        return f"relative error {found.max_rel:.2g}, allowed {gates.max_rel:g}"
    if gates.cosine is not None and not found.cosine >= gates.cosine:
        return f"cosine {found.cosine:.5f}, needed {gates.cosine}"
    return None


def differing_fields(actual: Mapping[str, Any], expected: Mapping[str, Any], decoding: bool) -> list[str]:
    """Fields of two ClipSpecs that differ, as text: those of decoding, or those of what follows it."""
    return [
        f"clip.{name} is {value}, the reference's {expected.get(name)}"
        for name, value in actual.items()
        if (name in DECODING) == decoding and value != expected.get(name)
    ]
