"""The processor, and how many this process may use: what a job is pinned to, and what its control group grants.

One number for everything that starts threads. Clips are decoded on the caller's thread, before inference
begins, so decoding and inference share this budget in turns and never add up.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from m2df_runtime.errors import InputError

MAX_THREADS = 256  # beyond it no graph here gains; 100,000 stopped the machine while they were created
_CPUINFO = Path("/proc/cpuinfo")
# As Linux calls them, on x86 and on Arm.
_INSTRUCTIONS = {
    "AVX2": {"avx2"},
    "AVX-512": {"avx512f"},
    "VNNI": {"avx512_vnni", "avx_vnni"},
    "SVE": {"sve"},
    "I8MM": {"i8mm"},
    "BF16": {"avx512_bf16", "bf16"},
    "AMX": {"amx_tile"},
}
_PROCESS = Path("/proc/self")
_PROCESSORS = Path("/sys/devices/system/cpu")


def available_cpus() -> int:
    """Processors this process may use: its affinity, and no more than its control group's quota."""
    quota = cgroup_quota()
    allowed = len(_affinity())
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def processor_name(cpuinfo: Path = _CPUINFO) -> str:
    """What the processor calls itself, for people, and those of its instructions that engines have kernels for.

    Virtual machines give one name to processors of many kinds, of which one computes a model in half another's time.

    Args:
        cpuinfo: Linux's description of the processors.
    """
    facts: dict[str, str] = {}
    try:
        with cpuinfo.open(encoding="utf-8", errors="replace") as file:
            for line in takewhile(str.strip, file):  # the first processor of what may be hundreds
                key, _, value = line.partition(":")
                facts[key.strip()] = value.strip()
    except OSError:
        pass  # not Linux
    name = facts.get("model name")
    if not name:
        import platform

        name = platform.processor() or platform.machine()
    flags = {*facts.get("flags", "").split(), *facts.get("Features", "").split()}
    found = [word for word, marks in _INSTRUCTIONS.items() if flags & marks]
    return f"{name} ({' '.join(found)})" if found else name


def thread_count(threads: int | None) -> int:
    """Threads for an engine on the CPU: those asked for, else one for every core that may be used.

    Two processors that are one core's halves count once: a graph's products fill a core with one thread.

    Raises:
        InputError: The number asked for is not in 1 to 256.
    """
    if threads is None:
        return min(available_cpus(), len({_siblings(cpu) for cpu in _affinity()}), MAX_THREADS)
    if not 1 <= threads <= MAX_THREADS:
        raise InputError(f"{threads} threads: from 1 to {MAX_THREADS} can be asked for")
    return threads


def cgroup_quota(process: Path = _PROCESS) -> float | None:
    """Processors' worth of time that the control groups of a process grant it, both versions; None without a limit.

    Args:
        process: Folder of the process in /proc.
    """
    try:
        mounts = (process / "mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        groups = (process / "cgroup").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None  # not Linux
    limits = [limit for folder in _folders(mounts, groups) if (limit := _limit(folder)) is not None]
    return min(limits, default=None)


def _folders(mounts: list[str], groups: list[str]) -> Iterator[Path]:
    """Where the limits of a process stand: its group's folder and those above it, as far as they are mounted."""
    paths = {
        controllers: path for _, controllers, path in (line.split(":", 2) for line in groups if line.count(":") > 1)
    }
    for line in mounts:
        own, _, rest = line.partition(" - ")
        fields, kind = own.split(" "), rest.split(" ")
        if len(fields) < 5 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        if kind[0] == "cgroup2":
            path = paths.get("")
        else:
            path = next((p for names, p in paths.items() if "cpu" in names.split(",")), None)
            path = path if "cpu" in kind[-1].split(",") else None
        if path is None:
            continue
        mount, root = Path(_unescaped(fields[4])), Path(_unescaped(fields[3]))
        # In a container the mount may show a part of the tree, or a tree whose names differ from the host's.
        inside = Path(path).relative_to(root) if Path(path).is_relative_to(root) else Path()
        yield mount
        yield from (mount.joinpath(*inside.parts[: depth + 1]) for depth in range(len(inside.parts)))


def _unescaped(field: str) -> str:
    return field.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")


def _limit(folder: Path) -> float | None:
    """Quota over period of one control group; None where it has none."""
    try:
        unified = folder / "cpu.max"
        if unified.is_file():
            quota, period = unified.read_text().split()[:2]
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        granted = float(quota) / float(period)  # "max" is no number, -1 no limit
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return granted if granted > 0 else None


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _siblings(cpu: int) -> str:
    """The processors that share a core with one, as the kernel writes them; itself where it does not say."""
    try:
        return (_PROCESSORS / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)
