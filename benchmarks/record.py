"""What every benchmark writes: percentiles, the machine, the versions and the hash of the model, as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.bundle.manifest import MANIFEST_NAME
from m2df_runtime.cpus import available_cpus, processor_name
from m2df_runtime.files import atomic_write, sha256_bytes, sha256_file
from m2df_runtime.installed import version_of
from m2df_runtime.other_programs import OtherPrograms

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    *("m2df", "numpy", "av", "opencv-python-headless", "pillow", "onnxruntime", "onnxruntime-gpu", "openvino"),
    *("tensorrt", "torch", "open_clip_torch"),
)
STEADY = 0.1  # how far the median of the second half may be from that of the first


def percentiles(samples: Sequence[float]) -> dict[str, float | bool]:
    """p50, p90, p95, p99 and least of samples in the order they were taken, and whether they stayed the same.

    `drift` is the median of the second half over that of the first; `stationary` says that it is near 1.
    """
    p50, p90, p95, p99 = (float(value) for value in np.percentile(samples, (50, 90, 95, 99)))
    half = len(samples) // 2
    drift = statistics.median(samples[half:]) / max(statistics.median(samples[:half] or samples), 1e-12)
    values = {"p50": p50, "p90": p90, "p95": p95, "p99": p99, "min": min(samples), "drift": drift}
    return {**{name: round(value, 4) for name, value in values.items()}, "stationary": abs(drift - 1) <= STEADY}


class Machine:
    """Watches the machine from its creation: what it is, and how busy others keep it meanwhile."""

    def __init__(self) -> None:
        self._time = datetime.now(timezone.utc)
        self._load = _load()
        self._others = OtherPrograms()

    def environment(self) -> dict[str, object]:
        """Versions, hardware and load of the run so far; child processes count once they have ended."""
        return {
            "time": self._time.isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "versions": {name: version for name in PACKAGES if (version := version_of(name)) is not None},
            "system": platform.platform(),
            "processor": processor_name(),
            "cores": available_cpus(),
            "memory_gib": _memory_gib(),
            "load_before": self._load,
            "load_after": _load(),
            "others_used": self._others.share(),
        }


def _load() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def write(name: str, record: Mapping[str, object], out: Path | None) -> Path:
    """Write a record to `out`, by default to results/<name>.json, and return the path."""
    path = out or RESULTS / f"{name}.json"
    atomic_write(path, (json.dumps(record, indent=2) + "\n").encode())
    return path


def bundle_hash(bundle: Bundle) -> str:
    """Hash of the bundle's manifest, which holds the hash of every other file; of the zip if it is one."""
    manifest = bundle.path / MANIFEST_NAME
    return sha256_bytes(manifest.read_bytes()) if manifest.is_file() else sha256_file(bundle.path)


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None
