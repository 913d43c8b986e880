"""Score calibration: from which distance on a query belongs to none of the classes.

Leave-one-out over the support clips of classes with two or more: each clip in turn is a query, its
class is rebuilt from the others, and its distance to the best class (by logit, as in a prediction) is a
genuine score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from m2df_runtime.backends.model import Model

Float = NDArray[np.float32]

# With n genuine scores a new genuine query exceeds their maximum with probability at most 1/(n + 1) before
# the margin is added; below five scores that bound says nothing useful.
MIN_QUERIES = 5
# One query graph run over all classes per held-out clip: 200 runs over 1000 classes stay under 4 s.
MAX_QUERIES = 200


@dataclass(frozen=True)
class Calibration:
    """When to reject.

    Attributes:
        threshold: Distance of the best class (summed over views) beyond which a query is rejected.
        queries: Genuine leave-one-out scores behind it.
        unknown_rejected: Share of the same queries that would be rejected if their own class were missing:
            what the threshold can be expected to catch.
    """

    threshold: float
    queries: int
    unknown_rejected: float


def can_calibrate(shots: Sequence[int]) -> bool:
    """Whether classes with these numbers of clips give enough leave-one-out queries."""
    return len(shots) > 1 and sum(count for count in shots if count > 1) >= MIN_QUERIES


def calibrate(model: Model, features: Sequence[Float], prompts: Float, prototypes: Float) -> Calibration | None:
    """Calibrate from stored features; encodes nothing.

    Args:
        model: Runs the support and query graphs.
        features: Per class the clips' features [K, T, D].
        prompts: [C, D].
        prototypes: [C, V, T, D].

    Returns:
        None where the classes have too few clips (`can_calibrate`).
    """
    if not can_calibrate([len(clips) for clips in features]):
        return None
    held_out = [(c, k) for c, clips in enumerate(features) if len(clips) > 1 for k in range(len(clips))]
    chosen = np.unique(np.linspace(0, len(held_out) - 1, min(len(held_out), MAX_QUERIES)).astype(int))
    genuine, unknown = [], []
    for label, clip in (held_out[i] for i in chosen):
        others = np.delete(features[label], clip, axis=0)  # (K-1, T, D)
        changed = prototypes.copy()
        changed[label] = model.prototypes(others, prompts[label : label + 1])
        scores = model.match(features[label][clip : clip + 1], prompts, changed)
        summed, logits = scores.distances[0].sum(axis=0), scores.logits[0].copy()  # (V, C) -> (C,), (C,)
        genuine.append(float(summed[logits.argmax()]))
        logits[label] = -np.inf
        unknown.append(float(summed[logits.argmax()]))
    return decide(np.asarray(genuine), np.asarray(unknown))


def decide(genuine: NDArray[np.float64], unknown: NDArray[np.float64]) -> Calibration:
    """The threshold from scores of queries with their class present, and with it taken away.

    It lies beyond every genuine score, by their standard deviation or, if more, by half of the way to the
    median unknown score: wrongly rejecting a known action costs more than naming an unknown one.
    """
    margin = max(float(genuine.std()), (float(np.median(unknown)) - float(genuine.max())) / 2)
    threshold = float(genuine.max()) + margin
    return Calibration(threshold, len(genuine), float((unknown > threshold).mean()))
