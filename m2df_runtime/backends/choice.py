"""Which backend and precision are taken where a user names none: what was measured fastest here, else a fixed rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from m2df_runtime.backends.precisions import default_precision, takeable
from m2df_runtime.engine_names import BackendName, RunPrecision
from m2df_runtime.user_cache import MEASURED, has_cache

if TYPE_CHECKING:
    from m2df_runtime.backends.measured import Measured, Timed
    from m2df_runtime.bundle.bundle import Bundle

_AHEAD = 1.05  # how many times as fast an engine is before that is said; less is 1.0 to one digit


@dataclass(frozen=True)
class Choice:
    """What to open, as far as it is known.

    Attributes:
        backend: `auto` leaves it to the fixed rule.
        precision: None leaves it to the fixed rule.
        measured: Whether both are what was measured fastest here.
        why: Why it is this, in words; None where both were named, or nothing was ever measured.
        slower: What else was measured and fits, the fastest first.
        broken: What was faster, and cannot be used.
    """

    backend: BackendName
    precision: RunPrecision | None
    measured: bool = False
    why: str | None = None
    slower: tuple[Timed, ...] = ()
    broken: tuple[str, ...] = ()

    def unusable(self, backend: BackendName, precision: RunPrecision | None) -> Choice:
        """What to open in its place, where this was asked for: the next that was measured, else by the fixed rule."""
        broken = (*self.broken, f"{self.backend} {self.precision}")
        cannot = f"{' and '.join(broken)}, the fastest here, cannot be used"
        if not self.slower:
            return Choice(backend, precision, why=f"by the fixed rule: {cannot}")
        best, *slower = self.slower
        return Choice(best.backend, best.precision, True, f"measured here: {cannot}", tuple(slower), broken)


def choose(bundle: Bundle, backend: BackendName, precision: RunPrecision | None, threads: int | None) -> Choice:
    """What to open where this is asked for; `auto` and None are filled with what was measured fastest on this machine.

    A backend or a precision that is named stays, and the other is the one that was fastest with it. Raises InputError.
    """
    if (backend != "auto" and precision is not None) or not has_cache(MEASURED):  # nothing is loaded for nothing
        return Choice(backend, precision)
    from m2df_runtime.backends.measured import Machine, Unusable, measured

    again = "m2df-doctor --measure" if threads is None else f"m2df-doctor --measure --threads {threads}"
    here = Machine.here(threads)
    try:
        known = measured(bundle, here)
    except Unusable as error:
        return Choice(backend, precision, why=f"by the fixed rule: what was measured here {error} ({again})")
    if known is None:
        return Choice(backend, precision)
    if known.machine != here:
        why = f"by the fixed rule: measured on {known.date} {known.machine.unlike(here)} ({again})"
        return Choice(backend, precision, why=why)
    fitting = [
        timed
        for timed in known.timed
        if backend in ("auto", timed.backend)
        and precision in (None, timed.precision)
        and timed.precision in takeable(bundle, timed.backend)
    ]
    if not fitting:
        asked = precision or ("" if backend == "auto" else backend)
        of = f" of {asked}" if asked else ""
        why = f"by the fixed rule: nothing that was measured{of} on {known.date} may be taken ({again})"
        return Choice(backend, precision, why=why)
    best, *slower = fitting
    return Choice(best.backend, best.precision, True, _praise(bundle, known, fitting), tuple(slower))


def _praise(bundle: Bundle, known: Measured, fitting: list[Timed]) -> str:
    """When it was measured, and how far the first is ahead: of what the rule for CPUs takes, else of the next."""
    busy = "" if known.others is None else f" while other programs had {known.others:.0%} of the processors"
    measured = f"measured here on {known.date}{busy}"
    best, *others = fitting
    rule = f"cpu {default_precision(bundle, 'cpu')}"
    other = next((timed for timed in others if timed.name == rule), others[0] if others else None)
    if other is None or other.ms < _AHEAD * best.ms:
        return measured
    return f"{measured}: {other.ms / best.ms:.1f} times as fast as {other.name}"
