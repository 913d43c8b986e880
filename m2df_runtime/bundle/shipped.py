"""Bundles and clips that are found without being named: the newest export, and what ships with the package."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from m2df_runtime.bundle.manifest import MANIFEST_NAME

_DEMO = Path(__file__).parents[1] / "demo"

RECORDED = (("clap", 8.2, 11.3), ("side_bend", 21.3, 23.6), ("high_knees", 29.2, 32.9))
"""Each action of the demo recording, with the seconds from when to when it is done."""


def demo_bundle() -> Path:
    """The bundle shipped with the package."""
    return _DEMO / "demo.bundle.zip"


def demo_support() -> Path:
    """Support folder of the demo clips shipped with the package."""
    return _DEMO / "support"


def demo_queries() -> Path:
    """Folder of the demo query clips shipped with the package."""
    return _DEMO / "queries"


def demo_recording() -> Path:
    """The recording shipped with the package, in which people do some of the actions of the demo clips."""
    return _DEMO / "recording.mp4"


def newest_bundle(root: Path = Path("bundles")) -> Path:
    """The most recently written bundle under `root`, else the demo bundle shipped with the package."""
    candidates = sorted(_bundles_in(root), key=lambda p: p[1])
    return candidates[-1][0] if candidates else demo_bundle()


def _bundles_in(root: Path) -> Iterator[tuple[Path, float]]:
    if not root.is_dir():
        return
    for entry in os.scandir(root):
        manifest = Path(entry.path) / MANIFEST_NAME
        # Hidden ones are exports that were killed before they took their place.
        if not entry.name.startswith(".") and entry.is_dir() and manifest.is_file():
            yield Path(entry.path), manifest.stat().st_mtime
