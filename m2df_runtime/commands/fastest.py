"""`m2df-doctor --measure`: times a bundle on every engine of this machine, and keeps which `auto` takes from now on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from m2df_runtime.commands.console import emit, emit_json, progress
from m2df_runtime.errors import CheckFailed

if TYPE_CHECKING:
    from m2df_runtime.fastest.rounds import Absent, Contender

ROUNDS = 20
_BUSY = 0.1  # share of the processors that others may have; two equal engines were measured 2.7 times apart above it


def measure_engines(path: Path | None, rounds: int, threads: int | None, *, busy: bool, as_json: bool) -> None:
    """Measure a bundle, None for the newest, keep what was found and print it.

    Args:
        path: The bundle.
        rounds: Queries of each engine.
        threads: As in `Model`; what is kept counts for so many alone.
        busy: Keep it even where other programs are busy meanwhile.
        as_json: Print one JSON object per engine and line.

    Raises:
        InputError: Not a bundle.
        CheckFailed: No engine gives the model's answers, others were busy, or what is found could not be kept.
        OSError: The cache folder cannot be written.
    """
    from m2df_runtime.backends.measured import Machine, keep, kept_in
    from m2df_runtime.bundle.bundle import Bundle
    from m2df_runtime.bundle.shipped import newest_bundle
    from m2df_runtime.fastest.rounds import measure
    from m2df_runtime.other_programs import OtherPrograms

    bundle, machine = Bundle.open(path or newest_bundle()), Machine.here(threads)
    kept_in()  # who learns it afterwards has waited for nothing
    others = OtherPrograms()
    found, absent = measure(bundle, rounds, threads, progress)
    share = others.share() or 0.0
    timed = [timed for one in found if (timed := one.timed)]
    counts = bool(timed) and (busy or share <= _BUSY)
    kept: Path | None = None
    lost: Exception | None = None
    try:
        kept = keep(bundle, machine, timed, share if share > _BUSY else None) if counts else None
    except (CheckFailed, OSError) as error:  # what took minutes is printed all the same
        lost = error
    if as_json:
        for record in _records(found, absent, kept is not None):
            emit_json(record)
    else:
        clip = bundle.manifest.clip
        emit(f"{bundle.path.name} on {machine.text()}; a whole query of {clip.frames} frames against 5 classes")
        _print(found, absent)
    if not timed:
        raise CheckFailed(f"{bundle.path}: no engine on this machine gives its answers", "see the reasons above")
    if not counts:
        raise CheckFailed(
            f"nothing is kept: other programs had {share:.0%} of the processors, which changes what is fastest",
            "let them rest, or add --busy if they never do",
        )
    if lost is not None:
        raise lost
    if not as_json:
        where = "" if threads is None else f" with --threads {threads}"
        emit(f"auto takes {timed[0].name} for this bundle{where} from now on (kept in {kept})")
        emit(
            "banks keep their features; one that was calibrated with another engine is calibrated again when next used"
        )


def _records(found: list[Contender], absent: list[Absent], kept: bool) -> Iterator[dict[str, object]]:
    best = found[0].ms if found else None
    for place, one in enumerate(found):
        yield {
            "backend": one.backend,
            "precision": one.precision,
            "ms": one.ms and round(one.ms, 3),
            "times_fastest": one.ms and best and round(one.ms / best, 3),
            "rounds": len(one.samples),
            "behind": one.behind,
            "cosine": one.cosine,
            "agreement": one.agreement,
            "auto": kept and place == 0,
            "problem": one.problem,
        }
    for backend in absent:
        nothing = dict.fromkeys(("precision", "ms", "times_fastest", "cosine", "agreement"))
        yield asdict(backend) | nothing | {"rounds": 0, "behind": False, "auto": False}


def _print(found: list[Contender], absent: list[Absent]) -> None:
    best = found[0].ms if found else None
    none = click.style(f"{'--':>10}", fg="yellow")
    emit(f"{'backend':<10}{'precision':<13}{'median':>10}{'':4}times the fastest")
    for one in found:
        name = f"{one.backend:<10}{one.precision:<13}"
        if one.ms is None or best is None:
            emit(f"{name}{none}{'':4}{one.problem}")
        else:
            behind = f", of {len(one.samples)} queries only: too slow for more" if one.behind else ""
            emit(f"{name}{one.ms:>7.1f} ms{'':4}{one.ms / best:.2f}{behind}")
    for backend in absent:
        emit(f"{backend.backend:<23}{none}{'':4}{backend.problem}")
