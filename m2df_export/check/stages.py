"""The stages between a clip and its scores, and how one side's numbers are held against the other's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.bundle.manifest import GraphName
from m2df_runtime.parity import Drift, Gates, drift

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
# Before them, each graph on drawn inputs, and after them.
START, ALONE, EPISODES = "start", "graphs", "episodes"
# Only differences between classes matter to an answer; a large offset that all share would hide them in a cosine.
CENTRED: tuple[Stage, ...] = ("distances", "scores")
DECODING = ("frames", "sampler")  # fields of a ClipSpec that decide which frames are read

# OTAM is fp32 in every precision: fp16 heads of 128 to 1,024 features came to 8e-5, and costs
# quantised to 8 bits to 7e-4, which no cosine shows.
_DISTANCES_MAX_REL = 3e-4


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
    centred = stage in CENTRED
    found = drift(alone, expected, centred=centred)
    same_shape = actual["chain"].shape == expected.shape
    chain = drift(actual["chain"], expected, centred=centred) if same_shape else None
    if stage == "distances" and gates.max_rel is None:
        gates = replace(gates, max_rel=_DISTANCES_MAX_REL)
    return StageResult(stage, found, chain, note or found.problem(gates))


def differing_fields(actual: Mapping[str, Any], expected: Mapping[str, Any], decoding: bool) -> list[str]:
    """Fields of two ClipSpecs that differ, as text: those of decoding, or those of what follows it."""
    return [
        f"clip.{name} is {value}, the reference's {expected.get(name)}"
        for name, value in actual.items()
        if (name in DECODING) == decoding and value != expected.get(name)
    ]
