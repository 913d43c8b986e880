"""Teaching: how long an action takes to be added to a bank of many, beside encoding its clips, and a bank to be listed.

    python -m benchmarks.teaching

The clips of the many classes are copies of a demo clip with other bytes behind it, and their features are drawn at
random: what is measured does not depend on what they show. Those of the action that is added are encoded. Processor
seconds, of which the clock needs the same on an idle machine.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from time import perf_counter, process_time

import click
import numpy as np

from benchmarks.record import Machine, percentiles, write
from benchmarks.ruled import described, ruled
from m2df_runtime import Model, Support, SupportBank
from m2df_runtime.bank.contents import Encoded, encode
from m2df_runtime.bank.folder import read_support
from m2df_runtime.bank.update import folder_bank
from m2df_runtime.bundle.shipped import demo_queries, demo_support
from m2df_runtime.commands.console import main_entry, progress

CLASSES, SHOTS, LISTED = 100, 5, 1000
TARGETS = {"beside_encoding_s": 0.3, "calibration_s": 3.0, "list_s": 1.0}  # design budget on 2 cores
NEW_CLIPS = 3


def many(folder: Path, classes: int, model: Model) -> None:
    """A support folder of so many classes, with its bank."""
    clip = next(demo_support().glob("*/*")).read_bytes()
    for number in range(classes):
        (folder / f"class {number}").mkdir(parents=True)
        for shot in range(SHOTS):
            (folder / f"class {number}" / f"{shot}.mp4").write_bytes(clip + f"{number} {shot}".encode())
    manifest, random = model.bundle.manifest, np.random.default_rng(0)
    size = (manifest.clip.frames, manifest.dim)
    known = {
        clip.digest(): Encoded(random.normal(size=size).astype(np.float32), 2.0) for clip in read_support(folder).clips
    }
    folder_bank(folder, model, manifest.text.rules, known=known)


def new_clips(folder: Path) -> Iterator[list[Path]]:
    """Clips that nobody has yet, again and again."""
    clips = list(itertools.islice(itertools.cycle(sorted(demo_queries().iterdir())), NEW_CLIPS))
    for number in itertools.count():
        made = [folder / f"{number}-{shot}{clip.suffix}" for shot, clip in enumerate(clips)]
        for path, clip in zip(made, clips, strict=True):
            path.write_bytes(clip.read_bytes() + str(number).encode())
        yield made


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds of this process."""
    begin = process_time()
    work()
    return process_time() - begin


def taught(support: Support, model: Model, clips: Iterator[list[Path]], rounds: int) -> dict[str, list[float]]:
    """Seconds of adding a class, of encoding its clips by itself, and of calibrating the bank after that."""
    found: dict[str, list[float]] = {"add_s": [], "encode_s": [], "beside_encoding_s": [], "calibration_s": []}
    with progress("classes", rounds) as advance:
        for _ in range(rounds):
            new = next(clips)
            alone = seconds(lambda new=new: [encode(clip, model) for clip in new])  # type: ignore[misc]
            whole = seconds(lambda new=new: support.add("new", new))  # type: ignore[misc]
            found["calibration_s"].append(seconds(lambda: SupportBank.of(model, support.path)))
            found["add_s"].append(whole)
            found["encode_s"].append(alone)
            found["beside_encoding_s"].append(whole - alone)
            support.undo()
            support.purge()
            SupportBank.of(model, support.path)
            advance(1)
    return found


def listed(support: Path, rounds: int) -> dict[str, list[float]]:
    """Processor seconds and seconds of the clock of fresh processes that list a support."""
    command = [sys.executable, "-m", "m2df_runtime.commands.run", "bank", "list", "--support", str(support)]
    found: dict[str, list[float]] = {"list_s": [], "list_clock_s": []}
    for _ in range(rounds + 1):
        before, begin = getrusage(RUSAGE_CHILDREN), perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found["list_clock_s"].append(perf_counter() - begin)
        after = getrusage(RUSAGE_CHILDREN)
        found["list_s"].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {name: values[1:] for name, values in found.items()}  # the first fills the disk cache


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--bundle", type=click.Path(path_type=Path), help="Bundle [the newest, else the shipped one].")
@click.option("--classes", type=click.IntRange(2), default=CLASSES, help="Classes of the bank that learns one more.")
@click.option("--listed", "many_classes", type=click.IntRange(2), default=LISTED, help="Classes of the bank listed.")
@click.option("--rounds", type=click.IntRange(2), default=6)
@click.option("--out", type=click.Path(path_type=Path), help="JSON file [benchmarks/results/teaching.json].")
def cli(bundle: Path | None, classes: int, many_classes: int, rounds: int, out: Path | None) -> None:
    """Time teaching with a bank of many classes, kept as a folder and as a file."""
    machine, model = Machine(), ruled(bundle)
    model.prepare("visual", "text", "support", "query")
    result: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory(prefix="m2df-") as place:
        folder, file, clips = Path(place, "folder"), Path(place, "a.bank"), Path(place, "clips")
        clips.mkdir()
        many(folder, classes, model)
        Support(folder, model).pack(file)
        new = new_clips(clips)
        for kind, path in (("folder", folder), ("file", file)):
            samples = taught(Support(path, model), model, new, rounds)
            result[kind] = {name: percentiles(values) for name, values in samples.items()}
        shutil.rmtree(folder)
        many(folder, many_classes, model)
        Support(folder, model).pack(file)
        for kind, path in (("folder", folder), ("file", file)):
            result[kind] |= {name: percentiles(values) for name, values in listed(path, rounds).items()}
    for kind, found in result.items():
        shown = ", ".join(f"{name} {found[name]['p50']:.2f}" for name in found)  # type: ignore[index]
        click.echo(f"{kind}: {shown}")
    record = {
        **result,
        "targets": TARGETS,
        "settings": {"classes": classes, "shots": SHOTS, "listed": many_classes, "rounds": rounds, "new": NEW_CLIPS},
        "model": described(model),
        "environment": machine.environment(),
    }
    click.echo(f"written: {write('teaching', record, out)}")


if __name__ == "__main__":
    main_entry(cli)
