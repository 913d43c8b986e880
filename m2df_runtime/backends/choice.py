"""Which backend and precision are taken where a user names none: what was measured fastest here, else a fixed rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from m2df_runtime.backends.precisions import default_precision, takeable
from m2df_runtime.engine_names import BackendName, RunPrecision
from m2df_runtime.user_cache import MEASURED, has_cache

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
    if not has_cache(MEASURED):
        return None
    from m2df_runtime.backends.measured import measured

    return measured(bundle)


def _ahead(bundle: Bundle, fitting: list[Timed]) -> str:
    """How far the first of them is ahead: of what the rule for CPUs takes, else of the next."""
    best, *others = fitting
    rule = f"cpu {default_precision(bundle, 'cpu')}"
    other = next((timed for timed in others if timed.name == rule), others[0] if others else None)
    return f": {other.ms / best.ms:.1f} times as fast as {other.name}" if other else ""
