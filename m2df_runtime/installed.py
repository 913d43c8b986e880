"""Which version of a package is installed."""

from __future__ import annotations


def version_of(package: str) -> str | None:
    """Installed version of a distribution, without importing it; None where it is not there."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
