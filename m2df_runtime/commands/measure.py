"""`m2df-doctor --measure`: times a bundle on every engine of this machine, and keeps which `auto` takes from now on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from m2df_runtime.commands.console import emit, emit_json, progress, say
from m2df_runtime.errors import CheckFailed

if TYPE_CHECKING:
    from m2df_runtime.measure.rounds import Contender

ROUNDS = 20
_BUSY = 0.1  # share of the processors that others may have; two equal engines were measured 2.7 times apart above it


def measure_engines(path: Path | None, rounds: int, *, as_json: bool) -> None:
    """Measure a bundle, None for the newest, print what was found and keep it.

    Raises:
        InputError: Not a bundle.
        CheckFailed: No engine gives the model's answers, or what was found cannot be kept.
        OSError: The cache folder cannot be written.
    """
    from m2df_runtime.backends.measured import Machine, keep, lasts
    from m2df_runtime.bundle.bundle import Bundle
    from m2df_runtime.bundle.shipped import newest_bundle
    from m2df_runtime.measure.rounds import measure
    from m2df_runtime.other_programs import OtherPrograms

    bundle, others = Bundle.open(path or newest_bundle()), OtherPrograms()
    found = measure(bundle, rounds, progress)
    share = others.share()
    if share is not None and share > _BUSY:
        say(f"other programs had {share:.0%} of the processors: measure again while they rest")
    for one in found:
        if as_json:
            emit_json(_record(one, found[0]))
    if not as_json:
        clip = bundle.manifest.clip
        emit(f"{bundle.path.name} on {Machine.here().text()}; a whole query of {clip.frames} frames against 5 classes")
        _print(found)
    timed = [timed for one in found if (timed := one.timed)]
    if not timed:
        raise CheckFailed(f"{bundle.path}: no engine on this machine gives its answers", "see the reasons above")
    kept = keep(bundle, timed)
    if not lasts(kept):
        raise CheckFailed("what was measured is not kept: the cache folder cannot be used", "see the warning above")
    if not as_json:
        emit(f"auto takes {timed[0].name} for this bundle from now on (kept in {kept})")
        emit(
            "banks keep their features; one that was calibrated with another engine is calibrated again when next used"
        )


def _record(one: Contender, best: Contender) -> dict[str, object]:
    return {
        "backend": one.backend,
        "precision": one.precision,
        "ms": one.ms and round(one.ms, 3),
        "times_fastest": one.ms and best.ms and round(one.ms / best.ms, 3),
        "rounds": len(one.samples),
        "cosine": one.cosine,
        "agreement": one.agreement,
        "auto": one is best and one.ms is not None,
        "problem": one.problem,
    }


def _print(found: list[Contender]) -> None:
    best = found[0].ms
    emit(f"{'backend':<10}{'precision':<13}{'median':>10}{'':4}times the fastest")
    for one in found:
        name = f"{one.backend:<10}{one.precision or '':<13}"
        if one.ms is None or best is None:
            emit(f"{name}{click.style('--', fg='yellow'):>10}{'':4}{one.problem}")
        else:
            emit(f"{name}{one.ms:>7.1f} ms{'':4}{one.ms / best:.2f}")
