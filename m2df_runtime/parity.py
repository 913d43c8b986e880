"""How far two sides' numbers are from each other, and how far they may be: for exports, verifications and engines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.engine_names import RUN_PRECISIONS, RunPrecision

ROUNDING = 1e-9  # of a difference between two shares of episodes that is at its bound


@dataclass(frozen=True)
class Gates:
    """Bounds of one precision against its reference; None is not checked. `max_rel` is that of `Drift`."""

    max_rel: float | None = None
    cosine: float | None = None
    agreement: float | None = None
    accuracy_drop: float | None = None


_EIGHT_BITS = Gates(cosine=0.995, agreement=0.98, accuracy_drop=0.01)
_SIXTEEN_BITS = Gates(cosine=0.9995, agreement=0.995)
GATES: dict[RunPrecision, Gates] = {
    "fp32": Gates(max_rel=1e-4),
    "fp16": _SIXTEEN_BITS,
    "bf16": _SIXTEEN_BITS,
    "int8": _EIGHT_BITS,
    "int8-static": _EIGHT_BITS,
    "fp8": _EIGHT_BITS,
}
# fp32 on a GPU multiplies with the 10 bits of TF32; the bound is that of engines against ONNX Runtime.
_GPU_FP32 = Gates(cosine=0.99999, agreement=0.995)


def gates_of(backend: str, precision: RunPrecision, reference: RunPrecision) -> Gates:
    """Bounds of an engine against a reference: those of the coarser of their precisions."""
    coarser = max(precision, reference, key=RUN_PRECISIONS.index)
    return _GPU_FP32 if coarser == "fp32" and backend in ("cuda", "tensorrt") else GATES[coarser]


@dataclass(frozen=True)
class Drift:
    """Distance of an array from its reference.

    Attributes:
        max_abs: Largest error.
        max_rel: The same relative to the reference's largest value.
        cosine: Smallest cosine of two rows.
    """

    max_abs: float
    max_rel: float
    cosine: float

    def problem(self, gates: Gates) -> str | None:
        """Which bound it is beyond, in words; None where none."""
        if gates.max_rel is not None and not self.max_rel <= gates.max_rel:
            return f"relative error {self.max_rel:.2g}, allowed {gates.max_rel:g}"
        if gates.cosine is not None and not self.cosine >= gates.cosine:
            return f"cosine {self.cosine:.5f}, needed {gates.cosine}"
        return None


def drift(actual: NDArray[Any], expected: NDArray[Any], *, centred: bool = False) -> Drift:
    """Distance of two arrays of one shape; rows are the last axis. Numbers that are not finite are infinitely far.

    Args:
        actual: What is measured.
        expected: The reference.
        centred: Take each row's mean from it before cosines: an offset that a row shares would hide the rest.
    """
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    if not np.isfinite(a).all():
        return Drift(float("inf"), float("inf"), 0.0)
    error = float(np.abs(a - b).max())
    max_rel = error / max(float(np.abs(b).max()), 1e-12)
    if centred:
        a, b = a - a.mean(axis=-1, keepdims=True), b - b.mean(axis=-1, keepdims=True)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return Drift(error, max_rel, float(((a * b).sum(axis=-1) / np.maximum(norms, 1e-12)).min()))


def worst(found: Iterable[Drift]) -> Drift:
    """The largest errors and the smallest cosine of several."""
    items = list(found)
    return Drift(max(d.max_abs for d in items), max(d.max_rel for d in items), min(d.cosine for d in items))
