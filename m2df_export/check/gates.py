"""How far a precision may be from PyTorch fp32 (design section 6), for export and verification alike."""

from __future__ import annotations

from dataclasses import dataclass

from m2df_runtime.bundle.manifest import Precision

ROUNDING = 1e-9  # of a difference between two shares of episodes that is at its bound


@dataclass(frozen=True)
class Gates:
    """Bounds of one precision; None is not checked. `max_rel` is relative to the largest value of an output."""

    max_rel: float | None = None
    cosine: float | None = None
    agreement: float | None = None
    accuracy_drop: float | None = None


_EIGHT_BITS = Gates(cosine=0.995, agreement=0.98, accuracy_drop=0.01)
GATES: dict[Precision, Gates] = {
    "fp32": Gates(max_rel=1e-4),
    "fp16": Gates(cosine=0.9995, agreement=0.995),
    "int8": _EIGHT_BITS,
    "int8-static": _EIGHT_BITS,
    "fp8": _EIGHT_BITS,
}
