"""What every benchmark writes: percentiles, the machine, the versions and the hash of the model, as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("m2df", "numpy", "av", "opencv-python-headless", "pillow", "onnxruntime", "onnxruntime-gpu", "torch")


def percentiles(samples: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and least of samples, and their drift: median of the second half over that of the first.

    A drift far from 1 says that the machine was busy or slowed down, and that the run should be repeated.
    """
    ordered = sorted(samples)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]

    half = len(samples) // 2
    drift = statistics.median(samples[half:]) / max(statistics.median(samples[:half] or samples), 1e-12)
    values = {"p50": statistics.median(ordered), "p95": at(0.95), "p99": at(0.99), "min": ordered[0], "drift": drift}
    return {name: round(value, 4) for name, value in values.items()}


def environment() -> dict[str, object]:
    """Versions and hardware of this run."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "system": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def write(name: str, record: Mapping[str, object], out: Path | None) -> Path:
    """Write a record to `out`, by default to results/<name>.json, and return the path."""
    path = out or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return path


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None
