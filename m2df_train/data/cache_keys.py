"""What stands for texts, and for the code that generates clips, in the keys of caches."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path


def digest(*parts: str) -> str:
    """SHA-256 of texts, in hexadecimal; no two lists of texts have the same."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogateescape")
        whole.update(len(data).to_bytes(8, "big"))
        whole.update(data)
    return whole.hexdigest()


@cache
def generator_version() -> str:
    """Stands for everything between an action's name and its generated clips."""
    files = sorted((Path(__file__).parents[1] / "synthetic").rglob("*.py"))
    return digest(*(file.read_text(encoding="utf-8") for file in files))[:16]
