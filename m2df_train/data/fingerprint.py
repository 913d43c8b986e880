"""Versions of the code that makes pixels, so that no cache outlives a change of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import m2df_runtime

_RUNTIME_SOURCES = ("camera", "image_sequences", "preprocess", "region", "sampling", "video", "video_file")
_TRAINING_SOURCES = ("augment", "frame_cache")


def digest(*parts: str) -> str:
    """SHA-256 of texts, in hexadecimal; no two lists of texts have the same."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogateescape")
        whole.update(len(data).to_bytes(8, "big"))
        whole.update(data)
    return whole.hexdigest()


@cache
def pixel_version() -> str:
    """Stands for everything between a clip and the pixels a model is given."""
    places = ((Path(m2df_runtime.__file__).parent, _RUNTIME_SOURCES), (Path(__file__).parent, _TRAINING_SOURCES))
    return _sources(folder / f"{name}.py" for folder, names in places for name in names)


@cache
def generator_version() -> str:
    """Stands for everything between an action's name and its generated clips."""
    return _sources(sorted((Path(__file__).parent / "synthetic").rglob("*.py")))


def _sources(files: Iterable[Path]) -> str:
    return digest(*(file.read_text(encoding="utf-8") for file in files))[:16]
