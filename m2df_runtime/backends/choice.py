"""Which backend and precision are taken where a user names none: what was measured fastest here, else a fixed rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from m2df_runtime.engine_names import ON_CPU, BackendName, Precision, RunPrecision
from m2df_runtime.user_cache import MEASURED, user_cache

if TYPE_CHECKING:
    from m2df_runtime.backends.measured import Machine, Measured, Timed
    from m2df_runtime.bundle.bundle import Bundle


@dataclass(frozen=True)
class Choice:
    """What to open, as far as it is known.

    Attributes:
        backend: `auto` leaves it to the fixed rule.
        precision: None leaves it to the fixed rule.
        measured: Whether both are what was measured fastest here.
        why: What was measured, in words; None where nothing was.
    """

    backend: BackendName
    precision: RunPrecision | None
    measured: bool = False
    why: str | None = None


def choose(bundle: Bundle, backend: BackendName, precision: RunPrecision | None) -> Choice:
    """What to open where this is asked for; `auto` and None are filled with what was measured fastest on this machine.

    A backend or a precision that is named stays, and the other is the one that was fastest with it.
    """
    if backend != "auto" and precision is not None:
        return Choice(backend, precision)
    found = _measured(bundle)
    if found is None:
        return Choice(backend, precision)
    known, here = found
    if known.machine != here:
        why = f"by the fixed rule: measured on {known.date} {known.machine.unlike(here)} (m2df-doctor --measure)"
        return Choice(backend, precision, why=why)
    fitting = [
        timed
        for timed in known.timed
        if backend in ("auto", timed.backend)
        and precision in (None, timed.precision)
        and timed.precision in takeable(bundle, timed.backend)
    ]
    if not fitting:
        return Choice(backend, precision)
    return Choice(
        fitting[0].backend, fitting[0].precision, True, f"measured here on {known.date}{_ahead(bundle, fitting)}"
    )


def _measured(bundle: Bundle) -> tuple[Measured, Machine] | None:
    """See `measured.measured`; where nothing was ever measured, nothing is loaded and no folder made for that."""
    base = user_cache()
    if base is None or not (base / "m2df" / MEASURED).is_dir():
        return None
    from m2df_runtime.backends.measured import measured

    return measured(bundle)


def _ahead(bundle: Bundle, fitting: list[Timed]) -> str:
    """How far the first of them is ahead: of what the rule for CPUs takes, else of the next."""
    best, *others = fitting
    rule = f"cpu {default_precision(bundle, 'cpu')}"
    other = next((timed for timed in others if timed.name == rule), others[0] if others else None)
    return f": {other.ms / best.ms:.1f} times as fast as {other.name}" if other else ""


def takeable(bundle: Bundle, backend: str) -> tuple[RunPrecision, ...]:
    """The precisions that a backend may be given unasked, best reference first.

    Those that passed parity, where it is known, without fp8. A GPU takes float graphs alone. int8 counts as any other:
    its gate at export bounds what it may cost, one point of accuracy. What OpenVINO computes in bf16 is held to its
    gate where it is measured.
    """
    found: list[RunPrecision] = [*(_passed(bundle) or bundle.manifest.precisions[:1])]
    if backend not in ON_CPU:
        return tuple(precision for precision in found if precision in ("fp32", "fp16"))
    if backend == "openvino" and found[0] in ("fp32", "fp16"):
        found.append("bf16")
    return tuple(found)


def _passed(bundle: Bundle) -> list[Precision]:
    manifest = bundle.manifest
    return [p for p in manifest.precisions if p != "fp8" and p in manifest.parity and manifest.parity[p].passed]


def default_precision(bundle: Bundle, backend: str) -> Precision:
    """The fixed rule: the fastest precision of a bundle for a backend, of those that passed; else the best reference.

    GPUs take fp16, and fp8 only where it is asked for. ONNX Runtime on a CPU takes the fastest, by the times
    measured with it at export. OpenVINO takes calibrated int8, else the best reference: it computes in fp32 whatever
    a float file holds, and multiplies the graphs of dynamic int8, which are made for ONNX Runtime, no faster than
    those of fp32.
    """
    manifest, passed = bundle.manifest, _passed(bundle)
    if backend == "openvino":
        return "int8-static" if "int8-static" in passed else next(iter(passed), manifest.precisions[0])
    if backend != "cpu":
        return "fp16" if "fp16" in passed else manifest.precisions[0]
    timed = {p: ms for p in passed if (ms := manifest.parity[p].cpu_ms) is not None}
    if timed:
        return min(timed, key=lambda p: timed[p])
    return manifest.precisions[0]
