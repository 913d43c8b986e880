"""Start-up of `m2df-run` with a warm support bank: process start to answer, imports, memory, and bytes installed.

    python -m benchmarks.startup

Every sample is a fresh process. Its peak memory is what the system charged it; its imports are counted
by Python itself in one run of their own. Bytes are those of the runtime's packages and of all they need.
Modules are compiled before, as pip does it at installation: PYTHONDONTWRITEBYTECODE does not reach the processes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from time import perf_counter

import click
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import m2df_runtime
from benchmarks.record import Machine, percentiles, write
from benchmarks.ruled import as_options, described, ruled
from m2df_runtime.bundle.shipped import demo_bundle
from m2df_runtime.commands.console import main_entry, progress
from m2df_runtime.errors import CheckFailed

RUN = ("-m", "m2df_runtime.commands.run", "--json")
# Stages of the answer that are the clip's and the model's, not the program's.
WORK = ("decode", "visual", "query")
EXTRA = "cpu"  # with the engine that comes with it
TARGET_MS = 500.0  # design budget on 2 cores
NEVER = ("torch", "open_clip")
_IMPORT = re.compile(r"^import time:\s*(\d+) \|\s*\d+ \|\s*(\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Sample:
    """One process: milliseconds to the first answer, the same less decoding and inference, peak MiB."""

    answer: float
    overhead: float
    peak: float


def start(arguments: list[str]) -> Sample:
    """Run m2df-run once in a fresh process.

    Raises:
        CheckFailed: It fails.
    """
    begin = perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, *RUN, *arguments], stdout=subprocess.PIPE, stderr=said, env=_as_installed()
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        answer = 1000 * (perf_counter() - begin)
        process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)  # wait4 took what Popen would wait for
        process.stdout.close()
        if process.returncode or not line:
            said.seek(0)
            problem = said.read().decode(errors="replace").strip()
            raise CheckFailed(f"m2df-run ended with exit code {process.returncode}: {problem}")
    timings = json.loads(line)["timings_ms"]
    return Sample(answer, answer - sum(timings[stage] for stage in WORK), usage.ru_maxrss / 1024)


def _as_installed() -> dict[str, str]:
    """The environment in which the first process leaves compiled modules to the others."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def imports(arguments: list[str]) -> dict[str, float]:
    """Milliseconds each top-level package spent importing its modules, in one whole m2df-run."""
    command = [sys.executable, "-X", "importtime", *RUN, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=_as_installed())
    spent: dict[str, float] = {}
    for microseconds, module in _IMPORT.findall(done.stderr):
        package = module.split(".")[0]
        spent[package] = spent.get(package, 0.0) + int(microseconds) / 1000
    return spent


def installed() -> dict[str, int]:
    """Bytes on disk of the runtime and of every package it needs, compiled Python left out."""
    found = {"m2df_runtime": _bytes(Path(m2df_runtime.__file__).parent.rglob("*"))}
    wanted = list(_needed("m2df", EXTRA))
    while wanted:
        name = wanted.pop()
        if name not in found:
            found[name] = _bytes(Path(str(file.locate())) for file in metadata.files(name) or ())
            wanted += _needed(name, "")
    return found


def _bytes(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.is_file() and path.suffix != ".pyc")


def _needed(package: str, extra: str) -> Iterator[str]:
    """Names of what a package needs on this machine, and with an extra."""
    for line in metadata.requires(package) or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield canonicalize_name(requirement.name)


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--bundle", type=click.Path(path_type=Path), help="Bundle [the shipped one].")
@click.option("--support", type=click.Path(path_type=Path), help="Support folder [the demo's].")
@click.option("--query", type=click.Path(path_type=Path), help="Query clip [the demo's].")
@click.option("--rounds", type=click.IntRange(2), default=20)
@click.option("--out", type=click.Path(path_type=Path), help="JSON file [benchmarks/results/startup.json].")
def cli(bundle: Path | None, support: Path | None, query: Path | None, rounds: int, out: Path | None) -> None:
    """Time fresh m2df-run processes on a warm bank."""
    machine, path = Machine(), bundle or demo_bundle()
    given = {"--support": support, "--query": query}
    arguments = [part for option, value in given.items() if value is not None for part in (option, str(value))]
    arguments += as_options(path)
    start(arguments)  # builds the bank, fills the disk cache
    samples = []
    with progress("processes", rounds) as advance:
        for _ in range(rounds):
            samples.append(start(arguments))
            advance(1)
    spent = imports(arguments)
    sizes = installed()
    overhead = percentiles([sample.overhead for sample in samples])
    record = {
        "overhead_ms": overhead,
        "target_ms": TARGET_MS,
        "answer_ms": percentiles([sample.answer for sample in samples]),
        "peak_mib": round(max(sample.peak for sample in samples), 1),
        "import_ms": round(sum(spent.values()), 1),
        "import_ms_by_package": dict(
            sorted(((n, round(v, 1)) for n, v in spent.items() if v >= 1), key=lambda i: -i[1])
        ),
        "installed_bytes": sum(sizes.values()),
        "installed_bytes_by_package": dict(sorted(sizes.items(), key=lambda item: -item[1])),
        "imported_never": {name: name not in spent for name in NEVER},
        "settings": {"rounds": rounds, "subtracted": WORK},
        "model": described(ruled(path)),
        "environment": machine.environment(),
    }
    p50, p95 = overhead["p50"], overhead["p95"]
    click.echo(f"process start to answer, less decode and inference: p50 {p50:.0f} ms, p95 {p95:.0f} ms")
    megabytes = record["installed_bytes"] / 1e6  # type: ignore[operator]  # a sum of whole numbers
    click.echo(f"imports {record['import_ms']} ms, peak memory {record['peak_mib']} MiB, {megabytes:.0f} MB installed")
    click.echo(f"written: {write('startup', record, out)}")
    loaded = [name for name in NEVER if name in spent]
    if loaded:
        raise CheckFailed(f"m2df-run imported {', '.join(loaded)}")


if __name__ == "__main__":
    main_entry(cli)
